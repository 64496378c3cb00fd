// Sends one request with a client that runs in Node, as told by the JSON in the first
// argument: fetch, undici's request, or http. What came of it is written as JSON.

import http from "node:http";
import { createRequire } from "node:module";

const task = JSON.parse(process.argv[2]);
const body = task.size === null ? undefined : Buffer.alloc(task.size, "x");

async function withFetch() {
  const { url, method, headers } = task;
  const response = await fetch(url, { method, headers, body });
  const fields = Object.fromEntries(response.headers);
  await response.arrayBuffer();
  return { status: response.status, fields, interims: null };
}

async function withUndici() {
  const { request } = createRequire(`${task.package}/`)("undici");
  const { url, method, headers } = task;
  const interims = [];
  const onInfo = ({ statusCode }) => interims.push(statusCode);
  const response = await request(url, { method, headers, body, onInfo });
  await response.body.arrayBuffer();
  return { status: response.statusCode, fields: response.headers, interims };
}

function withHttp() {
  const { url, method, headers } = task;
  const interims = [];
  return new Promise((resolve, reject) => {
    const request = http.request(url, { method, headers }, (response) => {
      response.resume();
      response.on("end", () => {
        const { statusCode: status, headers: fields } = response;
        resolve({ status, fields, interims });
      });
    });
    request.on("information", ({ statusCode }) => interims.push(statusCode));
    request.on("error", reject);
    request.end(body);
  });
}

const clients = { fetch: withFetch, undici: withUndici, http: withHttp };
try {
  console.log(JSON.stringify(await clients[task.client]()));
} catch (error) {
  console.log(JSON.stringify({ error: String(error.cause ?? error) }));
}
process.exit(0);
