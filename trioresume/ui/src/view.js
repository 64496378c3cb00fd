// The view: it shows the page and takes the person's actions. Names and answers come from
// elsewhere, so they are shown as text and never as markup.

import { droppedFiles } from "./drops.js";
import { List, anchored } from "./list.js";
import { bytes, duration, percent, printable } from "./units.js";
import { language, say } from "./words.js";

const byId = (id) => document.getElementById(id);
const SURE = 5000; // ms for which a button waits for the second click

/** The word for an upload's first button in each state; null means that there is no button. */
const ACTIONS = {
  waiting: "pause",
  uploading: "pause",
  retrying: "pause",
  offline: "pause",
  paused: "resume",
  failed: "tryAgain",
  left: null,
  rejected: null,
};

function status(upload) {
  const { state, sent, size, problem, rejected } = upload;
  const done = percent(sent, size);
  switch (state) {
    case "rejected": {
      const [reason, limit] = rejected;
      return say(reason, { size: limit === undefined ? "" : bytes(limit) });
    }
    case "waiting":
      return say("stateWaiting");
    case "uploading": {
      if (sent >= size) return say("stateStoring");
      const shown = say("progress", { percent: done, sent: bytes(sent), size: bytes(size) });
      return [shown, ...pace(upload.rate.at(performance.now()), size - sent)].join(" · ");
    }
    case "retrying":
      return say("stateRetrying", { percent: done, problem: problem ?? say("noAnswer") });
    case "offline":
      return say("stateOffline", { percent: done });
    case "paused":
      return say("statePaused", { percent: done });
    case "left":
      return say("stateLeft", { percent: done });
    case "failed": {
      const reason = problem ?? say(upload.unreadable ? "unreadable" : "noService");
      return say("stateFailed", { percent: done, problem: reason });
    }
  }
}

function pace(rate, left) {
  if (!(rate > 0)) return [];
  return [say("rate", { rate: bytes(rate) }), say("left", { time: duration(left / rate) })];
}

/** Set the text of *element* only if it differs, so a screen reader repeats nothing. */
function show(element, text) {
  const shown = printable(text);
  if (element.textContent !== shown) element.textContent = shown;
}

function label(element, text) {
  const shown = printable(text);
  if (element.getAttribute("aria-label") !== shown) element.setAttribute("aria-label", shown);
}

/** Show a button with a word, which for a screen reader also says whose it is. */
function name(button, word, of) {
  button.hidden = word === null;
  if (word === null || button.dataset.asked !== undefined) return;
  show(button, say(word));
  label(button, say("actionOf", { action: say(word), name: of }));
}

/** Have *button* do something that cannot be undone with its second click only. */
function sure(button, act) {
  if (button.dataset.asked !== undefined) {
    relax(button);
    act();
    return;
  }
  button.dataset.asked = "";
  button.dataset.text = button.textContent;
  button.textContent = say("really", { action: button.textContent });
  button.dataset.label = button.getAttribute("aria-label") ?? "";
  button.removeAttribute("aria-label");
  button.addEventListener("blur", () => relax(button), { once: true });
  setTimeout(() => relax(button), SURE);
}

function relax(button) {
  if (button.dataset.asked === undefined) return;
  button.textContent = button.dataset.text;
  if (button.dataset.label) button.setAttribute("aria-label", button.dataset.label);
  delete button.dataset.asked;
}

export class View {
  #on;
  #title;
  #uploads;
  #finished;
  #entries = [];
  #link = () => null;

