// The unfinished uploads. Uppy keeps their state, tus-js-client speaks to the service, and
// Golden Retriever restores both after the page was left.
//
// Every upload is started separately, with retryUpload, because Uppy's upload() first waits
// for all uploads that failed before.

import Uppy from "@uppy/core";
import { getDroppedFiles } from "@uppy/core/utils";
import GoldenRetriever from "@uppy/golden-retriever";
import Tus from "@uppy/tus";
import { problem } from "./service.js";
import { tab } from "./storage.js";
import { Rate } from "./units.js";

const AT_ONCE = 3; // a browser has six connections to a server, and the page needs one
const KEPT = 64 * 1024 * 1024; // bytes of a file that are copied so that they survive a reload
const KEPT_IN_ALL = 256 * 1024 * 1024;
const KEPT_FOR = 7 * 24 * 3600 * 1000; // ms: no upload lives longer, unless it is configured
const OVER = "trioresume.over"; // where a tab keeps the keys of ended uploads
const MOST_OVER = 200; // keys; each is needed only for half a second
// ms. Progress restarts the list. After a quarter of an hour without any, the upload gives up.
const PAUSES = [0, 500, 1000, 2000, 5000, 10000, ...Array(30).fill(30000)];

function unique() {
  return Math.random().toString(36).slice(2);
}

/** The list belongs to one tab: a second tab with the same list would take its uploads. */
function nameOfTab() {
  const name = tab.get("trioresume.tab") ?? `trioresume-${unique()}`;
  tab.set("trioresume.tab", name);
  return name;
}

// Golden Retriever saves the uploads every half second. If an upload ends and the page is
// left within that half second, the upload would come back. The keys of ended uploads, kept
// here, prevent that.

function isOver({ meta }) {
  return overs().includes(meta.key);
}

function noteOver({ meta }) {
  tab.set(OVER, [...new Set([meta.key, ...overs()])].slice(0, MOST_OVER).join(" "));
}

function overs() {
  return (tab.get(OVER) ?? "").split(" ");
}

export class Uploads {
  #uppy;
  #service;
  #on;
  #limits = { most: null, mostAtOnce: null };
  #rates = new Map();
  #owners = new WeakMap(); // request → id of the upload

