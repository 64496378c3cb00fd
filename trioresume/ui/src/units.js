// Numbers and names in a form for people, and the rate of an upload.

import { language, say } from "./words.js";

const SIZES = [null, "kB", "MB", "GB", "TB"];
const formats = new Map();

function decimal(value, digits) {
  const key = `${language} ${digits}`;
  if (!formats.has(key)) {
    const options = { minimumFractionDigits: digits, maximumFractionDigits: digits, useGrouping: false };
    formats.set(key, new Intl.NumberFormat(language, options));
  }
  return formats.get(key).format(value);
}

/** 12300000 → "12.3 MB", in powers of 1000 as in the service's options. */
export function bytes(count) {
  let value = count;
  let unit = 0;
  while (value >= 999.5 && unit < SIZES.length - 1) {
    value /= 1000;
    unit += 1;
  }
  if (unit === 0) return say("bytes", { count: Math.round(value) });
  return `${decimal(value, value >= 99.95 ? 0 : 1)} ${SIZES[unit]}`;
}

/** 75 → "1 min 15 s". Two parts are enough for a duration that is only an estimate. */
export function duration(seconds) {
  const whole = Math.max(1, Math.round(seconds));
  if (whole < 60) return say("seconds", { seconds: whole });
  if (whole < 3600) return say("minutes", { minutes: Math.floor(whole / 60), seconds: whole % 60 });
  return say("hours", { hours: Math.floor(whole / 3600), minutes: Math.floor((whole % 3600) / 60) });
}

/** Return a percentage; it is never "100 %" before *part* is all of *whole*. */
export function percent(part, whole) {
  return `${whole > 0 ? Math.floor((100 * part) / whole) : 0} %`;
}

// The same characters as in trioresume/text.py: controls, and characters that reverse the
// direction of writing. With these, "evil\u202egpj.exe" would be shown as "evilexe.jpg".
const CONTROLS = /[\u0000-\u001f\u007f-\u009f\u202a-\u202e\u2028\u2029\u2066-\u2069]/g;

/** Return *text* with a mark in place of each character that would change the shown text. */
export function printable(text) {
  return text.replace(CONTROLS, "\ufffd");
}

/**
 * Return rows of texts and numbers as CSV (RFC 4180).
 *
 * A spreadsheet takes a cell for a formula that begins with one of =, +, -, @ and blanks. An
 * apostrophe before it makes it a text.
 */
export function csv(rows) {
  const cell = (value) => {
    const text = typeof value === "string" && /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value);
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return rows.map((row) => `${row.map(cell).join(",")}\r\n`).join("");
}

/**
 * The rate in bytes per second over the last seconds.
 *
 * The first sample after a start is the offset where the upload continues. It does not count
 * as sent bytes, so a resumed upload does not seem to be fast.
 */
export class Rate {
  static SPAN = 5000; // ms

  #samples = [];

  reset() {
    this.#samples = [];
  }

  get started() {
    return this.#samples.length > 0;
  }

  note(count, now) {
    this.#samples.push([now, count]);
    while (this.#samples.length > 2 && now - this.#samples[1][0] >= Rate.SPAN) this.#samples.shift();
  }

  /** Return the rate, or 0 while there are too few samples. */
  at(now) {
    if (this.#samples.length < 2) return 0;
    const [then, before] = this.#samples[0];
    return (1000 * (this.#samples.at(-1)[1] - before)) / Math.max(now - then, 1);
  }
}
