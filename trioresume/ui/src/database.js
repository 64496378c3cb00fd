// The page's database in the browser: unfinished uploads, their contents, finished uploads.
//
// The first change is written at once. Those that follow are collected and written together,
// a moment later. So two thousand small files cost a few transactions and not thousands.
// Contents always wait for that moment: most small files are sent before. Where the database
// is forbidden or broken, the page works without it, and remembers less.

const NAME = "trioresume";
const STORES = ["uploads", "contents", "finished"];
const DELAY = 500; // ms between two writings
const AT_ONCE = 200; // changes in a transaction, so that none keeps the page busy for long

export class Database {
  #opening;
  #changes = new Map(); // "store id" → [store, id, value]; undefined removes
  #timer = null;
  #contentsTimer = null;
  #flushed = -DELAY; // when something was written last
  #onWritten = [];

  constructor(factory = globalThis.indexedDB) {
    this.#opening = new Promise((resolve) => {
      try {
        const request = factory.open(NAME, 1);
        request.onupgradeneeded = () => {
          for (const store of STORES) request.result.createObjectStore(store);
        };
        request.onsuccess = () => {
          // Another tab may want a newer version of the database.
          request.result.onversionchange = () => request.result.close();
          resolve(request.result);
        };
        request.onerror = request.onblocked = () => resolve(null);
      } catch {
        resolve(null); // forbidden
      }
    });
    globalThis.window?.addEventListener("pagehide", () => this.flush());
  }

  /** Return all values of *store*; none if they cannot be read. */
  async all(store) {
    const database = await this.#opening;
    if (database === null) return [];
    return new Promise((resolve) => {
      try {
        const request = database.transaction(store).objectStore(store).getAll();
        request.onsuccess = () => resolve(request.result);
        request.onerror = () => resolve([]);
      } catch {
        resolve([]);
      }
    });
  }

  /** Return the value of *id* in *store*, or null. */
  async get(store, id) {
    const database = await this.#opening;
    if (database === null) return null;
    return new Promise((resolve) => {
      try {
        const request = database.transaction(store).objectStore(store).get(id);
        request.onsuccess = () => resolve(request.result ?? null);
        request.onerror = () => resolve(null);
      } catch {
        resolve(null);
      }
    });
  }

  /** Write *value* under *id* soon; undefined removes. The last value of an id counts. */
  put(store, id, value) {
    const key = `${store} ${id}`;
    const isContent = store === "contents" && value !== undefined;
    this.#changes.set(key, [store, id, value]);
    if (isContent) this.#contentsTimer ??= setTimeout(() => this.flush(), DELAY);
    else this.#timer ??= setTimeout(() => this.flush(isSmall), this.#flushed + DELAY - performance.now());
  }

  /** Call *listener* with [store, id, value] of all changes that were written together. */
  onWritten(listener) {
    this.#onWritten.push(listener);
  }

  /** Write the changes now for which *wanted* is true. Contents that do not fit are lost. */
  async flush(wanted = () => true) {
    clearTimeout(this.#timer);
    this.#timer = null;
    if (wanted !== isSmall) {
      clearTimeout(this.#contentsTimer);
      this.#contentsTimer = null;
    }
    this.#flushed = performance.now();
    const changes = [];
    for (const [key, change] of this.#changes) {
      if (!wanted(change)) continue;
      changes.push(change);
      this.#changes.delete(key);
    }
    if (changes.length === 0) return;
    for (let first = 0; first < changes.length; first += AT_ONCE) {
      const some = changes.slice(first, first + AT_ONCE);
      const written = (await this.#write(some)) || (await this.#write(some.filter(isSmall)));
      if (written) for (const listener of this.#onWritten) listener(some);
    }
  }

  async #write(changes) {
    const database = await this.#opening;
    if (database === null) return false;
    return new Promise((resolve) => {
      try {
        const transaction = database.transaction(STORES, "readwrite");
        transaction.oncomplete = () => resolve(true);
        transaction.onabort = () => resolve(false);
        for (const [store, id, value] of changes) {
          const place = transaction.objectStore(store);
          if (value === undefined) place.delete(id);
          else place.put(value, id);
        }
      } catch {
        resolve(false);
      }
    });
  }
}

/** Whether a change can be written even if there is no room for contents. */
function isSmall([store, , value]) {
  return store !== "contents" || value === undefined;
}
