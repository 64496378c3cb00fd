// The files of a drop, those in folders included.

/** Return the files that were dropped. Their names have no folder. */
export async function droppedFiles({ items, files }) {
  // The items are gone as soon as the event's handler returns, so ask them all at once. Only
  // what may be a folder is asked, because that takes the browser a moment for each.
  const asked = [...items].filter(({ kind }) => kind === "file");
  const entries = [...files].map((file, index) => {
    if (file.type !== "" || asked.length !== files.length) return file;
    const entry = asked[index].webkitGetAsEntry?.();
    return entry?.isDirectory ? entry : file;
  });
  const found = [];
  for (const entry of entries) {
    if (entry instanceof File) found.push(entry);
    else await collect(entry, found);
  }
  return found;
}

async function collect(entry, found) {
  if (entry.isFile) {
    // A file that cannot be read is left out by all browsers' own dialogs, too.
    const file = await new Promise((resolve) => entry.file(resolve, () => resolve(null)));
    if (file !== null) found.push(file);
  } else if (entry.isDirectory) {
    const reader = entry.createReader();
    for (;;) {
      const some = await new Promise((resolve) => reader.readEntries(resolve, () => resolve([])));
      if (some.length === 0) break; // it gives at most a hundred at a time
      for (const each of some) await collect(each, found);
    }
  }
}
