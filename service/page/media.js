// Searching with a picture or a clip: chosen, taken, pasted or dropped. The file stays in this page's memory only.

import { call } from "./api.js";
import { byId } from "./dom.js";
import { toFilter } from "./filters.js";

const input = byId("media-file");
const kept = new Map(); // From what an address says to the file.

// What an address says of a file. A later visit of the address does not have the file any more.
function keep(file) {
  const name = `${kept.size + 1}.${file.name || "picture"}`;
  kept.set(name, file);
  return name;
}

export const fileOf = (name) => kept.get(name) ?? null;

export function chooseFile() {
  input.click();
}

export function searchByFile(file, filters, limit, offset, signal) {
  const body = new FormData();
  body.append("limit", String(limit));
  body.append("offset", String(offset));
  const filter = toFilter(filters);
  if (filter !== null) body.append("filter", JSON.stringify(filter));
  if (!filters.copies) body.append("fold", "true");
  body.append("file", file);
  return call("search/media", { method: "POST", body, signal });
}

export const isPicture = (file) => file.type.startsWith("image/");

// onFile: called with what an address says of a file that was given.
export function setUpMedia(onFile) {
  const take = (file) => onFile(keep(file));
  byId("ask-media").addEventListener("click", chooseFile);
  input.addEventListener("change", () => {
    const [file] = input.files;
    input.value = "";
    if (file) take(file);
  });
  document.addEventListener("paste", (event) => {
    const file = [...(event.clipboardData?.files ?? [])].find((other) => isPicture(other) || other.type.startsWith("video/"));
    if (!file || document.querySelector("dialog[open]")) return;
    event.preventDefault();
    take(file);
  });
  return take;
}
