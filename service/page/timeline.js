// A video's length as a strip, with a bar for each sampled frame: the better it matches, the higher.

import { button, element } from "./dom.js";
import { clocks, namedScore } from "./format.js";

const WIDEST_SHARE = 0.12;

// Left edges and right edges of frames: halfway to their neighbours, inside the segment, and not too wide: where
// only some frames are known, the time between them belongs to none.
function spans(moments, segment) {
  const widest = WIDEST_SHARE * (segment.end_seconds - segment.start_seconds);
  return moments.map((moment, index) => {
    const before = moments[index - 1];
    const after = moments[index + 1];
    const left = before ? (before.time_seconds + moment.time_seconds) / 2 : segment.start_seconds;
    const right = after ? (after.time_seconds + moment.time_seconds) / 2 : segment.end_seconds;
    const time = moment.time_seconds;
    return [Math.max(Math.min(left, time), time - widest / 2), Math.min(Math.max(right, time), time + widest)];
  });
}

// onPick: called with a time. inTabOrder: whether the bars can be reached by Tab.
export function timeline(item, onPick, { inTabOrder }) {
  const duration = Math.max(item.duration_seconds, 0.001);
  const percent = (seconds) => `${(100 * Math.min(Math.max(seconds, 0), duration)) / duration}%`;
  const strip = element("div", "timeline");
  const moments = [...(item.moments || [])].sort((a, b) => a.time_seconds - b.time_seconds);
  if (!moments.length) return strip;
  const scores = moments.map((moment) => moment.score);
  const [low, high] = [Math.min(...scores), Math.max(...scores)];
  const segment = item.segment || { start_seconds: 0, end_seconds: duration };
  if (segment.end_seconds - segment.start_seconds < 0.98 * duration) {
    const band = element("div", "band");
    band.style.left = percent(segment.start_seconds);
    band.style.width = percent(segment.end_seconds - segment.start_seconds);
    strip.append(band);
  }
  const edges = spans(moments, segment);
  const times = clocks(moments.map((moment) => moment.time_seconds));
  moments.forEach((moment, index) => {
    const share = high > low ? (moment.score - low) / (high - low) : 1;
    const bar = button("", (event) => {
      event.stopPropagation();
      onPick(moment.time_seconds);
    }, moment.score === high ? "best" : "");
    const [left, right] = edges[index];
    bar.style.left = percent(left);
    bar.style.width = percent(right - left);
    const mark = element("span");
    mark.style.height = `${22 + 78 * share}%`;
    mark.style.opacity = String(0.35 + 0.65 * share);
    bar.append(mark);
    const score = namedScore(moment.score, item);
    bar.title = `${times[index]} · ${score}`;
    bar.setAttribute("aria-label", `Play from ${times[index]}, ${score}`);
    if (!inTabOrder) bar.tabIndex = -1;
    strip.append(bar);
  });
  return strip;
}

// A line that follows the player.
export function addPlayhead(strip, duration) {
  const head = element("div", "playhead");
  strip.append(head);
  return (seconds) => { head.style.left = `${(100 * Math.min(seconds, duration)) / Math.max(duration, 0.001)}%`; };
}
