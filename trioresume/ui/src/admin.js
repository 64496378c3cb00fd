// The admin page: live figures, and tables of which one page at a time is fetched.
//
// All names come from people who upload, so they are shown as text and never as markup.

import { bytes, duration, percent, printable } from "./units.js";

const LOOK = 2000; // ms between two looks at the figures
const SURE = 5000; // ms for which a button waits for the second click

const { token, mayChange } = document.body.dataset;
const byId = (id) => document.getElementById(id);

// Words.

const time = (seconds) =>
  new Date(seconds * 1000).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "medium" });
const maybe = (show) => (value) => (value === null ? "–" : show(value));
const owner = (name) => name ?? "(nobody)";
const count = (number) => number.toLocaleString();

/** The columns of a table: [heading, class, (row) => text]. */
const TABLES = {
  uploads: {
    title: "Uploads",
    search: "Search names, owners and paths",
    extra: ["ended", "Also finished and cancelled ones"],
    columns: [
      ["Name", "long", (row) => row.name ?? "–"],
      ["State", "", (row) => (row.status === null ? row.state : `${row.state}, ${row.status}`)],
      ["Received", "number", (row) => received(row)],
      ["Owner", "", (row) => owner(row.owner)],
      ["Request", "", (row) => `${row.method} ${row.path}`],
      ["Begun", "", (row) => time(row.created)],
      ["Expires", "", (row) => time(row.expires)],
    ],
    actions: (row) => {
      const acts = [];
      const named = { number: row.number, seal: row.seal };
      if (row.state === "waiting" || row.state === "done") acts.push(["Retry", { act: "retry", ...named }, false]);
      if (row.state !== "gone") acts.push(["Cancel", { act: "cancel", ...named }, true]);
      return acts;
    },
  },
  files: {
    title: "Files",
    search: "Search names and owners",
    columns: [
      ["Name", "long", (row) => row.name],
      ["Original name", "long", (row) => row.filename ?? "–"],
      ["Size", "number", (row) => bytes(row.length)],
      ["Owner", "", (row) => owner(row.owner)],
      ["Stored", "", (row) => time(row.modified)],
      ["Expires", "", (row) => maybe(time)(row.expires)],
    ],
    actions: (row) => [["Delete", { act: "delete", name: row.name, owner: row.owner }, true]],
  },
  quotas: {
    title: "Quotas",
    columns: [
      ["Owner", "long", (row) => owner(row.owner)],
      ["Space", "number", (row) => share(row.bytes, latest?.owner_limit, bytes)],
      ["Open uploads", "number", (row) => share(row.uploads, latest?.uploads_limit, count)],
    ],
    actions: () => [],
  },
  hooks: {
    title: "Events of hooks",
    extra: ["dead", "Those that were given up"],
    columns: [
      ["Event", "", (row) => row.kind],
      ["Upload", "", (row) => row.upload],
      ["Recorded", "", (row) => time(row.recorded)],
      ["Failed tries", "number", (row) => count(row.attempts)],
      ["Next try", "", (row) => maybe(time)(row.next_try)],
      ["Last error", "long", (row) => row.error || "–"],
    ],
    actions: (row) => [
      ["Send again", { act: "send", events: [row.number] }, false],
      ["Drop", { act: "drop", events: [row.number] }, true],
    ],
    all: ["Send all on this page again", (rows) => ({ act: "send", events: rows.map(({ number }) => number) })],
  },
  errors: {
    title: "Recent warnings and errors",
    columns: [
      ["When", "", (row) => time(row.at)],
      ["Level", "", (row) => row.level],
      ["Part", "", (row) => row.logger],
      ["Message", "long", (row) => row.text],
    ],
    actions: () => [],
  },
};
const SOURCES = { hooks: "events" };

function received({ received, length }) {
  if (length === null) return bytes(received);
  return `${bytes(received)} of ${bytes(length)} (${percent(received, length)})`;
}

function share(value, limit, show) {
  return limit == null ? show(value) : `${show(value)} of ${show(limit)} (${percent(value, limit)})`;
}

// The service.

async function ask(path) {
  const response = await fetch(`api/${path}`);
  if (!response.ok) throw new Error(await reason(response));
  return response.json();
}