  /**
   * *on* has the callbacks changed(), finished(upload), refused(status, name) and
   * mentioned(text).
   */
  constructor(service, on) {
    this.#service = service;
    this.#on = on;
    this.#uppy = new Uppy({ id: nameOfTab(), logger: { debug() {}, warn() {}, error() {} } })
      .use(GoldenRetriever, {
        expires: KEPT_FOR,
        indexedDB: { maxFileSize: KEPT, maxTotalSize: KEPT_IN_ALL },
      })
      .use(Tus, {
        endpoint: service.endpoint,
        limit: AT_ONCE,
        retryDelays: PAUSES,
        removeFingerprintOnSuccess: true, // the same file again is a new upload
        allowedMetaFields: ["name", "type"],
        onBeforeRequest: (request, file) => this.#prepare(request, file),
        onAfterResponse: (request, response) => this.#note(request, response),
        onShouldRetry: (error, attempt, options, decide) => this.#retry(error, decide(error)),
      });
    // Golden Retriever has its separate store for this tab, named after the first id. But
    // every tab must give a file the same id, which begins with this one:
    this.#uppy.setOptions({ id: "file" });
    this.#uppy.on("state-update", () => on.changed());
    this.#uppy.on("restored", () => this.#restored());
    this.#uppy.on("upload-progress", (file, progress) => this.#progress(file, progress));
    this.#uppy.on("upload-success", (file) => this.#succeeded(file));
    this.#uppy.on("upload-error", (file, error, response) => this.#failed(file, response));
    window.addEventListener("online", () => this.#online());
    window.addEventListener("offline", () => on.changed());
  }

  set limits(limits) {
    this.#limits = limits;
    this.#uppy.getPlugin("Tus").setOptions({ chunkSize: limits.mostAtOnce ?? Infinity });
  }

  /** Return { id, name, size, state, sent, rate, problem } of each, in order of arrival. */
  list() {
    const now = performance.now();
    return this.#uppy.getFiles().map((file) => ({
      id: file.id,
      name: file.name,
      size: file.size,
      state: this.#state(file),
      sent: file.progress.bytesUploaded || 0,
      rate: this.#rate(file.id).at(now),
      problem: file.problem ?? null,
    }));
  }

  #state(file) {
    if (file.isGhost) return "left"; // its content was in the page that is gone
    if (file.error) return "failed";
    if (file.isPaused) return "paused";
    if (!navigator.onLine) return "offline";
    if (file.retrying) return "retrying";
    return this.#rate(file.id).started ? "uploading" : "waiting";
  }

  #rate(id) {
    if (!this.#rates.has(id)) this.#rates.set(id, new Rate());
    return this.#rates.get(id);
  }

  // Actions of the person.

  async drop(dataTransfer) {
    this.add(await getDroppedFiles(dataTransfer));
  }

  add(files) {
    for (const file of files) {
      if (this.#limits.most !== null && file.size > this.#limits.most) {
        this.#on.mentioned(`${file.name} is larger than this service takes.`);
        continue;
      }
      try {
        // The name has no folder, so a file has the same id however the person adds it.
        const meta = { key: unique() };
        this.#start(this.#uppy.addFile({ name: file.name, type: file.type, data: file, meta }));
      } catch {
        this.#on.mentioned(`${file.name} is in the list already.`);
      }
    }
  }

  /** Pause the upload, continue it, or try again. */
  toggle(id) {
    const file = this.#uppy.getFile(id);
    this.#rate(id).reset();
    if (file.error || file.isHeld) this.#start(id);
    else this.#uppy.pauseResume(id);
  }

  /** Give the upload up, and have the service forget its bytes. */
  cancel(id) {
    const { tus, isGhost, isHeld, error, retrying } = this.#uppy.getFile(id);
    this.#forget(id);
    // Uppy itself tells the service only about an upload that runs or was paused.
    const isIdle = isGhost || isHeld || error || retrying;
    if (isIdle && tus?.uploadUrl) this.#service.terminate(tus.uploadUrl).catch(() => {});
  }

  #forget(id) {
    noteOver(this.#uppy.getFile(id));
    this.#rates.delete(id);
    this.#uppy.removeFile(id);
  }

  /** Start the uploads again that were refused because there was no token. */
  retryRefused() {
    for (const file of this.#uppy.getFiles()) if (file.error && file.status === 401) this.#start(file.id);
  }

  #start(id) {
    this.#rate(id).reset();
    this.#uppy.setFileState(id, { isHeld: false, retrying: false, problem: null, status: null });
    this.#uppy.retryUpload(id);
  }

  // Events.

  #restored() {
    this.#uppy.setState({ currentUploads: {}, recoveredState: null });
    for (const file of this.#uppy.getFiles()) {
      if (isOver(file)) this.#forget(file.id);
      else if (file.progress.uploadComplete) this.#succeeded(file);
      else if (file.isPaused) this.#uppy.setFileState(file.id, { isHeld: true });
      else if (!file.isGhost && !file.error) this.#start(file.id);
    }
  }

  #prepare(request, file) {
    this.#owners.set(request, file.id);
    for (const [name, value] of Object.entries(this.#service.fields)) request.setHeader(name, value);
  }

  #note(request, response) {
    const id = this.#owners.get(request);
    const message = response.getHeader("Response-Message-Location");
    if (!message || !this.#uppy.getFile(id)) return;
    this.#uppy.setFileState(id, { message: new URL(message, request.getURL()).href });
  }

  #retry(error, again) {
    const id = this.#owners.get(error.originalRequest);
    if (again && this.#uppy.getFile(id)) {
      this.#rate(id).reset();
      const said = problem(error.originalResponse?.getBody() ?? "");
      this.#uppy.setFileState(id, { retrying: true, problem: said });
    }
    return again;
  }

  #progress(file, { bytesUploaded }) {
    this.#rate(file.id).note(bytesUploaded, performance.now());
    if (file.retrying) this.#uppy.setFileState(file.id, { retrying: false, problem: null });
  }

  async #succeeded({ id }) {
    const { name, size, message } = this.#uppy.getFile(id);
    const at = Date.now();
    this.#on.finished({ id: `${at}-${id}`, name, size, at, message: message ?? null, outcome: null });
    // Remove the file only after Uppy's own handling: before that, Uppy would terminate the
    // upload.
    await Promise.resolve();
    this.#forget(id);
  }

  #failed({ id, name }, response) {
    const status = response?.status ?? null;
    const said = problem(response?.body.xhr?.responseText ?? "");
    if (this.#uppy.getFile(id)) this.#uppy.setFileState(id, { status, problem: said, response: undefined });
    this.#on.refused(status, name);
  }

  /** Start the uploads again that gave up because the service did not answer. */
  #online() {
    for (const file of this.#uppy.getFiles()) if (file.error && file.status === null) this.#start(file.id);
    this.#on.changed();
  }
}
