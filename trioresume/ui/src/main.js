// Connects the service, the queue and the page, which know nothing of each other.

import { Database } from "./database.js";
import { Finished } from "./finished.js";
import { Queue } from "./queue.js";
import { Service, Unauthorized } from "./service.js";
import { browser, tab } from "./storage.js";
import { csv } from "./units.js";
import { View, save } from "./view.js";
import { choose, isBuiltIn, say, speak } from "./words.js";

const REDRAW = 100; // ms
const RETRY = 3000; // ms
const SETTLED_AT_ONCE = 3;
const LANGUAGE = "trioresume.language";
// A browser has six connections to a server, and the page needs one. HTTP/2 needs only one in
// all, and its limits are the service's.
const AT_ONCE = 5;
const AT_ONCE_IN_HTTP2 = 16;

const { endpoint, title, languages } = document.body.dataset;
const service = new Service(new URL(endpoint, document.baseURI).href);
const database = new Database();
const settling = new Set(); // ids of finished uploads whose outcome is asked for
const unsettled = new Map(); // id → message of those that wait for that
let known = []; // [tag, name] of each language
let mostBytes = null; // of an upload
let drawing = false;
let unreachable = false;
let isWrong = false; // whether the last token that was entered was refused
let ended = 0; // uploads since the last news about them

const own = JSON.parse(languages || "{}"); // the settings' languages: tag → name

const finished = new Finished(database, browser, channel(), redraw);

const view = new View(title, {
  choose: (files) => queue.add(files),
  toggle: (id) => queue.toggle(id),
  cancel: (id) => queue.cancel(id),
  pauseAll: () => queue.pauseAll(),
  resumeAll: () => queue.resumeAll(),
  retryAll: () => queue.retryAll(),
  cancelAll: () => queue.cancelAll(),
  dismissAll: () => queue.dismissAll(),
  clear() {
    finished.clear();
    redraw();
  },
  remove({ id }) {
    finished.remove(id);
    redraw();
  },
  open,
  copy,
  delete: remove,
  export(entries) {
    const head = say("csvHead").split(",");
    const rows = entries.map(({ name, size, at, outcome }) => [
      name,
      size,
      new Date(at).toISOString(),
      (outcome?.location && service.link(outcome.location)) ?? "",
    ]);
    // The mark at the beginning tells spreadsheets that this is UTF-8.
    save(new Blob(["\ufeff", csv([head, ...rows])], { type: "text/csv" }), "trioresume.csv");
  },
  async language(tag) {
    browser.set(LANGUAGE, tag);
    await translate(tag);
  },
  async token(text) {
    isWrong = false;
    service.token = text;
    if (!(await greet())) return;
    queue.retryRefused();
    settleAll();
  },
});

const queue = new Queue(service, database, { tab, browser }, connections(), {
  changed: redraw,
  finished(entry) {
    finished.put(entry);
    ended += 1;
    view.news(ended === 1 ? say("isUploaded", { name: entry.name }) : say("areUploaded", { count: ended }));
    settle(entry);
  },
  refused(status, name, token) {
    if (status === 401 && token !== service.token) queue.retryRefused(); // there is another one now
    else if (status === 401) askForToken(token);
    view.news(say("hasFailed", { name }));
  },
  rejected: (count) => view.news(say("wasRejected", { count })),
});

const pause = () => new Promise((resolve) => setTimeout(resolve, RETRY));

function channel() {
  return typeof BroadcastChannel === "function" ? new BroadcastChannel("trioresume") : null;
}

/** Return how many small files are sent at a time. */
function connections() {
  const isOwn = new URL(service.endpoint).origin === location.origin;
  const protocol = performance.getEntriesByType("navigation")[0]?.nextHopProtocol ?? "";
  return isOwn && /^h[23]/.test(protocol) ? AT_ONCE_IN_HTTP2 : AT_ONCE;
}

