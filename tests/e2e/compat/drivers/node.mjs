// The trials of registry.py with Node's HTTP clients: `node node.mjs fetch|http|http2 …`.

import { createHash } from "node:crypto";
import { createReadStream, statSync } from "node:fs";
import http from "node:http";
import http2 from "node:http2";
import { Readable } from "node:stream";

const [client, root, limited, path, name, ...wanted] = process.argv.slice(2);
const size = statSync(path).size;
const type = { "content-type": "application/octet-stream" };
const digest = (content) => createHash("sha256").update(content).digest("hex");
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

// Content from `start`; with `cut` its source breaks there.
async function* blocks(start = 0, cut = Infinity) {
  let sent = 0;
  for await (const block of createReadStream(path, { start })) {
    if (sent >= cut) {
      await pause(300); // what was sent shall not be lost with the connection
      throw new Error("the source broke");
    }
    yield block;
    sent += block.length;
  }
}

async function fetchSend(method, url, fields, body, { known = true, expect = false } = {}) {
  if (expect) throw new Error("fetch forbids the field Expect");
  const init = { method, headers: { ...fields }, redirect: "manual" };
  if (body) {
    // fetch states the length of a Buffer or Blob, and sends anything else in chunks.
    if (known && body.cut === undefined) {
      const parts = [];
      for await (const block of blocks(body.start)) parts.push(block);
      init.body = Buffer.concat(parts);
    } else {
      init.body = Readable.toWeb(Readable.from(blocks(body.start, body.cut)));
      init.duplex = "half";
    }
  }
  const response = await fetch(url, init);
  const content = Buffer.from(await response.arrayBuffer());
  return { status: response.status, fields: Object.fromEntries(response.headers), content };
}

function httpSend(method, url, fields, body, { known = true, expect = false } = {}) {
  return new Promise((resolve, reject) => {
    const headers = { ...fields };
    if (body && known) headers["content-length"] = size - (body.start ?? 0);
    if (!body && method === "POST") headers["content-length"] = 0;
    if (expect) headers.expect = "100-continue";
    const request = http.request(url, { method, headers, agent: false });
    request.on("error", reject);
    request.on("response", async (response) => {
      try {
        const parts = [];
        for await (const part of response) parts.push(part);
        resolve({
          status: response.statusCode, fields: response.headers, content: Buffer.concat(parts),
        });
      } catch (error) {
        reject(error);
      }
    });
    const send = () => {
      const source = Readable.from(blocks(body.start, body.cut));
      source.on("error", (error) => request.destroy(error));
      source.pipe(request);
    };
    if (!body) request.end();
    else if (expect) {
      request.on("continue", send);
      request.flushHeaders();
    } else send();
  });
}

// Each origin has one connection, for all requests.
const sessions = new Map();

function http2Send(method, url, fields, body, { known = true, expect = false } = {}) {
  return new Promise((resolve, reject) => {
    const { origin, pathname } = new URL(url, root);
    if (!sessions.has(origin)) sessions.set(origin, http2.connect(origin));
    const headers = { ...fields, ":method": method, ":path": pathname };
    if (body && known) headers["content-length"] = size - (body.start ?? 0);
    if (expect) headers.expect = "100-continue";
    const stream = sessions.get(origin).request(headers, { endStream: !body });
    let got;
    const parts = [];
    stream.on("error", reject);
    stream.on("response", (received) => {
      got = received;
    });
    stream.on("data", (part) => parts.push(part));
    stream.on("end", () => {
      if (!got) return;
      const { ":status": status, ...fields } = got;
      resolve({ status, fields, content: Buffer.concat(parts), version: 2 });
    });
    const send = () => {
      const source = Readable.from(blocks(body.start, body.cut));
      source.on("error", (error) => stream.destroy(error));
      source.pipe(stream);
    };
    if (!body) return;
    if (expect) stream.on("continue", send);
    else send();
  });
}

const send = client.startsWith("fetch") ? fetchSend : client === "http" ? httpSend : http2Send;
const say = (trial, answer, further = {}) => console.log(JSON.stringify({
  trial, version: answer.version, status: answer.status, fields: answer.fields, digest: digest(answer.content),
  text: answer.content.length <= 4096 ? answer.content.toString() : "", ...further,
}));

const trials = {
  put: async () => send("PUT", `${root}/files/${name}-put`, type, {}),
  stream: async () => send("POST", `${root}/files/`, type, {}, { known: false }),
  prefer: async () => send("PUT", `${root}/files/${name}-prefer`, { ...type, prefer: "resume" }, {}),
  expect: async () => send(
    "PUT", `${root}/files/${name}-expect`, { ...type, prefer: "resume" }, {}, { expect: true },
  ),
  interim: async () => send("POST", `${root}/files/`, {
    ...type, "upload-complete": "?1", "upload-draft-interop-version": "6",
  }, {}),
  resume: async () => {
    const first = { "upload-complete": "?0", "upload-length": String(size) };
    const upload = (await send("POST", `${root}/files/`, first)).fields.location;
    const append = { "content-type": "application/partial-upload", "upload-complete": "?1" };
    try {
      await send("PATCH", upload, { ...append, "upload-offset": "0" }, { cut: size / 2 });
    } catch (error) {
      console.error(`cut: ${error}`);
    }
    const offset = Number((await send("HEAD", upload, {})).fields["upload-offset"]);
    const fields = { ...append, "upload-offset": String(offset) };
    return { ...(await send("PATCH", upload, fields, { start: offset })), offset };
  },
  refused: async () => send("PUT", `${limited}/files/${name}-refused`, type, {}),
  range: async () => send("GET", `${root}/files/${name}-put`, { range: "bytes=1000-" }),
  delete: async () => send("DELETE", `${root}/files/${name}-put`, {}),
};

for (const trial of wanted) {
  try {
    const answer = await trials[trial]();
    say(trial, answer, answer.offset === undefined ? {} : { offset: answer.offset });
  } catch (error) {
    const cause = error.cause ? ` (${error.cause})` : "";
    console.log(JSON.stringify({ trial, status: 0, error: `${error}${cause}` }));
  }
}
for (const session of sessions.values()) session.close();
