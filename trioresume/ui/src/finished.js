// The list of finished uploads, which outlives the page. File names are hard to guess, so
// a person who lost the link would not find the file again.
//
// An entry is { id, name, size, at, message, outcome }. "at" is the time of its end,
// "message" is where the service's answer can be fetched, and "outcome" is that answer, or
// null while it is not known.

import { browser } from "./storage.js";

const KEY = "trioresume.finished";
const MOST = 100; // the oldest go first

/** Return the entries, the newest first. */
export function list() {
  try {
    const kept = JSON.parse(browser.get(KEY) ?? "[]");
    return Array.isArray(kept) ? kept.filter((entry) => typeof entry?.id === "string") : [];
  } catch {
    return []; // somebody else's text
  }
}

/** Put *entry* in front, or replace the entry with the same id. */
export function put(entry) {
  const entries = list();
  const place = entries.findIndex(({ id }) => id === entry.id);
  if (place < 0) entries.unshift(entry);
  else entries[place] = entry;
  browser.set(KEY, JSON.stringify(entries.slice(0, MOST)));
}

export function has(id) {
  return list().some((entry) => entry.id === id);
}

export function clear() {
  browser.set(KEY, "[]");
}