/** Redraw the page soon, not at once, because many things change together. */
function redraw() {
  if (drawing) return;
  drawing = true;
  setTimeout(() => {
    drawing = false;
    const list = queue.list();
    if (list.length === 0) ended = 0;
    view.showLists(list, queue.total(), finished.list(), (location) => service.link(location));
    if (!navigator.onLine) view.notice(say("offline"));
    else view.notice(unreachable ? say("silent") : "");
    // A rate also falls while nothing happens.
    if (list.some(({ tus }) => tus !== null)) setTimeout(redraw, 1000);
  }, REDRAW);
}

/** Show the page in the language *tag*, which may have to be fetched. */
async function translate(tag) {
  try {
    if (isBuiltIn(tag) && !(tag in own)) speak(tag);
    else speak(tag, await service.words(tag));
  } catch {
    speak("en");
  }
  known = Object.entries({ en: "English", de: "Deutsch", ...own });
  view.translate(known);
  view.limit(mostBytes);
  redraw();
}

/** Ask for a token, because the service refused *sent*. */
function askForToken(sent) {
  if (sent !== service.token) return; // there is another one now
  isWrong ||= sent !== "";
  service.token = "";
  view.askForToken(true, isWrong);
}

/** Ask the service for the limits, and return whether it accepts us. */
async function greet() {
  try {
    const limits = await service.limits();
    queue.limits = limits;
    mostBytes = limits.most;
    view.limit(limits.most);
    view.askForToken(false);
    unreachable = false;
    return true;
  } catch (error) {
    unreachable = !(error instanceof Unauthorized);
    if (!unreachable) askForToken(error.sent);
    return false;
  } finally {
    redraw();
  }
}

/** Ask for the outcome of every finished upload that has none yet, a few at a time. */
function settleAll() {
  for (const entry of finished.list()) if (entry.outcome === null) settle(entry);
}

function settle({ id, message }) {
  if (!settling.has(id)) unsettled.set(id, message);
  settleSome();
}

function settleSome() {
  // One connection is enough while others are needed for uploads.
  const most = queue.isSending ? 1 : SETTLED_AT_ONCE;
  for (const [id, message] of unsettled) {
    if (settling.size >= most) return;
    unsettled.delete(id);
    settling.add(id);
    settleOne(id, message).finally(() => {
      settling.delete(id);
      settleSome();
    });
  }
}

async function settleOne(id, message) {
  while (finished.has(id)) {
    try {
      const outcome = await service.outcome(message);
      const entry = finished.get(id);
      if (entry !== undefined) finished.put({ ...entry, outcome });
      redraw();
      return;
    } catch (error) {
      if (error instanceof Unauthorized) {
        askForToken(error.sent);
        return; // settled when there is a token
      }
      await pause();
    }
  }
}

/** Follow a link, or fetch the file instead, because a link cannot send a token. */
async function open(event, { name, outcome }) {
  if (!service.token) return;
  event.preventDefault();
  try {
    save(await service.download(service.link(outcome.location)), name);
  } catch (error) {
    if (error instanceof Unauthorized) askForToken(error.sent);
    view.news(say("notFetched", { name }));
  }
}

async function copy({ name, outcome }) {
  try {
    await navigator.clipboard.writeText(service.link(outcome.location));
    view.news(say("copied", { name }));
  } catch {
    view.news(say("notCopied"));
  }
}

/** Delete the file of a finished upload from the service, and then the entry. */
async function remove(entry) {
  const { id, name, outcome } = entry;
  try {
    const problem = await service.delete(service.link(outcome.location));
    if (problem === null) finished.remove(id);
    view.news(problem === null ? say("deleted", { name }) : say("notDeleted", { name, problem }));
  } catch (error) {
    if (error instanceof Unauthorized) askForToken(error.sent);
    view.news(say("notDeleted", { name, problem: say("noAnswer") }));
  }
  redraw();
}

const wanted = [browser.get(LANGUAGE), ...navigator.languages].filter((tag) => tag !== null);
await translate(choose(wanted, [...new Set([...Object.keys(own), "en", "de"])]));
await Promise.all([finished.load(), queue.load()]);
settleAll();
redraw();
while (!(await greet()) && unreachable) await pause();
