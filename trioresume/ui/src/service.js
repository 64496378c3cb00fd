// The page's requests to the service other than uploads: access, limits and outcomes.

import { tab } from "./storage.js";
import { say } from "./words.js";

const TOKEN = "trioresume.token";
const LONGEST_WAIT = 20; // seconds

/** The service answered 401: it needs another token than *sent*, which is "" if there was none. */
export class Unauthorized extends Error {
  constructor(sent) {
    super("unauthorized");
    this.sent = sent;
  }
}

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
    const sent = this.token;
    const response = await this.#fetch(this.endpoint, { method: "OPTIONS" });
    // OPTIONS is answered without credentials, too. The answer then says that they are needed.
    if (response.headers.has("WWW-Authenticate")) throw new Unauthorized(sent);
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

  /** Delete a file. Returns the problem, or null if the file is gone. */
  async delete(location) {
    const response = await this.#fetch(location, { method: "DELETE" });
    if (response.ok || response.status === 404 || response.status === 410) return null;
    return problem(await response.text()) ?? say("answered", { status: response.status });
  }

  /** Fetch the words of a language of the settings. */
  async words(tag) {
    const response = await fetch(new URL(`words.${tag}.json`, document.baseURI));
    if (!response.ok) throw new Error(`the service answered ${response.status}`);
    return response.json();
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
    const sent = this.token;
    const response = await fetch(url, { ...init, headers: { ...init.headers, ...this.fields } });
    if (response.status === 401) throw new Unauthorized(sent);
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
      problem: status < 400 ? null : problem(text.slice(end + 4)) ?? say("answered", { status }),
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
