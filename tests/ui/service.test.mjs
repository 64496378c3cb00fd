// What the page understands of the service's answers; test_scripts.py has node run this.

import assert from "node:assert/strict";
import { test } from "node:test";
import { Service, Unauthorized, problem } from "../../trioresume/ui/src/service.js";

const MESSAGE = "https://up.example/operations/x/message";
const service = new Service("https://up.example/files/");
const unknown = { status: null, location: null, problem: null };

/** Have the service give *answers*, one after the other; what it was asked. */
function answering(...answers) {
  const asked = [];
  globalThis.fetch = async (url, init) => {
    asked.push({ url, ...init });
    return answers.shift();
  };
  return asked;
}

const recorded = (...lines) => new Response(lines.join("\r\n"));

test("a stored file has its place", async () => {
  const asked = answering(recorded("HTTP/1.1 201 Created", "ETag: x", "Location: /files/a%20b", "", "{}"));
  assert.deepEqual(await service.outcome(MESSAGE), { status: 201, location: "/files/a%20b", problem: null });
  assert.match(asked[0].headers.Prefer, /^wait=\d+$/);
});

test("a refusal says why, or at least that it is one", async () => {
  const said = JSON.stringify({ title: "No", detail: "not today" });
  answering(recorded("HTTP/1.1 422 Unprocessable Content", "location: /x", "", said));
  assert.deepEqual(await service.outcome(MESSAGE), { status: 422, location: "/x", problem: "No: not today" });
  answering(recorded("HTTP/1.1 500 Internal Server Error", "", "<b>oops</b>"));
  assert.equal((await service.outcome(MESSAGE)).problem, "the service answered 500");
});

test("what is not ready is asked for again", async () => {
  answering(new Response("{}", { status: 202 }), recorded("HTTP/1.1 200 OK", "", ""));
  assert.equal((await service.outcome(MESSAGE)).status, 200);
});

test("what is forgotten, or was never told, is unknown", async () => {
  answering(new Response("", { status: 404 }), new Response("", { status: 410 }));
  assert.deepEqual(await service.outcome(MESSAGE), unknown);
  assert.deepEqual(await service.outcome(MESSAGE), unknown);
  assert.deepEqual(await service.outcome(null), unknown);
});

test("a token goes with everything, and its lack is an error of its own", async () => {
  const asked = answering(new Response("", { status: 401 }), recorded("HTTP/1.1 200 OK", "", ""));
  await assert.rejects(service.outcome(MESSAGE), Unauthorized);
  assert.equal(asked[0].headers.Authorization, undefined);
  service.token = "secret";
  await service.outcome(MESSAGE);
  assert.equal(asked[1].headers.Authorization, "Bearer secret");
  service.token = "";
  assert.deepEqual(service.fields, {});
});

test("limits are read from both dialects", async () => {
  const fields = { "Tus-Max-Size": "1000", "Upload-Limit": "min-size=0, max-append-size=50" };
  answering(new Response(null, { status: 204, headers: fields }), new Response(null, { status: 204 }));
  assert.deepEqual(await service.limits(), { most: 1000, mostAtOnce: 50 });
  assert.deepEqual(await service.limits(), { most: null, mostAtOnce: null });
});

test("links lead to web servers only", () => {
  assert.equal(service.link("/files/a"), "https://up.example/files/a");
  assert.equal(service.link("http://other.example/a"), "http://other.example/a");
  for (const location of ["javascript:alert(1)", "data:text/html,x", "blob:x", "http://"]) {
    assert.equal(service.link(location), null);
  }
});

test("what is no problem document is none", () => {
  for (const text of ["", "null", "[]", "{", '{"title": 1}', "<b>"]) assert.equal(problem(text), null);
});

test("a file that is gone is deleted, and a refusal says why", async () => {
  const said = JSON.stringify({ title: "No", detail: "not yours" });
  const asked = answering(
    new Response(null, { status: 204 }),
    new Response("", { status: 404 }),
    new Response(said, { status: 403 }),
    new Response("", { status: 500 }),
    new Response("", { status: 401 }),
  );
  const location = "https://up.example/files/x";
  assert.equal(await service.delete(location), null);
  assert.deepEqual([asked[0].url, asked[0].method], [location, "DELETE"]);
  assert.equal(await service.delete(location), null);
  assert.equal(await service.delete(location), "No: not yours");
  assert.equal(await service.delete(location), "the service answered 500");
  await assert.rejects(service.delete(location), Unauthorized);
});

test("a refusal tells with which token the request was sent", async () => {
  service.token = "old";
  globalThis.fetch = async () => {
    service.token = "new"; // entered while the answer was on its way
    return new Response("", { status: 401 });
  };
  await assert.rejects(service.outcome(MESSAGE), ({ sent }) => sent === "old");
  service.token = "";
});
