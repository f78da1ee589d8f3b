// A still picture that plays, muted, while the pointer rests on it.

import { at, bestTime, mediaAt } from "./format.js";

const REST_MILLISECONDS = 280;
const still = matchMedia("(prefers-reduced-motion: reduce)");

export function playOnHover(picture, item) {
  let timer = 0;
  let video = null;

  function start() {
    if (still.matches || navigator.connection?.saveData) return;
    const time = bestTime(item);
    const preview = at(item.preview_url, time);
    video = document.createElement("video");
    video.muted = true;
    video.loop = true;
    video.playsInline = true;
    video.disableRemotePlayback = true;
    video.setAttribute("aria-hidden", "true");
    video.tabIndex = -1;
    video.addEventListener("playing", () => video?.classList.add("playing"));
    video.addEventListener("error", () => {
      if (video && !video.src.includes("/preview?")) video.src = preview;
    });
    video.src = item.playable ? mediaAt(item, time) : preview;
    picture.append(video);
    video.play().catch(() => {});
  }

  function stop() {
    clearTimeout(timer);
    if (!video) return;
    const ended = video;
    video = null;
    ended.pause();
    ended.removeAttribute("src");
    ended.load(); // Ends the download too.
    ended.remove();
  }

  picture.addEventListener("pointerenter", (event) => {
    if (event.pointerType !== "mouse") return;
    clearTimeout(timer);
    timer = setTimeout(start, REST_MILLISECONDS);
  });
  picture.addEventListener("pointerleave", stop);
  picture.addEventListener("click", stop);
}