  /**
   * *title* is the page's own, "" for the usual one. *on* has the callbacks choose(files),
   * toggle(id), cancel(id), pauseAll(), resumeAll(), retryAll(), cancelAll(), dismissAll(),
   * open(event, entry), copy(entry), delete(entry), remove(entry), clear(), export(entries),
   * language(tag) and token(text).
   */
  constructor(title, on) {
    this.#on = on;
    this.#title = title;
    this.#takeFiles();
    byId("access").addEventListener("submit", (event) => {
      event.preventDefault();
      on.token(byId("token").value.trim());
      byId("token").value = "";
    });
    for (const [id, act] of [["pause-all", "pauseAll"], ["resume-all", "resumeAll"], ["retry-all", "retryAll"], ["dismiss-all", "dismissAll"]]) {
      byId(id).addEventListener("click", () => on[act]());
    }
    byId("cancel-all").addEventListener("click", (event) => sure(event.currentTarget, () => on.cancelAll()));
    byId("clear").addEventListener("click", () => on.clear());
    byId("export").addEventListener("click", () => on.export(this.#matching()));
    byId("search").addEventListener("input", () => {
      this.#showFinished();
      const count = this.#matching().length;
      show(byId("found"), byId("search").value === "" ? "" : say("found", { count }));
    });
    byId("language").addEventListener("change", (event) => on.language(event.currentTarget.value));
    const rows = (section) => byId(section).querySelector("ul");
    this.#uploads = new List(rows("uploads"), byId("upload-row"), (row, upload) => this.#fillUpload(row, upload));
    this.#finished = new List(rows("finished"), byId("finished-row"), (row, entry) => this.#fillFinished(row, entry));
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
    window.addEventListener("drop", async (event) => {
      if (event.dataTransfer?.types.includes("Files")) this.#on.choose(await droppedFiles(event.dataTransfer));
    });
  }

  /** Show the page in the present language; *known* has the tags and names of all. */
  translate(known) {
    document.documentElement.lang = language;
    document.documentElement.dir = say("direction") === "rtl" ? "rtl" : "ltr";
    for (const element of document.querySelectorAll("[data-say]")) show(element, say(element.dataset.say));
    for (const element of document.querySelectorAll("[data-say-label]")) label(element, say(element.dataset.sayLabel));
    for (const element of document.querySelectorAll("[data-say-placeholder]")) element.placeholder = say(element.dataset.sayPlaceholder);
    label(byId("total-bar"), say("totalBar"));
    show(byId("title"), this.#title || say("title"));
    document.title = this.#title || say("title");
    byId("language").replaceChildren(
      ...known.map(([tag, text]) => {
        const option = new Option(printable(text), tag, false, tag === language);
        option.lang = tag;
        return option;
      }),
    );
  }

  /** Show both lists; *link* makes the target of a link from a location. */
  showLists(uploads, total, finished, link) {
    anchored(() => {
      this.#showUploads(uploads, total);
      this.#entries = finished;
      this.#link = link;
      byId("finished").hidden = finished.length === 0;
      this.#showFinished();
    });
  }

  #showUploads(uploads, total) {
    byId("uploads").hidden = uploads.length === 0;
    this.#uploads.show(uploads);
    this.#showTotal(uploads, total);
    const title = this.#title || say("title");
    const running = uploads.some(({ state }) => state !== "rejected");
    document.title = running ? `${percent(total.sent, total.size)} · ${title}` : title;
  }

  #showTotal(uploads, { count, done, size, sent, rate }) {
    if (uploads.length === 0) return;
    const states = new Map();
    for (const { state } of uploads) states.set(state, (states.get(state) ?? 0) + 1);
    const of = (...names) => names.reduce((sum, name) => sum + (states.get(name) ?? 0), 0);
    const [troubled, rejected] = [of("failed", "rejected", "left"), of("rejected")];
    byId("total-bar").hidden = byId("total-status").hidden = count === 0;
    byId("total-bar").value = size > 0 ? sent / size : 0;
    const shown = say("total", { percent: percent(sent, size), done, count, sent: bytes(sent), size: bytes(size) });
    show(byId("total-status"), [shown, ...pace(rate, size - sent)].join(" · "));
    show(byId("attention"), troubled === 0 ? "" : say("attention", { count: troubled }));
    byId("pause-all").hidden = of("waiting", "uploading", "retrying", "offline") === 0;
    byId("resume-all").hidden = of("paused") === 0;
    byId("retry-all").hidden = of("failed") === 0;
    byId("dismiss-all").hidden = rejected === 0;
    byId("cancel-all").hidden = rejected === uploads.length;
  }

  #fillUpload(row, upload) {
    const { id, name: of, size, sent, state } = upload;
    const [bar, main, cancel] = parts(row, "progress", ".main", ".cancel");
    if (row.dataset.state !== state) row.dataset.state = state;
    show(row.querySelector(".name"), of);
    show(row.querySelector(".size"), bytes(size));
    show(row.querySelector(".status"), status(upload));
    bar.hidden = state === "rejected";
    const value = size > 0 ? sent / size : 0;
    if (bar.value !== value) bar.value = value;
    label(bar, of);
    name(main, ACTIONS[state], of);
    name(cancel, state === "rejected" ? "dismiss" : "cancel", of);
    main.onclick = () => this.#on.toggle(id);
    cancel.onclick = () => this.#on.cancel(id);
  }

  #matching() {
    const wanted = byId("search").value.trim().toLocaleLowerCase();
    if (wanted === "") return this.#entries;
    return this.#entries.filter((entry) => entry.name.toLocaleLowerCase().includes(wanted));
  }

  #showFinished() {
    this.#finished.show(this.#matching());
  }

  #fillFinished(row, entry) {
    const { name: of, size, at, outcome } = entry;
    const target = outcome?.location ? this.#link(outcome.location) : null;
    const [place, main, cancel] = parts(row, ".name", ".main", ".cancel");
    show(row.querySelector(".size"), bytes(size));
    const state = outcome?.problem ? "failed" : outcome ? "done" : "waiting";
    if (row.dataset.state !== state) row.dataset.state = state;
    const when = () => new Date(at).toLocaleString(language, { dateStyle: "medium", timeStyle: "short" });
    const stored = () => (outcome ? outcome.problem ?? say("storedAt", { time: when() }) : say("stateStoring"));
    show(row.querySelector(".status"), stored());
    name(main, target === null ? null : "copyLink", of);
    name(cancel, target === null ? "remove" : "delete", of);
    main.onclick = () => this.#on.copy(entry);
    if (target === null) cancel.onclick = () => this.#on.remove(entry);
    else cancel.onclick = () => sure(cancel, () => this.#on.delete(entry));
    if (target === null) return show(place, of);
    if (place.firstElementChild?.href === target) return;
    const anchor = document.createElement("a");
    anchor.href = target;
    anchor.textContent = printable(of);
    anchor.addEventListener("click", (event) => this.#on.open(event, entry));
    place.replaceChildren(anchor);
  }

  /** Ask for a token, or stop asking. *isWrong* says that the one that was given is. */
  askForToken(asked, isWrong = false) {
    const form = byId("access");
    show(byId("access-error"), isWrong ? say("tokenWrong") : "");
    if (isWrong) byId("token").setAttribute("aria-invalid", "true");
    else byId("token").removeAttribute("aria-invalid");
    if (isWrong) byId("token").focus();
    if (form.hidden !== asked) return;
    form.hidden = !asked;
    if (asked) byId("token").focus();
  }

  /** Show a notice that stays until it is replaced; "" removes it. */
  notice(text) {
    byId("notice").hidden = text === "";
    show(byId("notice"), text);
  }

  /** Show an event; it stays until the next one. */
  news(text) {
    show(byId("news"), text);
  }

  limit(most) {
    show(byId("limit"), most === null ? "" : say("limit", { size: bytes(most) }));
  }
}

function parts(row, ...selectors) {
  return selectors.map((selector) => row.querySelector(selector));
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
