// Connects the service, the uploads and the page, which know nothing of each other.

import * as finished from "./finished.js";
import { Service, Unauthorized } from "./service.js";
import { Uploads } from "./uploads.js";
import { View, save } from "./view.js";

const REDRAW = 100; // ms
const RETRY = 3000; // ms

const service = new Service(new URL(document.body.dataset.endpoint, document.baseURI).href);
const settling = new Set();
let drawing = false;
let unreachable = false;

const view = new View({
  drop: (dataTransfer) => uploads.drop(dataTransfer),
  choose: (files) => uploads.add(files),
  toggle: (id) => uploads.toggle(id),
  cancel: (id) => uploads.cancel(id),
  clear() {
    finished.clear();
    redraw();
  },
  open,
  async token(text) {
    service.token = text;
    if (!(await greet())) return;
    uploads.retryRefused();
    settle();
  },
});

const uploads = new Uploads(service, {
  changed: redraw,
  finished(entry) {
    finished.put(entry);
    view.news(`${entry.name} is uploaded.`);
    settle();
  },
  refused(status, name) {
    if (status === 401) view.askForToken(true);
    view.news(`${name} failed.`);
  },
  mentioned: (text) => view.news(text),
});

const pause = () => new Promise((resolve) => setTimeout(resolve, RETRY));

/** Redraw the page soon, not at once, because many things change together. */
function redraw() {
  if (drawing) return;
  drawing = true;
  setTimeout(() => {
    drawing = false;
    const list = uploads.list();
    view.showUploads(list);
    view.showFinished(finished.list(), (location) => service.link(location));
    if (!navigator.onLine) view.notice("You are offline. Uploads go on by themselves.");
    else view.notice(unreachable ? "The service does not answer." : "");
    // A rate also falls while nothing happens.
    if (list.some(({ state }) => state === "uploading")) setTimeout(redraw, 1000);
  }, REDRAW);
}

/** Ask the service for the limits, and return whether it accepts us. */
async function greet() {
  try {
    const limits = await service.limits();
    uploads.limits = limits;
    view.limit(limits.most);
    view.askForToken(false);
    unreachable = false;
    return true;
  } catch (error) {
    unreachable = !(error instanceof Unauthorized);
    if (!unreachable) view.askForToken(true);
    return false;
  } finally {
    redraw();
  }
}

/** Ask for the outcome of every finished upload that has none yet. */
function settle() {
  for (const entry of finished.list()) {
    if (entry.outcome !== null || settling.has(entry.id)) continue;
    settling.add(entry.id);
    settleOne(entry).finally(() => settling.delete(entry.id));
  }
  redraw();
}

async function settleOne(entry) {
  while (finished.has(entry.id)) {
    try {
      const outcome = await service.outcome(entry.message);
      if (finished.has(entry.id)) finished.put({ ...entry, outcome });
      redraw();
      return;
    } catch (error) {
      if (error instanceof Unauthorized) {
        view.askForToken(true);
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
    if (error instanceof Unauthorized) view.askForToken(true);
    view.news(`${name} could not be fetched.`);
  }
}

settle();
while (!(await greet()) && unreachable) await pause();
