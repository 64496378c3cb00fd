// What a browser keeps for a page, and the page itself where the browser may not.

class Kept {
  #area = null;
  #memory = new Map();

  constructor(name) {
    try {
      this.#area = window[name];
    } catch {
      // Forbidden by the person's settings.
    }
  }

  /** The text under *key*, null if there is none. */
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

/** For this tab, until it is closed; it survives a reload. */
export const tab = new Kept("sessionStorage");

/** For all tabs, until the person clears it. */
export const browser = new Kept("localStorage");
