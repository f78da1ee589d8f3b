// The player: a video from a moment on, why it matches, and what is known about it.

import { button, byId, closable, element, show } from "./dom.js";
import { deleteVideo, editVideo, showDetails } from "./details.js";
import { at, capital, clocks, mediaAt, namedScore, nameOf, scoreName, scoreText, topShare } from "./format.js";
import { fillBars, scoreRanges } from "./scores.js";
import { allows } from "./session.js";
import { addPlayhead, timeline } from "./timeline.js";
import { showWords } from "./words.js";

const SHORTEST_PREVIEW_SECONDS = 2;

const dialog = closable(byId("player"));
const video = byId("video");
const note = byId("video-note");

let shown = null;
let start = 0; // Position of the player at time 0 of the video (media_start_seconds; 0 for a preview's own clock).
let isPreview = false; // Whether a short clip is shown instead of the file.
let wanted = 0; // The moment at which the file was opened.
let follow = () => {};
let hooks = {};

function say(text, ...more) {
  note.replaceChildren(text, ...more);
  show(note, Boolean(text));
}

function link(item) {
  const made = element("a", "", "Download the file");
  made.href = item.media_url;
  made.download = "";
  return made;
}

function playPreview(seconds) {
  isPreview = true;
  start = -Math.max(0, Math.min(seconds, shown.duration_seconds - SHORTEST_PREVIEW_SECONDS));
  video.loop = true;
  video.src = at(shown.preview_url, seconds);
  say("Browsers cannot play this file: here are a few seconds of it, without sound. ", link(shown), ".");
  video.play().catch(() => {});
}

function playFile(seconds) {
  wanted = seconds;
  isPreview = false;
  start = shown.media_start_seconds;
  video.loop = false;
  video.src = mediaAt(shown, seconds);
  say("");
  video.play().catch(() => {});
}

function jump(seconds) {
  if (isPreview) playPreview(seconds);
  else if (video.error) playFile(seconds);
  else {
    video.currentTime = start + seconds;
    video.play().catch(() => {});
  }
  hooks.onMoment(seconds);
}

function momentLinks(item) {
  const moments = item.moments || [];
  const times = clocks(moments.map((moment) => moment.time_seconds));
  return moments.slice(0, 3).map((moment, index) => {
    const made = button(times[index], () => jump(moment.time_seconds), index ? "" : "best");
    made.title = capital(namedScore(moment.score, item));
    return element("li", "", made);
  });
}

function showScores(item) {
  const section = byId("player-scores");
  section.replaceChildren();
  if (item.score === undefined) return;
  const match = element("p", "match", element("span", "score", scoreText(item.score, item)));
  if (typeof item.percentile === "number") {
    const share = topShare(item.percentile);
    if (share) match.append(element("span", "badge", share));
    match.append(element("span", "quiet", ` better than ${item.percentile.toFixed(1)} % of unrelated pairs`));
    if (item.match) match.append(element("span", "quiet", `, ${item.match === "none" ? "as much as chance gives" : `a ${item.match} match`}`));
  }
  const bars = element("dl", "bars");
  fillBars(bars, item, scoreRanges(hooks.items()));
  section.append(element("h3", "", scoreName(item)), match, bars);
}

function showActions(item) {
  const parts = [
    button("More like this", () => hooks.onSimilar(item)),
    button("Copy link", async (event) => {
      const copied = event.currentTarget;
      try {
        await navigator.clipboard.writeText(location.href);
        copied.textContent = "Copied";
      } catch {
        copied.textContent = "Copy the address above";
      }
      setTimeout(() => { copied.textContent = "Copy link"; }, 2000);
    }),
  ];
  byId("player-actions").replaceChildren(...parts);
}

function showChanges(record) {
  if (!allows("write") || shown?.id !== record.id) return;
  byId("player-actions").append(
    button("Edit", async () => {
      const changed = await editVideo(record);
      if (!changed) return;
      hooks.onChanged(changed);
      if (shown?.id === changed.id) {
        shown = { ...shown, title: changed.title, metadata: changed.metadata };
        byId("player-title").textContent = nameOf(shown);
        showActions(shown);
        loadDetails();
      }
    }),
    button("Delete", (event) => remove(record, event.currentTarget), "risky"),
  );
}

async function remove(record, control) {
  try {
    if (!(await deleteVideo(record, control))) return;
  } catch (error) {
    say(error.message);
    return;
  }
  if (shown?.id === record.id) {
    shown = null;
    dialog.close();
  }
  hooks.onDeleted(record.id);
}

async function loadDetails() {
  const section = byId("player-details");
  const { id } = shown;
  try {
    const record = await showDetails(section, id, hooks.onFilter);
    if (shown?.id === id) showChanges(record);
  } catch (error) {
    if (shown?.id === id) section.replaceChildren(element("p", "bad", error.message));
  }
}

// Show a video from a moment on; hooks.items() are the results among which it is.
export function openPlayer(item, seconds, query) {
  shown = item;
  const title = byId("player-title");
  title.textContent = nameOf(item);
  title.title = nameOf(item);
  title.dir = "auto";
  const strip = timeline(item, jump, { inTabOrder: true });
  follow = addPlayhead(strip, item.duration_seconds);
  byId("player-timeline").replaceChildren(strip);
  byId("player-moments").replaceChildren(...momentLinks(item));
  showActions(item);
  showScores(item);
  showWords(byId("player-words"), item, query, jump);
  loadDetails();
  const ids = hooks.items().map((other) => other.id);
  const index = ids.indexOf(item.id);
  byId("player-previous").disabled = index <= 0;
  byId("player-next").disabled = index < 0 || index === ids.length - 1;
  // Where nothing can be played, the moment's thumbnail is still shown.
  video.poster = at(item.thumbnail_url, seconds, "&width=960");
  if (!dialog.open) {
    dialog.showModal();
    video.focus();
  }
  if (item.playable === false) playPreview(seconds);
  else playFile(seconds);
  follow(seconds);
}

export function closePlayer() {
  if (dialog.open) dialog.close();
}

export const playedId = () => (dialog.open ? shown?.id ?? null : null);

function step(by) {
  const all = hooks.items();
  const index = all.findIndex((item) => item.id === shown?.id) + by;
  if (shown && all[index]) hooks.onStep(all[index]);
}

export function setUpPlayer(given) {
  hooks = given;
  byId("player-close").addEventListener("click", () => dialog.close());
  byId("player-previous").addEventListener("click", () => step(-1));
  byId("player-next").addEventListener("click", () => step(1));
  dialog.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    if (event.key.toLowerCase() === "n") step(1);
    if (event.key.toLowerCase() === "p") step(-1);
  });
  dialog.addEventListener("close", () => {
    const id = shown?.id ?? null;
    shown = null;
    video.pause();
    video.removeAttribute("src");
    video.removeAttribute("poster");
    video.load();
    say("");
    hooks.onClosed(id);
  });
  video.addEventListener("timeupdate", () => follow(video.currentTime - start));
  video.addEventListener("error", () => {
    if (!shown || !video.hasAttribute("src")) return;
    if (!isPreview) playPreview(wanted);
    else say("This video cannot be shown: its file is gone or cannot be read. ", link(shown), " if it is still there.");
  });
}
