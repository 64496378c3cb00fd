// The view: it shows the page and takes the person's actions. Names and answers come from
// elsewhere, so they are shown as text and never as markup.

import { bytes, duration, percent, printable } from "./units.js";

const byId = (id) => document.getElementById(id);

/** The action of an upload's button in each state; null means that there is no button. */
const ACTIONS = {
  waiting: "Pause",
  uploading: "Pause",
  retrying: "Pause",
  offline: "Pause",
  paused: "Resume",
  failed: "Try again",
  left: null,
};

function status({ state, sent, size, rate, problem }) {
  const done = percent(sent, size);
  switch (state) {
    case "waiting":
      return "Waiting";
    case "uploading": {
      if (sent >= size) return "Sent, being stored";
      const parts = [`${done}, ${bytes(sent)} of ${bytes(size)}`];
      if (rate > 0) parts.push(`${bytes(rate)}/s`, `${duration((size - sent) / rate)} left`);
      return parts.join(" · ");
    }
    case "retrying":
      return `${done} · ${problem ?? "No answer"}, trying again`;
    case "offline":
      return `${done} · Offline, goes on by itself`;
    case "paused":
      return `${done} · Paused`;
    case "left":
      return `${done} · Choose this file again, and it goes on`;
    case "failed":
      return `${done} · ${problem ?? "The service does not answer"}`;
  }
}

/** Set the text of *element* only if it differs, so a screen reader repeats nothing. */
function say(element, text) {
  const shown = printable(text);
  if (element.textContent !== shown) element.textContent = shown;
}

/** Make the rows of *list* match *items* by id, and keep the rows that exist already. */
function reconcile(list, items, template, fill) {
  const rows = new Map([...list.children].map((row) => [row.dataset.id, row]));
  items.forEach((item, index) => {
    let row = rows.get(item.id);
    rows.delete(item.id);
    if (row === undefined) {
      row = template.content.firstElementChild.cloneNode(true);
      row.dataset.id = item.id;
    }
    if (list.children[index] !== row) list.insertBefore(row, list.children[index] ?? null);
    fill(row, item);
  });
  for (const row of rows.values()) row.remove();
}

export class View {
  #on;
  #title = document.title;

  /**
   * *on* has the callbacks drop(dataTransfer), choose(files), toggle(id), cancel(id),
   * open(entry), clear() and token(text).
   */
  constructor(on) {
    this.#on = on;
    this.#takeFiles();
    byId("access").addEventListener("submit", (event) => {
      event.preventDefault();
      on.token(byId("token").value.trim());
      byId("token").value = "";
    });
    byId("clear").addEventListener("click", () => on.clear());
  }

  #takeFiles() {
    const chooser = byId("chooser");
    chooser.addEventListener("change", () => {
      this.#on.choose([...chooser.files]);
      chooser.value = ""; // so that the same file can be chosen again
    });
    // Listen on the whole window: a file dropped beside the target would replace the page.
    const over = (event) => {
      if (!event.dataTransfer?.types.includes("Files")) return;
      event.preventDefault();
      byId("drop").classList.toggle("over", event.type === "dragover");
    };
    for (const name of ["dragover", "dragleave", "drop"]) window.addEventListener(name, over);
    window.addEventListener("drop", (event) => {
      if (event.dataTransfer?.types.includes("Files")) this.#on.drop(event.dataTransfer);
    });
  }

  showUploads(uploads) {
    byId("uploads").hidden = uploads.length === 0;
    reconcile(byId("uploads").querySelector("ul"), uploads, byId("upload-row"), (row, upload) => {
      this.#fill(row, upload);
    });
    const size = uploads.reduce((sum, upload) => sum + upload.size, 0);
    const sent = uploads.reduce((sum, upload) => sum + upload.sent, 0);
    document.title = uploads.length === 0 ? this.#title : `${percent(sent, size)} · ${this.#title}`;
  }

  #fill(row, upload) {
    const { id, name, size, sent, state } = upload;
    const [bar, main, cancel] = ["progress", ".main", ".cancel"].map((s) => row.querySelector(s));
    row.dataset.state = state;
    say(row.querySelector(".name"), name);
    say(row.querySelector(".size"), bytes(size));
    say(row.querySelector(".status"), status(upload));
    bar.value = size > 0 ? sent / size : 0;
    bar.setAttribute("aria-label", name);
    const action = ACTIONS[state];
    main.hidden = action === null;
    say(main, action ?? "");
    main.setAttribute("aria-label", `${action} ${name}`);
    cancel.setAttribute("aria-label", `Cancel ${name}`);
    main.onclick = () => this.#on.toggle(id);
    cancel.onclick = () => this.#on.cancel(id);
  }

  /** Show the finished uploads; *link* makes the target of a link from a location. */
  showFinished(entries, link) {
    byId("finished").hidden = entries.length === 0;
    reconcile(byId("finished").querySelector("ul"), entries, byId("finished-row"), (row, entry) => {
      const { name, size, at, outcome } = entry;
      const when = new Date(at).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
      const target = outcome?.location ? link(outcome.location) : null;
      const place = row.querySelector(".name");
      say(row.querySelector(".size"), bytes(size));
      row.dataset.state = outcome?.problem ? "failed" : outcome ? "done" : "waiting";
      say(row.querySelector(".status"), outcome ? outcome.problem ?? `Uploaded ${when}` : "Sent, being stored");
      if (target === null) return say(place, name);
      if (place.querySelector("a") !== null) return;
      const anchor = document.createElement("a");
      anchor.href = target;
      anchor.textContent = printable(name);
      anchor.addEventListener("click", (event) => this.#on.open(event, entry));
      place.replaceChildren(anchor);
    });
  }

  /** Ask for a token, or stop asking. */
  askForToken(asked) {
    const form = byId("access");
    if (form.hidden !== asked) return;
    form.hidden = !asked;
    if (asked) byId("token").focus();
  }

  /** Show a notice that stays until it is replaced; "" removes it. */
  notice(text) {
    byId("notice").hidden = text === "";
    say(byId("notice"), text);
  }

  /** Show an event; it stays until the next one. */
  news(text) {
    say(byId("news"), text);
  }

  limit(most) {
    say(byId("limit"), most === null ? "" : `Up to ${bytes(most)} each`);
  }
}

/** Have the browser save *blob* as *name*. */
export function save(blob, name) {
  const anchor = document.createElement("a");
  anchor.href = URL.createObjectURL(blob);
  anchor.download = name;
  anchor.click();
  // Revoke the address later, because the browser must read it first.
  setTimeout(() => URL.revokeObjectURL(anchor.href), 60000);
}
