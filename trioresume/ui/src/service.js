// The page's requests to the service other than uploads: access, limits and outcomes.

import { tab } from "./storage.js";

const TOKEN = "trioresume.token";
const LONGEST_WAIT = 20; // seconds

/** The service answered 401: it needs a token. */
export class Unauthorized extends Error {}

export class Service {
  constructor(endpoint) {
    this.endpoint = endpoint;
  }

  /** The token, kept for this tab only, until it is closed. */
  get token() {
    return tab.get(TOKEN) ?? "";
  }

  set token(text) {
    tab.set(TOKEN, text);
  }

  get fields() {
    return this.token ? { Authorization: `Bearer ${this.token}` } : {};
  }

  /** The limits of an upload in bytes, { most, mostAtOnce }; null means no limit. */
  async limits() {
    const response = await this.#fetch(this.endpoint, { method: "OPTIONS" });
    // OPTIONS is answered without credentials, too. The answer then says that they are needed.
    if (response.headers.has("WWW-Authenticate")) throw new Unauthorized();
    const most = response.headers.get("Tus-Max-Size");
    const atOnce = /(?:^|[,\s])max-append-size=(\d+)/.exec(response.headers.get("Upload-Limit") ?? "");
    return { most: most === null ? null : Number(most), mostAtOnce: atOnce && Number(atOnce[1]) };
  }

  /**
   * Fetch the target's answer to the upload, recorded at *message*: { status, location,
   * problem }, each null if it is missing. In tus itself an upload ends with a bare 204.
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

  /** Have the service forget an upload now; by itself it would forget it later. */
  async terminate(upload) {
    await this.#fetch(upload, { method: "DELETE", headers: { "Tus-Resumable": "1.0.0" } });
  }

  /** Fetch a file that needs a token, because a link cannot send one. */
  async download(location) {
    const response = await this.#fetch(location, {});
    if (!response.ok) throw new Error(`the service answered ${response.status}`);
    return response.blob();
  }

  /** Return *location* as the target of a link, or null if it is no http(s) address. */
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

  /** Parse a message/http. */
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

/** Return the text of an application/problem+json for a person, or null if it is none. */
export function problem(text) {
  try {
    const { title, detail } = JSON.parse(text);
    return [title, detail].filter((part) => typeof part === "string" && part !== "").join(": ") || null;
  } catch {
    return null;
  }
}
