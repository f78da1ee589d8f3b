// The search page. Everything that comes from outside is set as text, never as markup.
"use strict";

const PAGE_SIZE = 24;
const SCORE_LABELS = {
  video_sentence: "video – sentence",
  sentence_frame: "sentence – frames",
  video_word: "video – words",
  frame_word: "frames – words",
};

const byId = (id) => document.getElementById(id);
const [form, query, statusLine, warnings, results, empty, more, jobs, files, player, video] = [
  "search", "query", "status", "warnings", "results", "empty", "more", "jobs", "files", "player", "video",
].map(byId);

let current = { text: "", shown: [], cursor: null, request: 0 };

// Talking to the server

async function call(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("The server cannot be reached.");
  }
  const body = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(body.detail || `The server answered ${response.status}.`);
  return body;
}

function search(text, offset) {
  return call("search", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ query: text, limit: PAGE_SIZE, offset }),
  });
}

// Showing

function clock(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  const parts = [Math.floor(whole / 60) % 60, whole % 60].map((n) => String(n).padStart(2, "0"));
  const hours = Math.floor(whole / 3600);
  return hours ? `${hours}:${parts.join(":")}` : `${Number(parts[0])}:${parts[1]}`;
}

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function say(text, bad = false) {
  statusLine.textContent = text;
  statusLine.classList.toggle("bad", bad);
}

function scoreRanges(shown) {
  const ranges = {};
  for (const name of Object.keys(SCORE_LABELS)) {
    const values = shown.map((result) => result.scores[name]).filter((value) => value !== null);
    if (values.length) ranges[name] = [Math.min(...values), Math.max(...values)];
  }
  return ranges;
}

// Scores have no fixed scale, so a bar says where a result stands between the worst and the best one shown.
function fillBars(list, scores, ranges) {
  list.title = "Each bar: between the worst and the best result shown";
  const rows = [];
  for (const [name, label] of Object.entries(SCORE_LABELS)) {
    if (scores[name] === null || !ranges[name]) continue;
    const [low, high] = ranges[name];
    const fill = element("div", "fill");
    fill.style.width = `${high > low ? 6 + (94 * (scores[name] - low)) / (high - low) : 100}%`;
    const track = element("div", "track");
    track.append(fill);
    const bar = element("dd");
    bar.append(track);
    rows.push(element("dt", "", label), bar, element("dd", "value", scores[name].toFixed(1)));
  }
  list.replaceChildren(...rows);
}

function momentLinks(item, play) {
  const moments = [...(item.moments || [])].sort((a, b) => a.time_seconds - b.time_seconds);
  return moments.map((moment) => {
    const link = element("a", moment === item.moments[0] ? "best" : "", clock(moment.time_seconds));
    link.href = `${item.media_url}#t=${moment.time_seconds}`;
    link.title = `Play from ${clock(moment.time_seconds)} (match ${moment.score.toFixed(1)})`;
    link.addEventListener("click", (event) => {
      event.preventDefault();
      play(moment.time_seconds);
    });
    const entry = element("li");
    entry.append(link);
    return entry;
  });
}

function nameOf(item) {
  return item.title || item.id;
}

function card(item, ranges) {
  const made = byId("card").content.firstElementChild.cloneNode(true);
  const best = item.moments && item.moments.length ? item.moments[0].time_seconds : 0;
  const picture = made.querySelector(".picture");
  const image = made.querySelector("img");
  image.addEventListener("error", () => picture.classList.add("blank"));
  image.src = item.thumbnail_url;
  picture.setAttribute("aria-label", `Play ${nameOf(item)} from ${clock(best)}`);
  picture.addEventListener("click", () => play(item, best));
  made.querySelector(".length").textContent = item.moments
    ? `${clock(best)} / ${clock(item.duration_seconds)}`
    : clock(item.duration_seconds);
  const title = made.querySelector(".title");
  title.textContent = nameOf(item);
  title.title = nameOf(item);
  if (item.score === undefined) {
    for (const part of made.querySelectorAll(".score, .bars, .moments")) part.remove();
  } else {
    made.querySelector(".score").textContent = item.score.toFixed(1);
    fillBars(made.querySelector(".bars"), item.scores, ranges);
    made.querySelector(".moments").replaceChildren(...momentLinks(item, (time) => play(item, time)));
  }
  return made;
}

function show(items) {
  const ranges = items.length && items[0].scores ? scoreRanges(items) : {};
  results.replaceChildren(...items.map((item) => card(item, ranges)));
}

function showEmpty(text) {
  empty.hidden = !text;
  empty.textContent = text || "";
}

function showWarnings(texts) {
  warnings.hidden = !texts.length;
  warnings.replaceChildren(...texts.map((text) => element("li", "", text)));
}

// Playing

function play(item, time) {
  byId("player-title").textContent = nameOf(item);
  byId("video-error").hidden = true;
  byId("video-link").href = item.media_url;
  const jump = (seconds) => {
    video.currentTime = seconds;
    video.play().catch(() => {});
  };
  byId("player-moments").replaceChildren(...momentLinks(item, jump));
  // Where the browser cannot play the file, the picture of the moment is at least there.
  video.poster = `${item.media_url.replace(/media$/, "thumbnail")}?time_seconds=${time}&width=960`;
  video.src = `${item.media_url}#t=${time}`;
  if (!player.open) player.showModal();
  video.play().catch(() => {});
}

