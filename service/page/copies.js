// What looks the same as a result and was folded into it: "3 more copies", shown when they are asked for.

import { call } from "./api.js";
import { button, element, named, once, show } from "./dom.js";
import { at, bestTime, clock, nameOf } from "./format.js";

const MOST_SHOWN = 24;

async function load(ids) {
  const filter = encodeURIComponent(JSON.stringify({ id: { in: ids } }));
  const { videos } = await call(`videos?limit=${MOST_SHOWN}&filter=${filter}`);
  return ids.map((id) => videos.find((video) => video.id === id)).filter(Boolean); // Some may be deleted by now.
}

function row(video, onPlay) {
  const image = element("img");
  image.alt = "";
  image.addEventListener("error", () => { image.style.visibility = "hidden"; });
  image.src = at(video.thumbnail_url, bestTime(video), "&width=160");
  const name = named("span", "name", nameOf(video));
  const play = button("", () => onPlay(video, bestTime(video)), "copy");
  play.setAttribute("aria-label", `Play ${nameOf(video)}, ${clock(video.duration_seconds)}`);
  play.append(image, name, element("span", "quiet", clock(video.duration_seconds)));
  return element("li", "", play);
}

// onAll: called to show all videos, none of them folded.
export function showCopies(part, item, onPlay, onAll) {
  const ids = [...new Set((item.copies ?? []).map((copy) => copy.id))].filter((id) => id !== item.id).slice(0, MOST_SHOWN);
  show(part, ids.length > 0);
  if (!ids.length) return;
  const list = element("ul");
  list.setAttribute("aria-label", `Copies of ${nameOf(item)}`);
  const count = item.num_copies === 1 ? "1 more copy" : `${item.num_copies} more copies`;
  const problem = element("p", "bad");
  problem.setAttribute("role", "status");
  const toggle = button(count, () => once(toggle, async () => {
    problem.textContent = "";
    const isOpen = toggle.getAttribute("aria-expanded") === "true";
    try {
      if (!isOpen && !list.childElementCount) {
        const rows = (await load(ids)).map((video) => row(video, onPlay));
        if (!rows.length) rows.push(element("li", "quiet", "They are no longer in the index."));
        else if (ids.length < item.num_copies) rows.push(element("li", "", button("Show all", onAll, "link")));
        list.replaceChildren(...rows);
      }
      show(list, !isOpen);
      toggle.setAttribute("aria-expanded", String(!isOpen));
    } catch (error) {
      problem.textContent = error.message;
    }
  }), "link open-copies");
  toggle.setAttribute("aria-expanded", "false");
  toggle.title = "They look the same";
  show(list, false);
  part.replaceChildren(toggle, list, problem);
}
