// The grid of videos: cards, and moving through them with the arrow keys.

import { showCopies } from "./copies.js";
import { button, byId, element, named, show } from "./dom.js";
import { at, bestTime, clock, dayOnly, namedScore, nameOf, scoreName, scoreText, topShare } from "./format.js";
import { playOnHover } from "./hover.js";
import { fillBars, scoreRanges } from "./scores.js";
import { timeline } from "./timeline.js";

const results = byId("results");
let onPlay = () => {};
let onSimilar = () => {};
let onAll = () => {};
let cards = [];
let current = 0;

function describeMatch(item) {
  if (item.score === undefined) return [];
  const parts = [element("span", "quiet", scoreName(item)), element("span", "score", scoreText(item.score, item))];
  const share = typeof item.percentile === "number" ? topShare(item.percentile) : null;
  if (share) {
    const badge = element("span", "badge", share);
    badge.title = `Matches better than ${item.percentile.toFixed(1)} % of unrelated pairs in this index`;
    parts.push(badge);
  }
  return parts;
}

function card(item, ranges) {
  const made = byId("card").content.firstElementChild.cloneNode(true);
  const find = (selector) => made.querySelector(selector);
  const best = bestTime(item);
  const picture = find(".picture");
  const image = find("img");
  made.dataset.id = item.id;
  image.addEventListener("error", () => picture.classList.add("blank"));
  image.addEventListener("load", () => picture.classList.toggle("tall", image.naturalHeight > image.naturalWidth));
  image.src = at(item.thumbnail_url, best, "&width=480");
  const match = item.score === undefined ? "" : `, ${namedScore(item.score, item)}`;
  picture.addEventListener("click", () => onPlay(item, best));
  playOnHover(picture, item);
  const times = [...(item.moments?.length ? [clock(best)] : []), clock(item.duration_seconds)].join(" / ");
  find(".length").textContent = times;
  picture.setAttribute("aria-label", `Play ${nameOf(item)}, ${times}${match}`);
  find(".title").replaceWith(named("h2", "title", nameOf(item)));
  find(".title").title = nameOf(item);
  find(".match").append(...describeMatch(item));
  find(".sub").textContent = subtitle(item);
  showHits(find(".hits"), item);
  showCopies(find(".copies"), item, onPlay, onAll);
  find(".strip").append(timeline(item, (time) => onPlay(item, time), { inTabOrder: false }));
  find(".bars").setAttribute("aria-label", "Scores");
  fillBars(find(".bars"), item, ranges);
  const similar = find(".similar");
  similar.setAttribute("aria-label", `More like this: ${nameOf(item)}`);
  similar.addEventListener("click", () => onSimilar(item));
  return made;
}

// Where words of the query are: a line that is said plays the video from there.
function showHits(list, item) {
  const hits = item.text_hits ?? [];
  list.replaceChildren(...hits.map((hit) => {
    if (hit.field !== "transcript") return element("li", "", named("span", "quiet", `In the ${hit.field}`), named("q", "", hit.text));
    const said = button(`Said at ${clock(hit.start_seconds)}`, () => onPlay(item, hit.start_seconds), "link");
    return element("li", "", said, named("q", "", hit.text));
  }));
  show(list, hits.length > 0);
}

function subtitle(item) {
  if (item.added_at) return `Added ${dayOnly(item.added_at)}`;
  const { segment, duration_seconds: duration } = item;
  const isPart = segment && segment.end_seconds - segment.start_seconds < 0.98 * duration;
  return isPart ? `scene ${clock(segment.start_seconds)}–${clock(segment.end_seconds)}` : "";
}

// Show all of `items`. Cards of items shown before stay, and with them the focus; only their bars change in length.
export function showItems(items) {
  const ranges = scoreRanges(items);
  const hadFocus = results.contains(document.activeElement);
  const before = new Map(cards.map((made) => [made.item, made]));
  const currentBefore = cards[current];
  cards = items.map((item) => before.get(item) ?? { item, part: card(item, ranges) });
  const parts = new Set(cards.map((made) => made.part));
  for (const part of [...results.children]) if (!parts.has(part)) part.remove();
  cards.forEach(({ item, part }, index) => {
    if (before.has(item)) fillBars(part.querySelector(".bars"), item, ranges);
    else results.insertBefore(part, results.children[index] ?? null);
  });
  setCurrent(Math.max(cards.indexOf(currentBefore), 0), false);
  results.removeAttribute("aria-busy");
  if (hadFocus && !results.contains(document.activeElement)) focusCard();
}

export function showWaiting(num) {
  cards = [];
  current = 0;
  results.setAttribute("aria-busy", "true");
  const blank = () => element("li", "card waiting", element("div", "picture"), element("div", "facts"));
  results.replaceChildren(...Array.from({ length: num }, blank));
}

export function shownItems() {
  return cards.map((made) => made.item);
}

export function removeItem(id) {
  const index = cards.findIndex((made) => made.item.id === id);
  if (index < 0) return;
  cards[index].part.remove();
  cards.splice(index, 1);
  setCurrent(Math.min(index, cards.length - 1), false);
}

export function replaceItem(id, fields) {
  const index = cards.findIndex((made) => made.item.id === id);
  if (index < 0) return;
  const made = cards[index];
  Object.assign(made.item, fields);
  const part = card(made.item, scoreRanges(shownItems()));
  made.part.replaceWith(part);
  made.part = part;
  setCurrent(current, false);
}

// To the card of a video, or the current one; to the search box where there is none.
export function focusCard(id = null) {
  const index = id === null ? current : cards.findIndex((made) => made.item.id === id);
  if (index >= 0 && index < cards.length) setCurrent(index, true);
  else if (cards.length) setCurrent(0, true);
  else byId("query").focus();
}

export function focusCardAt(index) {
  setCurrent(index, true);
}

function setCurrent(index, withFocus) {
  if (index < 0 || index >= cards.length) return;
  cards.forEach(({ part }, other) => {
    for (const control of part.querySelectorAll(".picture, .similar, .open-copies")) control.tabIndex = other === index ? 0 : -1;
  });
  current = index;
  if (!withFocus) return;
  const picture = cards[index].part.querySelector(".picture");
  picture.focus();
  cards[index].part.scrollIntoView({ block: "nearest" });
}

function numColumns() {
  const top = cards[0].part.offsetTop;
  const next = cards.findIndex((made) => made.part.offsetTop > top);
  return next < 0 ? cards.length : next;
}

// all: called to show all videos, also those that look the same.
export function setUpResults(play, similar, all) {
  onPlay = play;
  onSimilar = similar;
  onAll = all;
  results.addEventListener("focusin", (event) => {
    const index = cards.findIndex((made) => made.part.contains(event.target));
    if (index >= 0 && index !== current) setCurrent(index, false);
    else if (event.target === results) focusCard();
  });
  results.addEventListener("keydown", (event) => {
    if (!cards.length || event.altKey || event.ctrlKey || event.metaKey) return;
    const columns = numColumns();
    const last = cards.length - 1;
    const targets = {
      ArrowLeft: current - 1,
      ArrowRight: current + 1,
      ArrowUp: current - columns,
      ArrowDown: current + columns,
      Home: 0,
      End: last,
    };
    if (!(event.key in targets)) return;
    event.preventDefault();
    const index = targets[event.key];
    const isInLastRow = Math.floor(current / columns) === Math.floor(last / columns);
    if (event.key === "ArrowUp" && index < 0) byId("query").focus();
    else if (event.key === "ArrowDown" && isInLastRow && !byId("more").hidden) byId("more").focus();
    else setCurrent(Math.min(Math.max(index, 0), last), true);
  });
}
