// The four scores: their names, what they compare, and bars for them.

import { byId, element } from "./dom.js";

export const SCORES = [
  ["video_sentence", "video · sentence", "The whole video with the whole sentence: is this the scene you mean?"],
  ["sentence_frame", "frames · sentence", "Each frame with the whole sentence: does one moment show all of it?"],
  ["video_word", "video · words", "The whole video with each word: is everything you named in it?"],
  ["frame_word", "frames · words", "Each frame with each word: do the details match, moment by moment?"],
];

// Least and greatest of each score among the results shown. Scores have no fixed scale.
export function scoreRanges(items) {
  const ranges = {};
  for (const [name] of SCORES) {
    const values = items.map((item) => item.scores?.[name]).filter((value) => typeof value === "number");
    if (values.length) ranges[name] = [Math.min(...values), Math.max(...values)];
  }
  return ranges;
}

export function fillBars(list, item, ranges) {
  const rows = [];
  for (const [name, label, meaning] of SCORES) {
    const value = item.scores?.[name];
    if (typeof value !== "number" || !ranges[name]) continue;
    const [low, high] = ranges[name];
    const fill = element("div", "fill");
    fill.style.width = `${high > low ? 6 + (94 * (value - low)) / (high - low) : 100}%`;
    const term = element("dt", "", label);
    term.title = meaning;
    const track = element("dd", "", element("div", "track", fill));
    track.setAttribute("aria-hidden", "true");
    rows.push(term, track, element("dd", "value", value.toFixed(1)));
  }
  list.replaceChildren(...rows);
  list.hidden = !rows.length;
}

export function setUpHelp() {
  const rows = SCORES.flatMap(([, label, meaning]) => [element("dt", "", label), element("dd", "", meaning)]);
  byId("help-scores").replaceChildren(...rows);
  byId("open-help").addEventListener("click", () => byId("help").showModal());
}
