// The unfinished uploads. tus-js-client sends each; this decides which are sent now, and
// keeps what a later page needs to go on with them.
//
// A change of one upload touches that upload only, so that a queue of thousands stays quick.

import { Upload } from "tus-js-client";
import { problem } from "./service.js";
import { Rate } from "./units.js";

const SMALL = 1024 * 1024; // bytes: for smaller files the requests take longer than the bytes
const LARGE_AT_ONCE = 3;
const ADDED_AT_ONCE = 100; // files: the browser may have to ask the disk about each
const KEPT = 64 * 1024 * 1024; // bytes of a file that are copied so that they survive a reload
const KEPT_IN_ALL = 256 * 1024 * 1024;
const KEPT_FOR = 7 * 24 * 3600 * 1000; // ms: no upload lives longer, unless it is configured
const OVER = "trioresume.over"; // where a tab keeps the ids of ended uploads
const MOST_OVER = 500; // ids; each is needed until the database has been written
const PLACES = "trioresume.place."; // where all tabs find the place of a file that is chosen again
// ms. Progress restarts the list. After a quarter of an hour without any, the upload gives up.
const PAUSES = [0, 500, 1000, 2000, 5000, 10000, ...Array(30).fill(30000)];

export function unique() {
  return Math.random().toString(36).slice(2);
}

/** What tells a file from others, and is the same when it is chosen again. */
function fingerprint({ name, size, type, lastModified }) {
  return JSON.stringify([name, size, type, lastModified]);
}

class Entry {
  constructor(values) {
    this.id = unique();
    this.file = null; // null: its content was in the page that is gone
    this.url = null;
    this.message = null;
    this.held = false; // paused by the person
    this.tus = null; // what sends it, while it is sent
    this.sent = 0;
    this.retrying = false;
    this.failed = false;
    this.rejected = null; // why it was not accepted: [word, values]
    this.problem = null;
    this.status = null;
    this.unreadable = false; // the file is gone, or may not be read
    this.token = ""; // what the last request was sent with
    this.isKept = false; // whether the database has its content
    this.rate = new Rate();
    Object.assign(this, values);
  }

  get state() {
    if (this.rejected !== null) return "rejected";
    if (this.file === null) return "left";
    if (this.failed) return "failed";
    if (this.held) return "paused";
    if (!navigator.onLine) return "offline";
    if (this.retrying) return "retrying";
    return this.rate.started ? "uploading" : "waiting";
  }

  /** Whether it can be sent as soon as its turn comes. */
  get waits() {
    return this.tus === null && this.rejected === null && this.file !== null && !this.failed && !this.held;
  }
}

export class Queue {
  #entries = new Map(); // by id, in order of arrival
  #waiting = new Set(); // ids
  #running = new Set();
  #service;
  #database;
  #storage;
  #tab;
  #on;
  #atOnce;
  #limits = { most: null, mostAtOnce: null };
  #done = { count: 0, size: 0 }; // of what ended since the list was empty
  #keptBytes = 0;

