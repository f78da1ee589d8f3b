// Loading what the URL specifies: results of a search, videos like one, or the newest; page by page.

import { NO_FILTERS } from "./address.js";
import { call, Failure, pause, send, videoPath } from "./api.js";
import { byId, element, named, show } from "./dom.js";
import { numActive, showChips, toFilter } from "./filters.js";
import { capital, count, fileName, nameOf } from "./format.js";
import { chooseFile, fileOf, searchByFile } from "./media.js";
import { hideNotice, showNotice } from "./notice.js";
import { focusCardAt, shownItems, showItems, showWaiting } from "./results.js";

const PAGE_SIZE = 24;
const MOST_MOMENTS = 64; // As many as frames are sampled, so that the timeline has all of them.
const MOST_OFFSET = 10000; // The server's largest offset.
const MOST_TRIES = 3;
const RETRY_SECONDS = 3;

const statusLine = byId("status");
const moreNote = byId("more-note");
const warnings = byId("warnings");
const more = byId("more");
const results = byId("results");

let state = null;
let go = () => {};
let items = [];
let next = null;
let likeItem = null;
let running = new AbortController();
let isOutOfReach = false;

export const currentItems = () => items;

// `bad` for what went wrong, `unseen` (for screen readers only) where a notice shows the same.
function say(text, ...kinds) {
  statusLine.textContent = text;
  statusLine.className = kinds.join(" ");
}

// A notice takes the place of the results.
function stop(title, text, actions = [], isBad = false) {
  items = [];
  showItems(items);
  showNotice(title, text, actions, isBad);
  say(`${title}. ${text}`, "unseen", ...(isBad ? ["bad"] : []));
}

function showWarnings(texts) {
  warnings.replaceChildren(...texts.map((text) => named("li", "", capital(text))));
  show(warnings, texts.length > 0);
}

export function warn(text) {
  warnings.append(element("li", "", text));
  show(warnings, true);
}

const withFilter = (filters) => {
  const filter = toFilter(filters);
  return filter === null ? "" : `&filter=${encodeURIComponent(JSON.stringify(filter))}`;
};

// The offset of the next page, or null behind the last one.
function offsetBehind(offset, found) {
  const end = offset + PAGE_SIZE;
  return found.length < PAGE_SIZE || end > MOST_OFFSET ? null : end;
}

async function searchPage(after, signal) {
  const offset = after ?? 0;
  const body = { query: state.query, limit: PAGE_SIZE, offset, num_moments: MOST_MOMENTS };
  const filter = toFilter(state.filters);
  if (filter !== null) body.filter = filter;
  if (state.filters.without) body.not = state.filters.without;
  else if (state.filters.strong) body.min_percentile = Number(state.filters.strong);
  if (state.filters.words) body.text_match = state.filters.words;
  if (!state.filters.copies) body.fold = true;
  const answer = await send("search", "POST", body, signal);
  const milliseconds = Math.max(1, Math.round(1000 * answer.timings.total_seconds));
  return {
    found: answer.results,
    next: offsetBehind(offset, answer.results),
    warnings: answer.warnings,
    status: `${count(answer.num_videos, "video")} searched in ${milliseconds} ms`,
    total: answer.num_videos,
    isPoor: offset === 0 && ["weak", "none"].includes(answer.results[0]?.match),
  };
}

async function similarPage(after, signal) {
  if (likeItem?.id !== state.like) likeItem = await call(videoPath(state.like), { signal });
  const offset = after ?? 0;
  const path = `${videoPath(state.like)}/similar?limit=${PAGE_SIZE}&offset=${offset}${withFilter(state.filters)}`
    + (state.filters.copies ? "" : "&fold=true");
  const answer = await call(path, { signal });
  return {
    found: answer.results,
    next: offsetBehind(offset, answer.results),
    warnings: [],
    status: `Videos like “${nameOf(likeItem)}”`,
    total: answer.num_videos,
  };
}

async function mediaPage(after, signal) {
  const offset = after ?? 0;
  const file = fileOf(state.file);
  if (file === null) throw new Failure("The picture or clip was in the memory of a page that is closed. Choose it again.", { kind: "file-gone" });
  const answer = await searchByFile(file, state.filters, PAGE_SIZE, offset, signal);
  return {
    found: answer.results,
    next: offsetBehind(offset, answer.results),
    warnings: answer.warnings,
    status: `Videos that look like “${fileName(state.file)}”`,
    total: answer.num_videos,
  };
}

async function newestPage(after, signal) {
  const from = after === null ? "" : `&after=${after}`;
  const answer = await call(`videos?limit=${PAGE_SIZE}${from}${withFilter(state.filters)}`, { signal });
  return {
    found: answer.videos,
    next: answer.next,
    warnings: [],
    status: toFilter(state.filters) === null ? "Newest videos" : "Newest videos that match the filters",
    total: answer.videos.length,
  };
}

function loadPage(after, signal) {
  if (state.file) return mediaPage(after, signal);
  if (state.like) return similarPage(after, signal);
  return state.query ? searchPage(after, signal) : newestPage(after, signal);
}

const again = ["Try again", () => load(state)];
const newest = ["Show the newest videos", () => go({ query: "", like: "", file: "", filters: NO_FILTERS })];

