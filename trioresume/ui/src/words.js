// The page's words in the person's language. English is complete; where another language
// lacks a word, the English one is shown.

import english from "./words.en.json" with { type: "json" };
import german from "./words.de.json" with { type: "json" };

const BUILT_IN = { en: english, de: german };

let words = english;
let plural = new Intl.PluralRules("en");
/** The tag of the language that is shown. */
export let language = "en";

/** Show *own* words, which may be incomplete, as the language *tag*. */
export function speak(tag, own = BUILT_IN[tag] ?? {}) {
  words = { ...english, ...own };
  language = tag;
  plural = new Intl.PluralRules(tag);
}

/** Return the first of the *wanted* tags that *known* has, with or without its region. */
export function choose(wanted, known) {
  for (const tag of wanted) {
    const bare = tag.toLowerCase();
    const found = known.find((name) => name.toLowerCase() === bare) ?? known.find((name) => name === bare.split("-")[0]);
    if (found !== undefined) return found;
  }
  return "en";
}

export function isBuiltIn(tag) {
  return tag in BUILT_IN;
}

/**
 * Return the word *key*, with *values* in place of {name}.
 *
 * A word may have several forms for *values.count*, named as in Intl.PluralRules.
 */
export function say(key, values = {}) {
  let word = words[key] ?? english[key];
  if (typeof word !== "string") word = word[plural.select(values.count)] ?? word.other;
  return word.replace(/\{(\w+)\}/g, (whole, name) => (name in values ? String(values[name]) : whole));
}