player.addEventListener("close", () => {
  video.pause();
  video.removeAttribute("src");
  video.removeAttribute("poster");
  video.load();
});
player.addEventListener("click", (event) => {
  if (event.target === player) player.close();
});
byId("player-close").addEventListener("click", () => player.close());
video.addEventListener("error", () => {
  if (video.hasAttribute("src")) byId("video-error").hidden = false;
});

// Searching and browsing

async function load(add) {
  const request = ++current.request;
  const text = current.text;
  more.disabled = true;
  if (!add) {
    say(text ? "Searching…" : "");
    showEmpty("");
    showWarnings([]);
    more.hidden = true;
  }
  try {
    const page = text ? await loadResults(text, add) : await loadNewest(add);
    if (request !== current.request) return;
    current.shown = add ? current.shown.concat(page.items) : page.items;
    current.cursor = page.cursor;
    more.hidden = !page.more;
    say(page.status);
    showWarnings(page.warnings);
    show(current.shown);
    if (!current.shown.length) showEmpty(page.empty);
  } catch (error) {
    if (request !== current.request) return;
    say(error.message, true);
    if (!add) results.replaceChildren();
  } finally {
    if (request === current.request) more.disabled = false;
  }
}

async function loadResults(text, add) {
  const answer = await search(text, add ? current.shown.length : 0);
  const total = answer.num_videos;
  const milliseconds = Math.round(1000 * answer.timings.total_seconds);
  return {
    items: answer.results,
    cursor: null,
    more: answer.results.length === PAGE_SIZE,
    warnings: answer.warnings,
    status: `${total} ${total === 1 ? "video" : "videos"} searched in ${milliseconds} ms`,
    empty: total ? "Nothing found." : "There are no videos yet. Upload one to search it.",
  };
}

async function loadNewest(add) {
  const after = add && current.cursor !== null ? `&after=${current.cursor}` : "";
  const answer = await call(`videos?limit=${PAGE_SIZE}${after}`);
  return {
    items: answer.videos,
    cursor: answer.next,
    more: answer.next !== null,
    warnings: [],
    status: answer.videos.length ? "Newest videos" : "",
    empty: "There are no videos yet. Upload one to search it.",
  };
}

function textInAddress() {
  return (new URLSearchParams(location.search).get("q") || "").trim();
}

function start(text) {
  current = { text, shown: [], cursor: null, request: current.request };
  query.value = text;
  document.title = text ? `${text} – xclip-search` : "xclip-search";
  load(false);
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const text = query.value.trim();
  const address = text ? `?${new URLSearchParams({ q: text })}` : location.pathname;
  if (text !== textInAddress()) history.pushState(null, "", address);
  start(text);
});
window.addEventListener("popstate", () => start(textInAddress()));
more.addEventListener("click", () => load(true));

// Uploading

function uploadRow(name) {
  const row = element("li");
  const state = element("span", "state", "waiting");
  const bar = element("progress");
  bar.max = 1;
  row.append(element("span", "name", name), state, bar);
  jobs.append(row);
  jobs.hidden = false;
  return {
    say: (text) => { state.textContent = text; },
    progress: (fraction) => { if (fraction === null) bar.removeAttribute("value"); else bar.value = fraction; },
    end: (text, kind) => { state.textContent = text; row.className = kind; bar.remove(); },
  };
}

// XMLHttpRequest, because fetch does not tell how much has been sent.
function send(file, row) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    const body = new FormData();
    body.append("file", file);
    request.open("POST", "videos");
    request.responseType = "json";
    request.upload.addEventListener("progress", (event) => {
      if (event.lengthComputable) row.progress(event.loaded / event.total);
    });
    request.addEventListener("load", () => {
      if (request.status < 300) resolve(request.response);
      else reject(new Error(request.response?.detail || `The server answered ${request.status}.`));
    });
    request.addEventListener("error", () => reject(new Error("The upload broke off.")));
    request.send(body);
  });
}

const pause = (milliseconds) => new Promise((resolve) => { setTimeout(resolve, milliseconds); });

async function upload(file, row) {
  row.say("uploading");
  const answer = await send(file, row);
  if (!answer.job) return "was there already";
  row.progress(null);
  for (let wait = 200; ; wait = Math.min(wait * 1.3, 2000)) {
    const job = await call(`jobs/${encodeURIComponent(answer.job.id)}`);
    if (job.state === "done") return "ready to be found";
    if (job.state === "failed") throw new Error(job.reason);
    row.say(job.state === "queued" ? "waiting for a worker" : "being read");
    await pause(wait);
  }
}

async function uploadAll(list) {
  const waiting = [...list].map((file) => ({ file, row: uploadRow(file.name) }));
  for (const { file, row } of waiting) {
    try {
      row.end(await upload(file, row), "done");
      if (!current.text) load(false);
    } catch (error) {
      row.end(error.message, "failed");
    }
  }
}

files.addEventListener("change", () => {
  uploadAll(files.files);
  files.value = "";
});
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  if (event.dataTransfer.files.length) uploadAll(event.dataTransfer.files);
});

start(textInAddress());