async function reason(response) {
  try {
    const { title, detail } = await response.json();
    return [title, detail].filter(Boolean).join(": ");
  } catch {
    return `the service answered ${response.status}`;
  }
}

/** JSON in characters that a header field may have. */
function ascii(value) {
  return JSON.stringify(value).replace(/[^\x20-\x7e]/g, (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`);
}

async function change(wish) {
  try {
    const response = await fetch("api/change", { method: "POST", headers: { "Csrf-Token": token, Change: ascii(wish) } });
    if (!response.ok) throw new Error(await reason(response));
    const { done, error } = await response.json();
    show(byId("news"), done ?? `It was not done: ${error}`);
  } catch (error) {
    show(byId("news"), `It was not done: ${error.message}`);
  }
  await load();
}

// What is shown.

function show(element, text) {
  const shown = printable(text);
  if (element.textContent !== shown) element.textContent = shown;
}

function notice(text) {
  byId("notice").hidden = text === "";
  show(byId("notice"), text);
}

let latest = null; // the figures
let before = null; // those of the look before
let current = "overview"; // what is shown
let places = [null]; // where the pages up to the present one begin
let loading = 0; // numbers the loads: only the last one is shown

function perSecond(key) {
  if (before === null || latest.now <= before.now || latest[key] < before[key]) return 0;
  return (latest[key] - before[key]) / (latest.now - before.now);
}

function figures() {
  const now = latest;
  const low = now.disk_free !== null && now.disk_free < now.disk_kept;
  const waiting = Object.entries(now.queues).filter(([, length]) => length > 0);
  return [
    ["Receiving", `${bytes(perSecond("received"))}/s`, `${bytes(now.received)} since the start`],
    ["Sending", `${bytes(perSecond("sent"))}/s`, `${bytes(now.sent)} since the start`],
    ["Connections", count(now.connections), `requests running: ${count(now.requests)}`],
    ["Open uploads", maybe(count)(now.open_uploads), `${count(now.created)} begun, ${count(now.finished)} finished`],
    ["Resumed", count(now.resumed), `requests that were cut: ${count(now.cuts)}`],
    ["Stored", maybe((value) => share(value, now.stored_limit, bytes))(now.stored_bytes), "all uploads and files"],
    ["Disk", maybe(bytes)(now.disk_free), now.disk_size === null ? "" : `free of ${bytes(now.disk_size)}, ${bytes(now.disk_kept)} stay free`, low],
    ["Memory for content", bytes(now.memory_used), `of ${bytes(now.memory)}`],
    ["Events of hooks", now.hooks ? maybe(count)(now.events) : "–", now.hooks ? "wait to be sent" : "there are no hooks"],
    ["Refused requests", count(now.problems), "answered with a problem"],
    ["Warnings and errors", count(now.errors), "in the log since the start", now.errors > 0],
    ["Work that waits", waiting.length === 0 ? "none" : waiting.map(([name, length]) => `${name.replaceAll("_", " ")}: ${length}`).join(", "), ""],
  ];
}

function drawFigures() {
  const list = byId("figures");
  for (const [index, [term, value, more, isTrouble]] of figures().entries()) {
    let box = list.children[index];
    if (box === undefined) {
      box = list.appendChild(document.createElement("div"));
      box.append(document.createElement("dt"), document.createElement("dd"));
      box.lastElementChild.append(document.createElement("span"), document.createElement("small"));
    }
    show(box.firstElementChild, term);
    show(box.lastElementChild.firstElementChild, value);
    show(box.lastElementChild.lastElementChild, more);
    box.lastElementChild.classList.toggle("trouble", isTrouble === true);
  }
  const mode = mayChange ? "changes are allowed" : "read-only";
  show(byId("about"), `trioresume ${latest.version} · up ${duration(latest.up)} · ${mode}${latest.stopping ? " · shutting down" : ""}`);
}

function drawTable({ rows, next }) {
  const table = TABLES[current];
  const hasActions = mayChange && rows.some((row) => table.actions(row).length > 0);
  const head = table.columns.map(([heading, kind]) => cell("th", kind, heading));
  for (const each of head) each.scope = "col";
  if (hasActions) head.push(cell("th", "", "Change"));
  document.querySelector("#wide thead tr").replaceChildren(...head);
  const body = rows.map((row) => {
    const line = document.createElement("tr");
    line.append(...table.columns.map(([, kind, text]) => cell("td", kind, text(row))));
    if (hasActions) {
      const place = line.appendChild(document.createElement("td"));
      for (const [text, wish, isFinal] of table.actions(row)) {
        place.append(button(text, `${text} ${row.name ?? row.kind ?? row.number}`, () => change(wish), isFinal));
      }
    }
    return line;
  });
  document.querySelector("#wide tbody").replaceChildren(...body);
  byId("wide").hidden = rows.length === 0;
  byId("empty").hidden = rows.length > 0;
  show(byId("empty"), next === null ? "Nothing." : "Nothing found so far: More searches on.");
  byId("back").hidden = places.length === 1;
  byId("next").hidden = next === null;
  byId("next").onclick = () => turn([...places, next]);
  const all = mayChange && rows.length > 0 ? table.all : undefined;
  byId("all").hidden = all === undefined;
  if (all !== undefined) {
    show(byId("all"), all[0]);
    byId("all").onclick = () => change(all[1](rows));
  }
}

function cell(kind, name, text) {
  const element = document.createElement(kind);
  element.className = name;
  element.textContent = printable(text);
  return element;
}

/** A button; what cannot be undone needs a second click. */
function button(text, label, act, isFinal) {
  const element = document.createElement("button");
  element.type = "button";
  element.textContent = text;
  element.setAttribute("aria-label", printable(label));
  let asked = false;
  const relax = () => {
    asked = false;
    element.textContent = text;
    element.setAttribute("aria-label", printable(label));
  };
  element.addEventListener("blur", relax);
  element.addEventListener("click", () => {
    if (asked || !isFinal) {
      element.disabled = true;
      act();
      return;
    }
    asked = true;
    element.textContent = `Really: ${text}?`;
    element.setAttribute("aria-label", `Really: ${printable(label)}?`);
    setTimeout(relax, SURE);
  });
  return element;
}

async function turn(pages) {
  places = pages;
  await load();
  byId("table-title").scrollIntoView();
}

/** Fetch and show the present page of the present table. */
async function load() {
  if (current === "overview") return;
  const number = ++loading;
  const asked = new URLSearchParams();
  const table = TABLES[current];
  if (places.at(-1) !== null) asked.set("place", places.at(-1));
  if (table.search !== undefined && byId("search").value.trim()) asked.set("search", byId("search").value.trim());
  if (table.extra !== undefined && byId("switch").checked) asked.set(table.extra[0], "1");
  try {
    const page = await ask(`${SOURCES[current] ?? current}?${asked}`);
    if (number === loading) drawTable(page);
  } catch (error) {
    if (number === loading) show(byId("news"), `It could not be read: ${error.message}`);
  }
}

/** Show what the address names. */
function open() {
  const wanted = location.hash.slice(1);
  current = wanted in TABLES ? wanted : "overview";
  places = [null];
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${current}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  byId("overview").hidden = current !== "overview";
  byId("table").hidden = current === "overview";
  show(byId("news"), "");
  if (current === "overview") return;
  const { title, search, extra } = TABLES[current];
  show(byId("table-title"), title);
  byId("search").hidden = search === undefined;
  byId("search").value = "";
  byId("search").placeholder = search ?? "";
  byId("search").setAttribute("aria-label", search ?? "Search");
  byId("switch-label").hidden = extra === undefined;
  byId("switch").checked = false;
  show(byId("switch-label").lastElementChild, extra?.[1] ?? "");
  document.querySelector("#wide tbody").replaceChildren();
  byId("wide").hidden = byId("empty").hidden = byId("all").hidden = byId("back").hidden = byId("next").hidden = true;
  load();
}

async function look() {
  try {
    const found = await ask("now");
    [before, latest] = [latest, found];
    drawFigures();
    notice("");
  } catch {
    notice("The service does not answer.");
  }
  // Nobody sees it in a hidden tab.
  setTimeout(() => (document.hidden ? document.addEventListener("visibilitychange", look, { once: true }) : look()), LOOK);
}

window.addEventListener("hashchange", open);
byId("tools").addEventListener("submit", (event) => {
  event.preventDefault();
  turn([null]);
});
byId("switch").addEventListener("change", () => turn([null]));
byId("back").addEventListener("click", () => turn(places.slice(0, -1)));
await look();
open();
