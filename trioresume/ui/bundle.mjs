// Makes the page's files from src/, in the named folder: node bundle.mjs dist
//
// The folder also gets the licences of the bundled packages, and a list of these packages
// and their versions, which a test compares with package.json.

import { copyFileSync, mkdirSync, readFileSync, readdirSync, writeFileSync } from "node:fs";
import { build } from "esbuild";

const out = process.argv[2];
mkdirSync(out);

const { metafile } = await build({
  entryPoints: { page: "src/main.js", style: "src/style.css", admin: "src/admin.js" },
  outdir: out,
  bundle: true,
  minify: true,
  format: "esm",
  target: ["es2022", "chrome109", "firefox115", "safari16.4"],
  legalComments: "none", // licences.txt has the whole licences
  external: ["*.svg"], // copied as a separate file
  metafile: true,
  logLevel: "warning",
}).catch(() => process.exit(1)); // esbuild has said why
// The server reads the English words, to check those of other languages.
for (const name of ["index.html", "admin.html", "admin.css", "icon.svg", "words.en.json"]) copyFileSync(`src/${name}`, `${out}/${name}`);

const folders = new Set();
for (const output of Object.values(metafile.outputs)) {
  for (const [path, { bytesInOutput }] of Object.entries(output.inputs)) {
    const match = /^(?:.*\/)?node_modules\/(?:@[^/]+\/)?[^/]+/.exec(path);
    if (match !== null && bytesInOutput > 0) folders.add(match[0]);
  }
}

const packages = {};
const licences = [];
for (const folder of [...folders].sort()) {
  const { name, version, license, author } = JSON.parse(readFileSync(`${folder}/package.json`, "utf8"));
  const file = readdirSync(folder).find((entry) => /^licen[cs]e/i.test(entry));
  // Some packages have no copy of their licence, only its name.
  const text = file === undefined ? `By ${author?.name ?? author}` : readFileSync(`${folder}/${file}`, "utf8").trim();
  packages[name] = version;
  licences.push(`${name} ${version} (${license})\n\n${text}\n`);
}
writeFileSync(`${out}/packages.json`, JSON.stringify(packages, null, 2) + "\n");
writeFileSync(`${out}/licences.txt`, licences.join(`\n${"-".repeat(72)}\n\n`));
