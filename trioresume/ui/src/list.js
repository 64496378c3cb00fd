// A list of any length of which only the rows near the window exist.
//
// Rows may have different heights. A row's height is measured once it is shown, and guessed
// before. Rows that are left out are replaced by a margin, so that the scroll bar is right.

// What is shown stays where it is when something above it changes. Browsers do that by
// themselves, but not where rows come and go, so style.css switches that off.

const BEYOND = 600; // pixels above and below the window whose rows exist, too
const GAP = 12; // pixels between rows, as in style.css

let kept = null; // the id of the row that has to stay where it is

/** Change the page with *act*; the first row that is visible stays where it was. */
export function anchored(act) {
  const row = window.scrollY > 0 ? firstVisible() : null;
  const before = row?.getBoundingClientRect().top;
  kept = row?.dataset.id ?? null;
  act();
  kept = null;
  if (row === null || !row.isConnected) return;
  const moved = row.getBoundingClientRect().top - before;
  if (Math.abs(moved) >= 1) window.scrollBy(0, moved);
}

function firstVisible() {
  for (const row of document.querySelectorAll("li[data-id]")) {
    const { top, bottom } = row.getBoundingClientRect();
    if (bottom > 0 && top < window.innerHeight) return row;
  }
  return null;
}

export class List {
  #list;
  #template;
  #fill;
  #items = [];
  #rows = new Map(); // id → row
  #heights = new Map(); // id → pixels, with the gap
  #drawing = false;

  /** *fill(row, item)* shows an item, which has an id, in a copy of *template*. */
  constructor(list, template, fill) {
    this.#list = list;
    this.#template = template;
    this.#fill = fill;
    const soon = () => this.#soon();
    window.addEventListener("scroll", soon, { passive: true });
    window.addEventListener("resize", () => {
      this.#heights.clear(); // names break elsewhere now
      soon();
    });
  }

  show(items) {
    this.#items = items;
    if (items.length === 0) this.#heights.clear();
    this.draw();
  }

  #soon() {
    if (this.#drawing || this.#items.length === 0) return;
    this.#drawing = true;
    requestAnimationFrame(() => {
      this.#drawing = false;
      anchored(() => this.draw());
    });
  }

  draw() {
    const items = this.#items;
    const top = -BEYOND - this.#list.getBoundingClientRect().top;
    const bottom = top + 2 * BEYOND + window.innerHeight;
    const usual = this.#usualHeight();
    const focused = this.#list.contains(document.activeElement)
      ? document.activeElement.closest("[data-id]")?.dataset.id
      : undefined;
    const shown = [];
    let place = 0; // of the next item, from the top of the list
    let skipped = 0; // pixels since the last row that exists
    items.forEach((item, index) => {
      const height = this.#heights.get(item.id) ?? usual;
      // The row with the focus stays, or the next key would go nowhere.
      const stays = item.id === focused || item.id === kept;
      if ((place + height >= top && place <= bottom) || stays) {
        shown.push([item, index, skipped]);
        skipped = 0;
      } else skipped += height;
      place += height;
    });
    this.#reconcile(shown, skipped);
  }

  #reconcile(shown, below) {
    const wanted = new Set(shown.map(([item]) => item.id));
    for (const [id, row] of this.#rows) {
      if (wanted.has(id)) continue;
      row.remove();
      this.#rows.delete(id);
    }
    let next = this.#list.firstElementChild;
    for (const [item, index, above] of shown) {
      let row = this.#rows.get(item.id);
      if (row === undefined) {
        row = this.#template.content.firstElementChild.cloneNode(true);
        row.dataset.id = item.id;
        this.#rows.set(item.id, row);
      }
      if (row === next) next = next.nextElementSibling;
      else this.#list.insertBefore(row, next);
      set(row.style, "marginTop", above > 0 ? `${above}px` : "");
      attribute(row, "aria-posinset", String(index + 1));
      attribute(row, "aria-setsize", String(this.#items.length));
      this.#fill(row, item);
    }
    set(this.#list.style, "paddingBottom", below > 0 ? `${below}px` : "");
    for (const [item] of shown) {
      // Measured together, after all changes, so that the browser lays out once.
      this.#heights.set(item.id, this.#rows.get(item.id).offsetHeight + GAP);
    }
  }

  #usualHeight() {
    let sum = 0;
    let count = 0;
    for (const id of this.#rows.keys()) {
      const height = this.#heights.get(id);
      if (height === undefined) continue;
      sum += height;
      count += 1;
    }
    return count > 0 ? sum / count : 110;
  }
}

/** Set what differs only: a write that changes nothing still costs a layout. */
function set(object, key, value) {
  if (object[key] !== value) object[key] = value;
}

function attribute(element, name, value) {
  if (element.getAttribute(name) !== value) element.setAttribute(name, value);
}
