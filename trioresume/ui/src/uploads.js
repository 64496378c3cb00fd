// The uploads that are not finished. Uppy keeps their state, tus-js-client speaks to the
// service, Golden Retriever brings both back after the page was left.
//
// Every upload is started by itself, with retryUpload: Uppy's upload() first waits for
// all that failed before.

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
const OVER = "trioresume.over"; // where a tab keeps the keys of what is over
const MOST_OVER = 200; // of them; each has to outlive its half second only
// ms. Progress starts it anew: a quarter of an hour without any is when it gives up.
const PAUSES = [0, 500, 1000, 2000, 5000, 10000, ...Array(30).fill(30000)];

function unique() {
  return Math.random().toString(36).slice(2);
}

/** One tab, one list: a second tab that found the same uploads would take them away. */
function nameOfTab() {
  const name = tab.get("trioresume.tab") ?? `trioresume-${unique()}`;
  tab.set("trioresume.tab", name);
  return name;
}

// Golden Retriever writes down twice a second what there is. An upload that is over when
// the page is left within that half second would come back: these do not, by their keys.

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
   * *on* is told of: changed(), finished(upload), refused(status, name), mentioned(text).
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
        removeFingerprintOnSuccess: true, // the same file once more is a new upload
        allowedMetaFields: ["name", "type"],
        onBeforeRequest: (request, file) => this.#prepare(request, file),
        onAfterResponse: (request, response) => this.#note(request, response),
        onShouldRetry: (error, attempt, options, decide) => this.#retry(error, decide(error)),
      });
    // What a tab keeps is its own, and has that name now. But a file has to be known in
    // every tab, and its id begins with this:
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

  /** { id, name, size, state, sent, rate, problem } of each, in the order they came. */
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

  // What a person does.

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
        // Without its folder: however a file comes, it is known by the same id.
        const meta = { key: unique() };
        this.#start(this.#uppy.addFile({ name: file.name, type: file.type, data: file, meta }));
      } catch {
        this.#on.mentioned(`${file.name} is in the list already.`);
      }
    }
  }

  /** Pause it, or go on, or try again. */
  toggle(id) {
    const file = this.#uppy.getFile(id);
    this.#rate(id).reset();
    if (file.error || file.isHeld) this.#start(id);
    else this.#uppy.pauseResume(id);
  }

  /** Give it up: the service forgets what it has of it. */
  cancel(id) {
    const { tus, isGhost, isHeld, error, retrying } = this.#uppy.getFile(id);
    this.#forget(id);
    // Uppy tells the service of what runs, or was paused while it ran, and of no other.
    const isIdle = isGhost || isHeld || error || retrying;
    if (isIdle && tus?.uploadUrl) this.#service.terminate(tus.uploadUrl).catch(() => {});
  }

  #forget(id) {
    noteOver(this.#uppy.getFile(id));
    this.#rates.delete(id);
    this.#uppy.removeFile(id);
  }

  /** Those that were refused because nobody had said who asks. */
  retryRefused() {
    for (const file of this.#uppy.getFiles()) if (file.error && file.status === 401) this.#start(file.id);
  }

  #start(id) {
    this.#rate(id).reset();
    this.#uppy.setFileState(id, { isHeld: false, retrying: false, problem: null, status: null });
    this.#uppy.retryUpload(id);
  }

  // What happens.

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
    // Later: as long as Uppy is at it, to remove a file is to terminate its upload.
    await Promise.resolve();
    this.#forget(id);
  }

  #failed({ id, name }, response) {
    const status = response?.status ?? null;
    const said = problem(response?.body.xhr?.responseText ?? "");
    if (this.#uppy.getFile(id)) this.#uppy.setFileState(id, { status, problem: said, response: undefined });
    this.#on.refused(status, name);
  }

  /** Those that gave up for want of an answer have better prospects now. */
  #online() {
    for (const file of this.#uppy.getFiles()) if (file.error && file.status === null) this.#start(file.id);
    this.#on.changed();
  }
}
