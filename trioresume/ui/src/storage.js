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
}

/** Values for this tab, until it is closed; they survive a reload. */
export const tab = new Kept("sessionStorage");

/** Values for all tabs, until the person clears them. */
export const browser = new Kept("localStorage");