// Retries while the server is starting or unreachable, and a few times while it is busy.
async function loadRetrying(after, signal) {
  for (let tries = 0; ; tries += 1) {
    try {
      return await loadPage(after, signal);
    } catch (error) {
      const isFirst = after === null;
      const isStarting = isFirst && error.kind === "not-ready";
      isOutOfReach = isFirst && error.kind === "offline";
      if (!isStarting && !isOutOfReach && !(error.isBusy && tries < MOST_TRIES)) throw error;
      const seconds = Math.min(error.retryAfter ?? RETRY_SECONDS, 10);
      if (isStarting) stop("Getting ready", "Model and index are being loaded. This page continues by itself.");
      else if (isOutOfReach) stop("Server not reachable", `${error.message} This page continues by itself.`, [again], true);
      else (isFirst ? statusLine : moreNote).textContent = `The server is busy. Trying again in ${Math.ceil(seconds)} s…`;
      await pause(1000 * seconds);
      signal.throwIfAborted();
    }
  }
}

// Some video is always the nearest: where chance alone would give as much, the results wait behind a button.
function hideBehindNotice() {
  const reveal = () => {
    hideNotice();
    show(results, true);
    show(more, next !== null);
    focusCardAt(0);
  };
  show(results, false);
  show(more, false);
  showNotice("Nothing matches well", "No video of the index stands out for this description. Say it in other words, or look at the nearest ones.", [
    ["Show the nearest videos", reveal], newest,
  ]);
}

function nothingFound(total) {
  if (numActive(state.filters)) {
    stop("Nothing matches the filters", "Remove one of them above, or all:", [
      ["Clear all filters", () => go({ filters: NO_FILTERS })], newest,
    ]);
  } else if (state.like) {
    stop("Nothing found", "This is the only video of the index.", [newest]);
  } else if (!total) {
    stop("There are no videos yet", "Drop some here, or choose files. They can be searched once they have been read.", [
      ["Upload videos", () => byId("open-upload").click()],
    ]);
  } else {
    stop("Nothing found", "Describe what the video shows in a few plain words: who or what, doing what, where.", [newest]);
  }
}

function failed(error, isMore) {
  const text = error instanceof Failure ? error.message : "Something went wrong on this page.";
  if (isMore) moreNote.textContent = text;
  else if (error.needsKey) stop("A key is needed", text, [["Sign in", () => load(state)]], true);
  else if (error.kind === "file-gone") stop("No longer available", text, [["Choose a file", chooseFile], newest], true);
  else if (error.kind === "media-rejected" || error.status === 413) stop("This file cannot be searched with", text, [["Choose another", chooseFile], newest], true);
  else if (error.kind === "video-not-found") stop("No longer available", text, [newest], true);
  else stop(error.isBusy ? "The server is busy" : "Something went wrong", text, [again], true);
  if (!(error instanceof Failure)) throw error;
}

async function run(isMore) {
  running.abort();
  running = new AbortController();
  const { signal } = running;
  const focusWasOnMore = document.activeElement === more;
  more.disabled = true;
  moreNote.textContent = "";
  try {
    const page = await loadRetrying(isMore ? next : null, signal);
    if (signal.aborted) return;
    isOutOfReach = false;
    const numBefore = isMore ? items.length : 0;
    // When videos were added meanwhile, a page may repeat some that are shown already.
    const shown = new Set(isMore ? items.map((item) => item.id) : []);
    items = (isMore ? items : []).concat(page.found.filter((item) => !shown.has(item.id)));
    next = page.next;
    hideNotice();
    say(page.status);
    showWarnings(page.warnings);
    showItems(items);
    showChips(state, likeItem, go);
    show(more, next !== null);
    if (!items.length) nothingFound(page.total);
    else if (!isMore && page.isPoor) hideBehindNotice();
    if (focusWasOnMore && (items.length > numBefore || more.hidden)) focusCardAt(Math.min(numBefore, items.length - 1));
  } catch (error) {
    if (!signal.aborted) failed(error, isMore);
  } finally {
    if (!signal.aborted) more.disabled = false;
  }
}

export function load(wanted) {
  state = wanted;
  items = [];
  next = null;
  hideNotice();
  show(results, true);
  show(more, false);
  showWarnings([]);
  showChips(state, likeItem?.id === state.like ? likeItem : null, go);
  say(state.query || state.like || state.file ? "Searching…" : "");
  if (!shownItems().length) showWaiting(8);
  else results.setAttribute("aria-busy", "true");
  return run(false);
}

// Videos that are new, before those that are shown, where the newest are what is shown.
export async function refreshNewest() {
  if (!state || state.query || state.like || state.file) return;
  if (!items.length) {
    await run(false);
    return;
  }
  const { signal } = running;
  const page = await newestPage(null, signal).catch(() => null); // Then the next poll shows them.
  if (page === null || signal.aborted) return;
  const known = new Set(items.map((item) => item.id));
  items = page.found.filter((item) => !known.has(item.id)).concat(items);
  showItems(items);
}

export function forgetItem(id) {
  items = items.filter((item) => item.id !== id);
  if (!items.length) run(false);
}

export function setUpSearch(goTo) {
  go = goTo;
  more.addEventListener("click", () => run(true));
  addEventListener("online", () => { if (isOutOfReach) load(state); });
}
