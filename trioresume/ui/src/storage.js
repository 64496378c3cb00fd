// Storage of the browser for a page. Where it is forbidden, the page keeps the values itself.

class Kept {
  #area = null;
  #memory = new Map();

  constructor(name) {
    try {
      this.#area = window[name];
    } catch {
      // The person's settings forbid it.
    }
  }

  /** Return the text under *key*, or null. */
  get(key) {
    return this.#memory.get(key) ?? this.#area?.getItem(key) ?? null;
  }

  set(key, text) {
    try {
      this.#area.setItem(key, text);
      this.#memory.delete(key);
    } catch {
      this.#memory.set(key, text); // forbidden, or full
    }
  }

  /** Return the keys that begin with *prefix*. */
  keys(prefix) {
    try {
      return Object.keys(this.#area ?? {}).filter((key) => key.startsWith(prefix));
    } catch {
      return [];
    }
  }

  remove(key) {
    this.#memory.delete(key);
    try {
      this.#area?.removeItem(key);
    } catch {
      // It was never there.
    }
  }
}

/** Values for this tab, until it is closed; they survive a reload. */
export const tab = new Kept("sessionStorage");

/** Values for all tabs, until the person clears them. */
export const browser = new Kept("localStorage");