  /**
   * *storage* has the texts of the { tab, browser }. At most *atOnce* small files are sent at
   * a time. *on* has the callbacks changed(), finished(entry), refused(status, name, token)
   * and rejected(count).
   */
  constructor(service, database, storage, atOnce, on) {
    this.#service = service;
    this.#database = database;
    this.#storage = storage;
    this.#atOnce = atOnce;
    this.#on = on;
    // The list belongs to one tab: a second tab with the same list would take its uploads.
    this.#tab = storage.tab.get("trioresume.tab") ?? `trioresume-${unique()}`;
    storage.tab.set("trioresume.tab", this.#tab);
    database.onWritten((changes) => this.#written(changes));
    window.addEventListener("online", () => this.#online());
    window.addEventListener("offline", () => on.changed());
  }

  /** Take up the uploads that an earlier page of this tab has left. */
  async load() {
    const over = this.#overs();
    const old = Date.now() - KEPT_FOR;
    for (const key of this.#storage.browser.keys(PLACES)) {
      if (this.#place(key.slice(PLACES.length)).url === undefined) this.#storage.browser.remove(key);
    }
    const found = (await this.#database.all("uploads")).sort((a, b) => a.at - b.at || a.order - b.order);
    for (const kept of found) {
      if (kept.at < old || (kept.tab === this.#tab && over.has(kept.id))) this.#erase(kept.id);
      if (kept.tab !== this.#tab || kept.at < old || over.has(kept.id)) continue;
      const file = await this.#database.get("contents", kept.id);
      // The page may have been left before the database knew the upload's place.
      const place = kept.url === null ? this.#place(kept.fingerprint) : {};
      const entry = new Entry({ ...kept, ...place, file: file instanceof File ? file : null });
      this.#entries.set(entry.id, entry);
      if (entry.waits) this.#waiting.add(entry.id);
    }
    this.#schedule();
  }

  set limits(limits) {
    this.#limits = limits;
  }

  /** The uploads, in order of arrival: their ids, names, sizes, states and so on. */
  list() {
    return [...this.#entries.values()];
  }

  get isSending() {
    return this.#running.size > 0;
  }

  /** Return { count, done, size, sent, rate } of this list, with what ended since it was empty. */
  total() {
    const now = performance.now();
    const sum = { count: this.#done.count, done: this.#done.count, size: this.#done.size, sent: this.#done.size };
    let rate = 0;
    for (const entry of this.#entries.values()) {
      if (entry.rejected !== null) continue;
      sum.count += 1;
      sum.size += entry.size;
      sum.sent += entry.sent;
      rate += entry.tus === null ? 0 : entry.rate.at(now);
    }
    return { ...sum, rate };
  }

  // Actions of the person.

  /** Take files into the queue, some at a time so that the page stays quick. */
  async add(files) {
    const known = new Map();
    for (const entry of this.#entries.values()) if (entry.fingerprint !== null) known.set(entry.fingerprint, entry.id);
    const at = Date.now();
    let rejected = 0;
    for (let order = 0; order < files.length; order += 1) {
      if (!this.#add(files[order], at, order, known)) rejected += 1;
      if (order % ADDED_AT_ONCE === ADDED_AT_ONCE - 1) {
        this.#schedule();
        await new Promise((resolve) => setTimeout(resolve));
      }
    }
    if (rejected > 0) this.#on.rejected(rejected);
    this.#schedule();
  }

  /** Take one file; *known* has the ids of all fingerprints. Returns whether it is accepted. */
  #add(file, at, order, known) {
    const { name, size, type } = file;
    const print = fingerprint(file);
    const there = this.#entries.get(known.get(print));
    const reason = this.#reason(size, there);
    if (reason !== null) {
      this.#keep(new Entry({ name, size, type, rejected: reason, at, order, fingerprint: null }));
      return false;
    }
    if (there !== undefined) {
      there.file = file; // it was in the list, without its content
      this.#wait(there);
      return true;
    }
    const entry = new Entry({ name, size, type, file, at, order, fingerprint: print, ...this.#place(print) });
    known.set(print, entry.id);
    this.#keep(entry);
    this.#wait(entry);
    return true;
  }

  #reason(size, known) {
    const { most } = this.#limits;
    if (most !== null && size > most) return ["tooLarge", most];
    if (known !== undefined && known.file !== null) return ["twice"];
    return null;
  }

  /** Pause the upload, continue it, or try again. */
  toggle(id) {
    const entry = this.#entries.get(id);
    if (entry === undefined) return;
    if (entry.failed || entry.held) this.#resume(entry);
    else this.#hold(entry);
    this.#schedule();
  }

  pauseAll() {
    for (const entry of this.#entries.values()) if (entry.waits || entry.tus !== null) this.#hold(entry);
    this.#schedule();
  }

  resumeAll() {
    for (const entry of this.#entries.values()) if (entry.held && !entry.failed) this.#resume(entry);
    this.#schedule();
  }

  retryAll() {
    for (const entry of this.#entries.values()) if (entry.failed) this.#resume(entry);
    this.#schedule();
  }

  /** Start the uploads again that were refused because there was no token. */
  retryRefused() {
    for (const entry of this.#entries.values()) if (entry.failed && entry.status === 401) this.#resume(entry);
    this.#schedule();
  }

  /** Give the upload up, and have the service forget its bytes. */
  cancel(id) {
    const entry = this.#entries.get(id);
    if (entry === undefined) return;
    const { url } = entry;
    this.#stop(entry);
    this.#forget(entry);
    if (url !== null) this.#service.terminate(url).catch(() => {});
    this.#schedule();
  }

  cancelAll() {
    for (const id of [...this.#entries.keys()]) this.cancel(id);
  }

  /** Take the files off the list that were not accepted. */
  dismissAll() {
    for (const entry of [...this.#entries.values()]) if (entry.rejected !== null) this.#forget(entry);
    this.#on.changed();
  }

  #hold(entry) {
    this.#stop(entry);
    entry.held = true;
    this.#keep(entry);
  }

  #resume(entry) {
    Object.assign(entry, { held: false, failed: false, problem: null, status: null });
    this.#keep(entry);
    this.#wait(entry);
  }

  #wait(entry) {
    entry.rate.reset();
    if (entry.waits) this.#waiting.add(entry.id);
  }

  // Sending.

  /** Send what may be sent now: many small files together, or a few large ones. */
  #schedule() {
    for (const id of this.#waiting) {
      if (this.#running.size >= this.#atOnce || !navigator.onLine) break;
      const entry = this.#entries.get(id);
      if (entry === undefined || !entry.waits) {
        this.#waiting.delete(id);
        continue;
      }
      // Small files pass the large ones that wait for each other.
      if (entry.size > SMALL && this.#largeRunning() >= LARGE_AT_ONCE) continue;
      this.#waiting.delete(id);
      this.#send(entry);
    }
    if (this.#entries.size === 0) this.#done = { count: 0, size: 0 };
    this.#on.changed();
  }

  #largeRunning() {
    let count = 0;
    for (const id of this.#running) if ((this.#entries.get(id)?.size ?? 0) > SMALL) count += 1;
    return count;
  }

  #send(entry) {
    const { file, name, type, url } = entry;
    entry.rate.reset();
    entry.retrying = false;
    this.#running.add(entry.id);
    const tus = new Upload(file, {
      endpoint: this.#service.endpoint,
      uploadUrl: url,
      retryDelays: PAUSES,
      chunkSize: this.#limits.mostAtOnce ?? Infinity,
      metadata: { name, ...(type && { type }) },
      storeFingerprintForResuming: false, // its store is searched whole for each file
      // A callback of an attempt that was stopped must not change anything.
      onBeforeRequest: (request) => {
        entry.token = this.#service.token;
        for (const [field, value] of Object.entries(this.#service.fields)) request.setHeader(field, value);
      },
      onAfterResponse: (request, response) => entry.tus === tus && this.#note(entry, request, response),
      onUploadUrlAvailable: () => entry.tus === tus && this.#placed(entry, tus.url),
      onProgress: (sent) => entry.tus === tus && this.#progress(entry, sent),
      onShouldRetry: (error) => entry.tus === tus && this.#retry(entry, error),
      onSuccess: () => entry.tus === tus && this.#succeeded(entry),
      onError: (error) => entry.tus === tus && this.#failed(entry, error),
    });
    entry.tus = tus;
    tus.start();
  }

  #stop(entry) {
    entry.tus?.abort().catch(() => {});
    this.#ended(entry);
    this.#waiting.delete(entry.id);
  }

  #ended(entry) {
    entry.tus = null;
    entry.retrying = false;
    entry.rate.reset();
    this.#running.delete(entry.id);
  }

  #note(entry, request, response) {
    const message = response.getHeader("Response-Message-Location");
    if (message) entry.message = new URL(message, request.getURL()).href;
  }

  #placed(entry, url) {
    if (entry.url === url) return;
    entry.url = url;
    this.#keep(entry);
    this.#storage.browser.set(PLACES + entry.fingerprint, JSON.stringify({ url, message: entry.message, at: Date.now() }));
  }

  #progress(entry, sent) {
    entry.sent = sent;
    entry.rate.note(sent, performance.now());
    if (entry.retrying) Object.assign(entry, { retrying: false, problem: null });
    this.#on.changed();
  }

  #retry(entry, error) {
    const status = error.originalResponse?.getStatus() ?? 0;
    const final = status >= 400 && status < 500 && status !== 409 && status !== 423 && status !== 429;
    if (final || !navigator.onLine) return false;
    entry.rate.reset();
    entry.retrying = true;
    entry.problem = problem(error.originalResponse?.getBody() ?? "");
    this.#on.changed();
    return true;
  }

  #succeeded(entry) {
    const { id, name, size, message } = entry;
    const at = Date.now();
    this.#ended(entry);
    this.#done = { count: this.#done.count + 1, size: this.#done.size + size };
    this.#on.finished({ id: `${at}-${id}`, name, size, at, message, outcome: null });
    this.#forget(entry);
    this.#schedule();
  }

  #failed(entry, error) {
    this.#ended(entry);
    if (!navigator.onLine) {
      this.#waiting.add(entry.id); // goes on when the network is back
      this.#on.changed();
      return;
    }
    const response = error.originalResponse ?? null;
    const status = response?.getStatus() || null;
    entry.failed = true;
    entry.status = status;
    entry.problem = problem(response?.getBody() ?? "");
    if (error.originalRequest == null) entry.unreadable = true; // it failed before it was sent
    this.#keep(entry);
    this.#on.refused(status, entry.name, entry.token);
    this.#schedule();
  }

  /** Start the uploads again that gave up because the service did not answer. */
  #online() {
    for (const entry of this.#entries.values()) if (entry.failed && entry.status === null) this.#resume(entry);
    this.#schedule();
  }

  // What a later page finds.

  #keep(entry) {
    const { id, name, size, type, file, url, message, held, failed, status, sent, rejected, problem, at, order, fingerprint } = entry;
    const isNew = !this.#entries.has(id);
    this.#entries.set(id, entry);
    const kept = { id, tab: this.#tab, name, size, type, url, message, held, failed, status, sent, rejected, problem, at, order, fingerprint };
    this.#database.put("uploads", id, kept);
    if (isNew && file !== null && size <= KEPT && this.#keptBytes + size <= KEPT_IN_ALL) {
      entry.isKept = true;
      this.#keptBytes += size;
      this.#database.put("contents", id, file);
    }
  }

  #forget(entry) {
    this.#entries.delete(entry.id);
    this.#waiting.delete(entry.id);
    if (entry.isKept) this.#keptBytes -= entry.size;
    if (entry.fingerprint !== null) this.#storage.browser.remove(PLACES + entry.fingerprint);
    // The database is written a moment later. If the page is left before, the upload would
    // come back. The tab's own storage, which is written at once, prevents that.
    this.#setOvers([entry.id, ...this.#overs()].slice(0, MOST_OVER));
    this.#erase(entry.id);
  }

  #erase(id) {
    this.#database.put("uploads", id, undefined);
    this.#database.put("contents", id, undefined);
  }

  #written(changes) {
    const overs = this.#overs();
    const before = overs.size;
    for (const [store, id, value] of changes) if (store === "uploads" && value === undefined) overs.delete(id);
    if (overs.size !== before) this.#setOvers([...overs]);
  }

  #overs() {
    return new Set((this.#storage.tab.get(OVER) ?? "").split(" ").filter(Boolean));
  }

  #setOvers(ids) {
    this.#storage.tab.set(OVER, ids.join(" "));
  }

  /** Where a file goes on that was chosen before, in any tab: { url, message }. */
  #place(print) {
    try {
      const { url, message, at } = JSON.parse(this.#storage.browser.get(PLACES + print) ?? "{}");
      if (typeof url !== "string" || !(at > Date.now() - KEPT_FOR)) return {};
      return { url, message: message ?? null };
    } catch {
      return {};
    }
  }
}
