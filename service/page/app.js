// The search page: connects the parts and follows the URL.

import { readAddress, sameList, writeAddress } from "./address.js";
import { call, videoPath } from "./api.js";
import { byId, closable } from "./dom.js";
import { setUpFilters } from "./filters.js";
import { bestTime } from "./format.js";
import { closeJobs, openJobs, refreshJobs, setUpJobs } from "./jobs.js";
import { isPicture, setUpMedia } from "./media.js";
import { closePlayer, openPlayer, playedId, setUpPlayer } from "./player.js";
import { focusCard, removeItem, replaceItem, setUpResults } from "./results.js";
import { setUpHelp } from "./scores.js";
import { currentItems, forgetItem, load, refreshNewest, setUpSearch, warn } from "./search.js";
import { allows, setUpSession } from "./session.js";
import { setUpUploads } from "./uploads.js";

const query = byId("query");
let state = readAddress();

// Change what is shown, and the address with it. A new list begins at its top.
function go(changes) {
  const wanted = { ...state, video: "", time: null, ...changes };
  if (writeAddress(wanted) !== writeAddress(state)) history.pushState(null, "", writeAddress(wanted));
  if (!sameList(wanted, state)) scrollTo(0, 0);
  follow(wanted);
}

async function follow(wanted, reload = false) {
  const isNewList = reload || !sameList(wanted, state);
  state = wanted;
  showView();
  if (document.activeElement !== query || isNewList) query.value = state.query;
  document.title = state.query ? `${state.query} – xclip-search` : "xclip-search";
  if (!state.video) closePlayer();
  if (isNewList) {
    const loading = load(state);
    if (state.video) await loading;
  }
  if (state.video && state.video !== playedId()) await showVideo();
}

// Show what the URL says; it may change by back or forward while a request runs.
async function showVideo() {
  const id = state.video;
  let item = currentItems().find((other) => other.id === id);
  if (!item) {
    try {
      item = await call(videoPath(id));
    } catch (error) {
      if (state.video !== id) return;
      leaveVideo();
      warn(error.message);
      return;
    }
  }
  if (state.video === id) openPlayer(item, state.time ?? bestTime(item), askedText());
}

// The player explains a text's match, of which there is none where something else was searched with.
function askedText() {
  return state.like || state.file ? "" : state.query;
}

function leaveVideo() {
  state = { ...state, video: "", time: null };
  history.replaceState(null, "", writeAddress(state));
}

// A model of one language says which.
async function nameLanguage() {
  if (!allows("read")) return;
  const { search } = await call("stats").catch(() => ({ search: {} })); // While it starts; the search says so.
  if (!search.language) return;
  query.placeholder = `Describe what the video shows, in ${search.language}`;
  query.setAttribute("aria-label", query.placeholder);
}

function showView() {
  byId("results").classList.toggle("as-list", state.view === "list");
  byId("view-grid").setAttribute("aria-pressed", String(state.view === "grid"));
  byId("view-list").setAttribute("aria-pressed", String(state.view === "list"));
}

function play(item, seconds) {
  const wanted = { ...state, video: item.id, time: seconds };
  // Stepping through videos adds no history entries.
  if (state.video) history.replaceState(history.state, "", writeAddress(wanted));
  else history.pushState({ isPlayer: true }, "", writeAddress(wanted));
  state = wanted;
  openPlayer(item, seconds, askedText());
}

function playerClosed(id) {
  if (state.video && history.state?.isPlayer) {
    state = { ...state, video: "", time: null };
    history.back();
  } else if (state.video) {
    leaveVideo();
  }
  if (!document.querySelector("dialog[open]")) focusCard(id);
}

function showById(id) {
  closeJobs();
  go({ video: id });
}

byId("search").addEventListener("submit", (event) => {
  event.preventDefault();
  const wanted = { query: query.value.trim(), like: "", file: "" };
  if (sameList({ ...state, ...wanted }, state)) follow(state, true);
  else go(wanted);
});
byId("home").addEventListener("click", (event) => {
  if (event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  go(readAddress(""));
  query.focus();
});
byId("view-grid").addEventListener("click", () => go({ view: "grid" }));
byId("view-list").addEventListener("click", () => go({ view: "list" }));
addEventListener("popstate", () => follow(readAddress()));

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || document.querySelector("dialog[open]")) return;
  const isTyping = event.target.matches("input:not([type=file]), textarea, select");
  if (event.key === "/" && !isTyping) {
    event.preventDefault();
    query.focus();
    query.select();
  } else if (event.key === "ArrowDown" && event.target === query) {
    event.preventDefault();
    focusCard();
  }
});

setUpHelp();
closable(byId("help"));
setUpResults(
  play,
  (item) => go({ like: item.id, query: "", file: "" }),
  () => go({ filters: { ...state.filters, copies: "all" } }),
);
setUpFilters(() => state, go);
setUpSearch(go);
setUpPlayer({
  items: currentItems,
  onMoment: (seconds) => {
    state = { ...state, time: seconds };
    history.replaceState(history.state, "", writeAddress(state));
  },
  onStep: (item) => play(item, bestTime(item)),
  onSimilar: (item) => go({ like: item.id, query: "", file: "" }),
  onFilter: (key, value) => {
    const others = state.filters.metadata.filter((pair) => pair.key !== key || pair.value !== value);
    go({ filters: { ...state.filters, metadata: [...others, { key, value }] } });
  },
  onChanged: (video) => replaceItem(video.id, { title: video.title, metadata: video.metadata }),
  onDeleted: (id) => {
    removeItem(id);
    forgetItem(id);
    focusCard();
  },
  onClosed: playerClosed,
});
setUpJobs(showById);
const searchWith = setUpMedia((file) => go({ file, like: "", query: "" }));
setUpUploads({
  onAccepted: refreshJobs,
  onDropped: openJobs,
  // A picture cannot be added: it is searched with.
  takeInstead: (files) => {
    const isOne = files.length === 1 && isPicture(files[0]);
    if (isOne) searchWith(files[0]);
    return isOne;
  },
  onDone: refreshNewest,
  onShow: showById,
});
await setUpSession(() => refreshJobs());
follow(state, true);
refreshJobs();
nameLanguage();
