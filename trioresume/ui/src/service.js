// What the page asks the service beside uploading: who may, how much, and what became of it.

import { tab } from "./storage.js";

const TOKEN = "trioresume.token";
const LONGEST_WAIT = 20; // seconds

/** The service wants to know who asks. */
export class Unauthorized extends Error {}

export class Service {
  constructor(endpoint) {
    this.endpoint = endpoint;
  }

  /** For this tab only, and until it is closed. */
  get token() {
    return tab.get(TOKEN) ?? "";
  }

  set token(text) {
    tab.set(TOKEN, text);
  }

  get fields() {
    return this.token ? { Authorization: `Bearer ${this.token}` } : {};
  }

  /** The limits of an upload in bytes, null for none: { most, mostAtOnce }. */
  async limits() {
    const response = await this.#fetch(this.endpoint, { method: "OPTIONS" });
    const most = response.headers.get("Tus-Max-Size");
    const atOnce = /(?:^|[,\s])max-append-size=(\d+)/.exec(response.headers.get("Upload-Limit") ?? "");
    return { most: most === null ? null : Number(most), mostAtOnce: atOnce && Number(atOnce[1]) };
  }

  /**
   * The answer of what the upload was for, recorded at *message*: { status, location,
   * problem }, each null where there is none. tus itself ends with a 204 that says nothing.
   */
  async outcome(message) {
    const unknown = { status: null, location: null, problem: null };
    if (message === null) return unknown;
    for (;;) {
      const response = await this.#fetch(message, { headers: { Prefer: `wait=${LONGEST_WAIT}` } });
      if (response.status === 200) return this.#recorded(await response.text());
      if (response.status === 404 || response.status === 410) return unknown;
      await new Promise((resolve) => setTimeout(resolve, 1000)); // 202, or a 503 that passes
    }
  }

  /** Have the service forget an upload; it would by itself, only later. */
  async terminate(upload) {
    await this.#fetch(upload, { method: "DELETE", headers: { "Tus-Resumable": "1.0.0" } });
  }

  /** The bytes of a file that needs a token, which a link cannot send. */
  async download(location) {
    const response = await this.#fetch(location, {});
    if (!response.ok) throw new Error(`the service answered ${response.status}`);
    return response.blob();
  }

  /** *location* as a link may have it, null if it leads anywhere but to a web server. */
  link(location) {
    try {
      const url = new URL(location, this.endpoint);
      return ["http:", "https:"].includes(url.protocol) ? url.href : null;
    } catch {
      return null;
    }
  }

  async #fetch(url, init) {
    const response = await fetch(url, { ...init, headers: { ...init.headers, ...this.fields } });
    if (response.status === 401) throw new Unauthorized();
    return response;
  }

  /** Read a message/http. */
  #recorded(text) {
    const end = text.indexOf("\r\n\r\n");
    const [first, ...lines] = text.slice(0, end).split("\r\n");
    const status = Number(first.split(" ")[1]);
    const location = lines.find((line) => /^location:/i.test(line));
    return {
      status,
      location: location === undefined ? null : location.slice("location:".length).trim(),
      problem: status < 400 ? null : problem(text.slice(end + 4)) ?? `the service answered ${status}`,
    };
  }
}

/** What an application/problem+json says to a person, null if *text* is none. */
export function problem(text) {
  try {
    const { title, detail } = JSON.parse(text);
    return [title, detail].filter((part) => typeof part === "string" && part !== "").join(": ") || null;
  } catch {
    return null;
  }
}
