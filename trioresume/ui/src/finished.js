// The list of finished uploads, which outlives the page. File names are hard to guess, so
// a person who lost the link would not find the file again.
//
// An entry is { id, name, size, at, message, outcome }. "at" is the time of its end,
// "message" is where the service's answer can be fetched, and "outcome" is that answer, or
// null while it is not known.
//
// The database keeps the list, but writes it a moment later. Until then a journal in the
// other storage has the new entries, because that is written at once: the page may be left
// at any time.

const JOURNAL = "trioresume.finished";
const CLEARED = "trioresume.cleared";
const MOST = 100_000; // the oldest go first
const MOST_IN_JOURNAL = 100;

export class Finished {
  #entries = new Map(); // by id, the oldest first
  #listed = null; // the same as a list, once it was asked for
  #database;
  #storage;
  #channel;
  #journal = new Map();

  /** *onChange* is called if another tab has changed the list. */
  constructor(database, storage, channel, onChange) {
    this.#database = database;
    this.#storage = storage;
    this.#channel = channel;
    database.onWritten((changes) => this.#written(changes));
    if (channel === null) return;
    channel.onmessage = ({ data: { put, removed, cleared } }) => {
      if (cleared) this.#entries.clear();
      for (const entry of put ?? []) this.#entries.set(entry.id, entry);
      for (const id of removed ?? []) this.#entries.delete(id);
      this.#listed = null;
      onChange();
    };
  }

  /** Read the list, as earlier pages left it. */
  async load() {
    const cleared = Number(this.#storage.get(CLEARED) ?? 0);
    const journal = this.#readJournal();
    const found = [...(await this.#database.all("finished")), ...journal, ...this.#entries.values()];
    const all = new Map(found.filter(isEntry).map((entry) => [entry.id, entry]));
    this.#entries = new Map();
    for (const entry of [...all.values()].sort((a, b) => a.at - b.at)) {
      if (entry.at > cleared) this.#entries.set(entry.id, entry);
      else this.#database.put("finished", entry.id, undefined);
    }
    this.#listed = null;
    for (const entry of journal) if (this.has(entry?.id)) this.#note(this.#entries.get(entry.id));
  }

  /** Return the entries, the newest first. */
  list() {
    this.#listed ??= [...this.#entries.values()].reverse();
    return this.#listed;
  }

  get size() {
    return this.#entries.size;
  }

  get(id) {
    return this.#entries.get(id);
  }

  has(id) {
    return this.#entries.has(id);
  }

  /** Put *entry* in front, or replace the entry with the same id. */
  put(entry) {
    this.#listed = null;
    this.#entries.set(entry.id, entry);
    if (this.#entries.size > MOST) this.remove(this.#entries.keys().next().value);
    this.#note(entry);
    this.#channel?.postMessage({ put: [entry] });
  }

  remove(id) {
    this.#listed = null;
    this.#entries.delete(id);
    if (this.#journal.delete(id)) this.#writeJournal();
    this.#database.put("finished", id, undefined);
    this.#channel?.postMessage({ removed: [id] });
  }

  clear() {
    this.#listed = null;
    this.#storage.set(CLEARED, String(Date.now()));
    this.#storage.set(JOURNAL, "[]");
    for (const id of this.#entries.keys()) this.#database.put("finished", id, undefined);
    this.#entries.clear();
    this.#journal.clear();
    this.#channel?.postMessage({ cleared: true });
  }

  #note(entry) {
    this.#journal.delete(entry.id);
    this.#journal.set(entry.id, entry);
    this.#writeJournal();
    this.#database.put("finished", entry.id, entry);
  }

  #written(changes) {
    let shorter = false;
    for (const [store, id, value] of changes) {
      // A newer entry with this id may have come meanwhile.
      if (store === "finished" && value !== undefined && this.#journal.get(id) === value) {
        shorter = this.#journal.delete(id);
      }
    }
    if (shorter) this.#writeJournal();
  }

  #writeJournal() {
    this.#storage.set(JOURNAL, JSON.stringify([...this.#journal.values()].slice(-MOST_IN_JOURNAL)));
  }

  #readJournal() {
    try {
      const kept = JSON.parse(this.#storage.get(JOURNAL) ?? "[]");
      return Array.isArray(kept) ? kept : [];
    } catch {
      return []; // somebody else's text
    }
  }
}

function isEntry(entry) {
  return typeof entry?.id === "string" && typeof entry.name === "string" && typeof entry.at === "number";
}
