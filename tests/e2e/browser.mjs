// Chromium, told what to do by lines of JSON on standard input, one answer for each.
// Arguments: the folder that playwright-core and axe-core are installed in, and Chromium.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { createInterface } from "node:readline";

const require = createRequire(`${process.argv[2]}/`);
const { chromium } = require("playwright-core");
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");

const browser = await chromium.launch({
  executablePath: process.argv[3],
  args: [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
  ],
});

let context = null;
let page = null;
let devtools = null;
let said = [];
let requests = [];
const network = { offline: false, latency: 0, downloadThroughput: -1, uploadThroughput: -1 };

async function open() {
  page = await context.newPage();
  page.setDefaultTimeout(20000);
  page.on("console", (message) => said.push(message.text()));
  page.on("pageerror", (error) => said.push(`uncaught: ${error}`));
  page.on("dialog", (dialog) => (said.push(`dialog: ${dialog.message()}`), dialog.dismiss()));
  devtools = await context.newCDPSession(page);
  await devtools.send("Network.enable");
  await devtools.send("Network.emulateNetworkConditions", network);
}

const commands = {
  /** A browser that has never been anywhere. */
  async start({ options }) {
    await context?.close();
    said = [];
    requests = [];
    Object.assign(network, { offline: false, uploadThroughput: -1 });
    context = await browser.newContext({ reducedMotion: "reduce", ...options });
    context.on("request", (request) => requests.push([request.method(), request.url()]));
    await open();
  },
  /** Another tab, in the place of the one that was open. */
  async tab() {
    await page.close();
    await open();
  },
  goto: ({ url }) => page.goto(url).then(() => null),
  reload: () => page.reload().then(() => null),
  /** Real files, as a person drags them there. */
  async drop({ paths }) {
    const data = { items: [], files: paths, dragOperationsMask: 1 };
    for (const type of ["dragEnter", "dragOver", "drop"]) {
      await devtools.send("Input.dispatchDragEvent", { type, x: 200, y: 200, data });
    }
  },
  choose: ({ paths }) => page.locator("input[type=file]").setInputFiles(paths),
  click: ({ role, name }) => page.getByRole(role, { name, exact: true }).click(),
  press: ({ keys }) => keys.reduce((before, key) => before.then(() => page.keyboard.press(key)), Promise.resolve()),
  select: ({ label, value }) => page.getByLabel(label).selectOption(value).then(() => null),
  fill: ({ label, text }) => page.getByLabel(label).fill(text),
  async download({ role, name, path }) {
    const started = page.waitForEvent("download");
    await page.getByRole(role, { name, exact: true }).click();
    const download = await started;
    await download.saveAs(path);
    return download.suggestedFilename();
  },
  /** Wait until a text like that is shown; all that is shown then. */
  async see({ pattern }) {
    await page.getByText(new RegExp(pattern)).first().waitFor();
    return page.locator("body").innerText();
  },
  miss: ({ pattern }) => page.getByText(new RegExp(pattern)).first().waitFor({ state: "detached" }),
  text: () => page.locator("body").innerText(),
  href: ({ name }) => page.getByRole("link", { name, exact: true }).evaluate((link) => link.href),
  run: ({ script }) => page.evaluate(script),
  async network({ change }) {
    Object.assign(network, change);
    await devtools.send("Network.emulateNetworkConditions", network);
  },
  /** What the page wrote to its console, and asked the network for, since the start. */
  log: () => ({ said, requests }),
  /** What makes the page hard to use for some, as axe finds it. */
  async barriers() {
    await page.evaluate(axe);
    const { violations } = await page.evaluate("axe.run()");
    return violations.map(({ id, nodes }) => [id, nodes.map((node) => node.html)]);
  },
  picture: ({ path, options }) => page.screenshot({ path, ...options }).then(() => null),
};

console.log(JSON.stringify({ value: browser.version() }));
for await (const line of createInterface({ input: process.stdin })) {
  const { command, ...rest } = JSON.parse(line);
  let answer;
  try {
    answer = { value: (await commands[command](rest)) ?? null };
  } catch (error) {
    answer = { error: `${error.message}\n\n${await page?.locator("body").innerText().catch(() => "")}` };
  }
  console.log(JSON.stringify(answer));
}
await browser.close();
