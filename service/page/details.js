// What is known about a video: shown, changed, and the video deleted.

import { call, send, videoPath } from "./api.js";
import { button, byId, closable, element, named, once, show } from "./dom.js";
import { day, lengthText, nameOf, plain, size } from "./format.js";

const LONG_TITLE = 60; // The head of the player may truncate such a title.

const edit = closable(byId("edit"));
const confirmation = closable(byId("confirm"));

function row(term, ...description) {
  return [named("dt", "", term), named("dd", "", ...description)];
}

// A part of a URI as text; unchanged where its bytes are not UTF-8.
function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

function facts(video) {
  const rows = [
    ...row("Length", lengthText(video.duration_seconds)),
    ...row("Picture", `${video.width} × ${video.height}, ${Number(video.frame_rate.toFixed(2))} per second, ${video.codec}`),
    ...row("File", size(video.size_bytes)),
    ...(video.recorded_at ? row("Recorded", day(video.recorded_at)) : []),
    ...row("Added", day(video.added_at)),
    ...row("Id", video.id),
  ];
  if (video.title?.length > LONG_TITLE) rows.unshift(...row("Title", video.title));
  if (video.uri) {
    const place = named("span", "", decoded(video.uri.replace(/.*[/\\](?=[^/\\])/, "")));
    place.title = video.uri;
    rows.push(...row("From", place));
  }
  if (video.partial) rows.push(...row("Read", `${Math.floor(100 * video.fraction_read)} %: the file is damaged or incomplete`));
  return rows;
}

// onFilter: called with a key and a value as text.
export async function showDetails(section, id, onFilter) {
  section.replaceChildren(element("p", "quiet", "…"));
  const video = await call(videoPath(id));
  const parts = [element("h3", "", "Details"), element("dl", "facts-list", ...facts(video))];
  const entries = Object.entries(video.metadata);
  if (entries.length) {
    const rows = entries.flatMap(([key, value]) => {
      const text = plain(value);
      const isPlain = value === null || typeof value !== "object";
      const pick = button(text, () => onFilter(key, text), "link");
      pick.title = "Only videos with this";
      pick.dir = "auto";
      const isNameable = !/["\\.]/.test(key);
      return [named("dt", "", key), element("dd", "", isPlain && isNameable ? pick : named("span", "", text))];
    });
    parts.push(element("h3", "", "Metadata"), element("dl", "facts-list", ...rows));
  }
  section.replaceChildren(...parts);
  return video;
}

const isObject = (value) => value !== null && typeof value === "object" && !Array.isArray(value);

// The merge patch (RFC 7396) from `from` to `to`: only what differs, null for what was removed.
export function mergePatch(from, to) {
  const patch = {};
  for (const key of Object.keys(from)) if (!(key in to)) patch[key] = null;
  for (const [key, value] of Object.entries(to)) {
    if (JSON.stringify(from[key]) === JSON.stringify(value)) continue;
    patch[key] = isObject(value) && isObject(from[key]) ? mergePatch(from[key], value) : value;
  }
  return patch;
}

function readMetadata(text) {
  if (!text.trim()) return {};
  let value;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new Error(`The metadata is not JSON: ${error.message}`);
  }
  if (!isObject(value)) throw new Error("The metadata must be an object: {\"key\": \"value\"}.");
  return value;
}

// Resolves with the changed video, or null.
export function editVideo(video) {
  const form = edit.querySelector("form");
  const problem = form.querySelector("[role=alert]");
  form.elements.title.value = video.title ?? "";
  form.elements.metadata.value = JSON.stringify(video.metadata, null, 2);
  show(problem, false);
  return new Promise((resolve) => {
    let changed = null;
    async function save() {
      try {
        const patch = { title: form.elements.title.value.trim() || null };
        const metadata = mergePatch(video.metadata, readMetadata(form.elements.metadata.value));
        if (Object.keys(metadata).length) patch.metadata = metadata;
        changed = await send(videoPath(video.id), "PATCH", patch);
        edit.close();
      } catch (error) {
        problem.textContent = error.message;
        show(problem, true);
      }
    }
    function submit(event) {
      event.preventDefault();
      once(form.querySelector("[type=submit]"), save);
    }
    form.addEventListener("submit", submit);
    edit.addEventListener("close", () => {
      form.removeEventListener("submit", submit);
      resolve(changed);
    }, { once: true });
    edit.showModal();
    form.elements.title.focus();
  });
}

export function confirm(title, text, action) {
  byId("confirm-title").textContent = title;
  byId("confirm-text").textContent = text;
  confirmation.querySelector(".danger").textContent = action;
  confirmation.returnValue = "";
  return new Promise((resolve) => {
    confirmation.addEventListener("close", () => resolve(confirmation.returnValue === "yes"), { once: true });
    confirmation.showModal();
  });
}

// Resolves with whether it was deleted. control: the button, disabled meanwhile.
export async function deleteVideo(video, control) {
  const what = video.uri
    ? "It will no longer be found. Its file is kept."
    : "It will no longer be found, and its uploaded file is deleted too. This cannot be undone.";
  if (!(await confirm(`Delete “${nameOf(video)}”?`, what, "Delete"))) return false;
  await once(control, () => call(videoPath(video.id), { method: "DELETE" }));
  return true;
}
