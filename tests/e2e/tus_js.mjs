// Uploads a file with tus-js-client, as told by the JSON in the second argument.
// The first argument is the folder that the package is installed in. What happened is
// written as JSON lines.

import { createReadStream, readFileSync, statSync } from "node:fs";
import { createRequire } from "node:module";
import { PassThrough } from "node:stream";

const { Upload, FileUrlStorage } = createRequire(`${process.argv[2]}/`)("tus-js-client");
const task = JSON.parse(process.argv[3]);

function say(event, more = {}) {
  console.log(JSON.stringify({ event, ...more }));
}

function content() {
  // A stream of unknown length, a file that knows its name, or bytes.
  if (task.kind === "stream") return createReadStream(task.path).pipe(new PassThrough());
  if (task.kind === "file") return createReadStream(task.path);
  return readFileSync(task.path);
}

const upload = new Upload(content(), {
  endpoint: task.endpoint,
  retryDelays: [0, 200, 400],
  ...(task.storage ? { urlStorage: new FileUrlStorage(task.storage) } : {}),
  ...task.options,
  onError(error) {
    say("error", { message: String(error) });
    process.exit(1);
  },
  onSuccess() {
    say("success", { url: upload.url });
  },
  onChunkComplete(size, accepted, total) {
    say("chunk", { accepted, total });
    if (task.stop !== undefined && accepted >= task.stop) stop();
  },
  onProgress(sent) {
    if (task.cut !== undefined && sent >= task.cut) stop();
  },
});

let stopped = false;

async function stop() {
  if (stopped) return;
  stopped = true;
  await upload.abort(Boolean(task.terminate));
  say("stopped", { url: upload.url, size: statSync(task.path).size });
  process.exit(0);
}

const previous = task.resume ? await upload.findPreviousUploads() : [];
if (task.resume) say("found", { count: previous.length });
if (previous.length > 0) upload.resumeFromPreviousUpload(previous[0]);
upload.start();
