// Loading what the address asks for: results of a search, videos like one, or the newest; page by page.

import { NO_FILTERS } from "./address.js";
import { call, Failure, pause, send, videoPath } from "./api.js";
import { byId, named, show } from "./dom.js";
import { numActive, showChips, toFilter } from "./filters.js";
import { count, nameOf } from "./format.js";
import { hideNotice, showNotice } from "./notice.js";
import { focusCardAt, shownItems, showItems, showWaiting } from "./results.js";

const PAGE_SIZE = 24;
const MOST_MOMENTS = 64; // As many as frames are sampled, so that the timeline has all of them.
const MOST_TRIES = 3;

const statusLine = byId("status");
const warnings = byId("warnings");
const more = byId("more");
const results = byId("results");

let state = null;
let go = () => {};
let items = [];
let next = null;
let likeItem = null;
let running = new AbortController();

export const currentItems = () => items;

function say(text, bad = false) {
  statusLine.textContent = text;
  statusLine.classList.toggle("bad", bad);
}

function showWarnings(texts) {
  warnings.replaceChildren(...texts.map((text) => named("li", "", text.charAt(0).toUpperCase() + text.slice(1))));
  show(warnings, texts.length > 0);
}

const withFilter = (filters) => {
  const filter = toFilter(filters);
  return filter === null ? "" : `&filter=${encodeURIComponent(JSON.stringify(filter))}`;
};

async function searchPage(signal) {
  const body = { query: state.query, limit: PAGE_SIZE, num_moments: MOST_MOMENTS };
  const filter = toFilter(state.filters);
  if (filter !== null) body.filter = filter;
  if (state.filters.strong) body.min_percentile = Number(state.filters.strong);
  if (next !== null) body.cursor = next;
  const answer = await send("search", "POST", body, signal);
  const milliseconds = Math.max(1, Math.round(1000 * answer.timings.total_seconds));
  return {
    found: answer.results,
    next: answer.next ?? null,
    warnings: answer.warnings,
    status: `${count(answer.num_videos, "video")} searched in ${milliseconds} ms`,
    total: answer.num_videos,
  };
}

async function similarPage(signal) {
  if (likeItem?.id !== state.like) likeItem = await call(videoPath(state.like), { signal });
  const offset = next ?? 0;
  const path = `${videoPath(state.like)}/similar?limit=${PAGE_SIZE}&offset=${offset}${withFilter(state.filters)}`;
  const answer = await call(path, { signal });
  const isLast = answer.results.length < PAGE_SIZE;
  return {
    found: answer.results,
    next: isLast ? null : offset + PAGE_SIZE,
    warnings: [],
    status: `Videos like “${nameOf(likeItem)}”`,
    total: answer.num_videos,
  };
}

async function newestPage(signal) {
  const after = next === null ? "" : `&after=${next}`;
  const answer = await call(`videos?limit=${PAGE_SIZE}${after}${withFilter(state.filters)}`, { signal });
  const isFiltered = toFilter(state.filters) !== null;
  return {
    found: answer.videos,
    next: answer.next,
    warnings: [],
    status: answer.videos.length ? (isFiltered ? "Newest videos that fulfil the filters" : "Newest videos") : "",
    total: answer.videos.length || (isFiltered ? 1 : 0),
  };
}

function loadPage(signal) {
  if (state.like) return similarPage(signal);
  return state.query ? searchPage(signal) : newestPage(signal);
}

// Again and again while the server is starting, a few times while it has too much to do.
async function patiently(signal) {
  for (let tries = 0; ; tries += 1) {
    try {
      return await loadPage(signal);
    } catch (error) {
      const isStarting = error.kind === "not-ready";
      if (!isStarting && !(error.isPassing && tries < MOST_TRIES)) throw error;
      const seconds = Math.min(error.retryAfter ?? 1, 10);
      if (isStarting) {
        results.replaceChildren();
        showNotice("Getting ready", "Model and index are being loaded. This page goes on by itself.");
        say("Getting ready…");
      } else {
        say(`The server is busy. Trying again in ${Math.ceil(seconds)} s…`);
      }
      await pause(1000 * seconds);
      signal.throwIfAborted();
    }
  }
}

function nothingFound(total) {
  const openUpload = ["Upload videos", () => byId("open-upload").click()];
  const newest = ["Show the newest videos", () => go({ query: "", like: "", filters: NO_FILTERS })];
  if (numActive(state.filters)) {
    showNotice("Nothing fulfils the filters", "Remove one of them above, or all:", [
      ["Clear all filters", () => go({ filters: NO_FILTERS })], newest,
    ]);
  } else if (!total) {
    showNotice("There are no videos yet", "Drop some here, or choose files. They can be searched once they have been read.",
      [openUpload]);
  } else {
    const help = state.like
      ? "This is the only video of the index."
      : "Describe what is to be seen, in a few plain words: who or what, doing what, where.";
    showNotice("Nothing found", help, [newest]);
  }
}

function failed(error, isMore) {
  say(error instanceof Failure ? error.message : "Something went wrong on this page.", true);
  if (!(error instanceof Failure)) throw error;
  if (isMore) return;
  results.replaceChildren();
  const titles = { offline: "Out of reach", overloaded: "Too much to do", unauthorized: "A key is needed" };
  const title = titles[error.kind] || (error.isPassing ? titles.overloaded : "This did not work");
  showNotice(title, error.message, [[error.status === 401 ? "Sign in" : "Try again", () => load(state)]], true);
}

async function run(isMore) {
  running.abort();
  running = new AbortController();
  const { signal } = running;
  const hadFocus = document.activeElement === more;
  more.disabled = true;
  try {
    const page = await patiently(signal);
    if (signal.aborted) return;
    const numBefore = isMore ? items.length : 0;
    items = isMore ? items.concat(page.found) : page.found;
    next = page.next;
    hideNotice();
    say(page.status);
    showWarnings(page.warnings);
    showItems(items);
    showChips(state, likeItem, go);
    show(more, next !== null);
    if (!items.length) nothingFound(page.total);
    if (isMore && hadFocus && items.length > numBefore) focusCardAt(numBefore);
    else if (hadFocus && more.hidden) focusCardAt(items.length - 1);
  } catch (error) {
    if (signal.aborted) return;
    results.removeAttribute("aria-busy");
    failed(error, isMore);
  } finally {
    if (!signal.aborted) more.disabled = false;
  }
}

export function load(wanted) {
  state = wanted;
  items = [];
  next = null;
  hideNotice();
  show(more, false);
  showWarnings([]);
  showChips(state, likeItem?.id === state.like ? likeItem : null, go);
  say(state.query || state.like ? "Searching…" : "");
  if (!shownItems().length) showWaiting(8);
  else results.setAttribute("aria-busy", "true");
  return run(false);
}

// The newest videos once more, where they are what is shown.
export function refreshNewest() {
  if (state && !state.query && !state.like) {
    next = null;
    run(false);
  }
}

export function forgetItem(id) {
  items = items.filter((item) => item.id !== id);
}

export function setUpSearch(goTo) {
  go = goTo;
  more.addEventListener("click", () => run(true));
  addEventListener("online", () => {
    if (statusLine.classList.contains("bad")) load(state);
  });
}
