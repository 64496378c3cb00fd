// What people read, and the rate; test_scripts.py has node run this.

import assert from "node:assert/strict";
import { test } from "node:test";
import { Rate, bytes, csv, duration, percent, printable } from "../../trioresume/ui/src/units.js";
import { choose, say, speak } from "../../trioresume/ui/src/words.js";

test("sizes have three digits at most, and the unit that they fit", () => {
  const shown = [0, 999, 1000, 1500, 99_949, 99_950, 999_499, 999_500, 12.34e9, 5e15].map(bytes);
  assert.deepEqual(shown, [
    "0 bytes", "999 bytes", "1.0 kB", "1.5 kB", "99.9 kB", "100 kB", "999 kB", "1.0 MB", "12.3 GB", "5000 TB",
  ]);
});

test("durations have two parts at most", () => {
  assert.deepEqual([0, 59.4, 59.5, 75, 3599, 3600, 90061].map(duration), [
    "1 s", "59 s", "1 min 0 s", "1 min 15 s", "59 min 59 s", "1 h 0 min", "25 h 1 min",
  ]);
});

test("nothing is at 100 % before it is whole", () => {
  assert.deepEqual([percent(999, 1000), percent(1000, 1000), percent(0, 0)], ["99 %", "100 %", "0 %"]);
});

test("what would reverse or break a name is marked, blanks and joiners are not", () => {
  assert.equal(printable("evil\u202egpj.exe"), "evil\ufffdgpj.exe");
  for (const code of [0, 9, 0x1b, 0x7f, 0x85, 0x9f, 0x202a, 0x2028, 0x2066, 0x2069]) {
    assert.equal(printable(`a${String.fromCodePoint(code)}b`), "a\ufffdb");
  }
  for (const name of ["a\u202fb", "\u{1f468}\u200d\u{1f469}", "a\u3000b", "\u0378", "\u200f"]) {
    assert.equal(printable(name), name);
  }
});

test("a resumed upload does not seem fast", () => {
  const rate = new Rate();
  rate.note(1_000_000, 0); // where it goes on
  assert.equal(rate.at(0), 0);
  rate.note(1_001_000, 1000);
  assert.equal(rate.at(1000), 1000);
  rate.reset();
  assert.equal(rate.started, false);
});

test("a rate is that of the last seconds, and falls when nothing comes", () => {
  const rate = new Rate();
  for (let second = 0; second <= 20; second += 1) rate.note(second <= 10 ? 0 : (second - 10) * 500, second * 1000);
  assert.equal(rate.at(20_000), 500);
  assert.equal(rate.at(25_000), 250);
});

test("a table is safe for a spreadsheet", () => {
  assert.equal(csv([["name", "bytes"], ['a,"b"\r\n', 5], ["=1+1", -2], ["@x", "+y"]]), [
    "name,bytes\r\n",
    '"a,""b""\r\n",5\r\n',
    "'=1+1,-2\r\n",
    "'@x,'+y\r\n",
  ].join(""));
});

test("numbers are written as the language writes them", () => {
  speak("de");
  assert.deepEqual([bytes(1500), bytes(1), bytes(0), duration(75)], ["1,5 kB", "1 Byte", "0 Bytes", "1 min 15 s"]);
  speak("en");
  assert.equal(bytes(1500), "1.5 kB");
});

test("the first language that is known is chosen", () => {
  const known = ["en", "de", "pt-BR"];
  assert.equal(choose(["fr", "pt-br", "de"], known), "pt-BR");
  assert.equal(choose(["de-CH"], known), "de");
  assert.equal(choose(["pt"], known), "en");
  assert.equal(choose([], known), "en");
});

test("a word that a language lacks is English, and forms follow the count", () => {
  speak("fr", { found: { one: "{count} fichier", other: "{count} fichiers" } });
  assert.equal(say("found", { count: 0 }), "0 fichier");
  assert.equal(say("found", { count: 2 }), "2 fichiers");
  assert.equal(say("pause"), "Pause");
  assert.equal(say("isUploaded", { name: "{name} $& x" }), "{name} $& x is uploaded.");
  speak("en");
});
