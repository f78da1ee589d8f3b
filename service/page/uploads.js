// Uploading: chosen or dropped files, sent one after the other, with progress, cancelling and clear failures.

import { call, Failure, onceSignedIn, pause, toFailure } from "./api.js";
import { button, byId, element, named, show } from "./dom.js";
import { sentence, size } from "./format.js";

const list = byId("uploads");
const drop = byId("drop");

let hooks = {};
let queue = Promise.resolve();
let numUnsent = 0;
let numRunning = 0;

export const uploadsRun = () => numRunning > 0;

class Cancelled extends Error {}

const isTranscript = (file) => /\.(srt|vtt)$/i.test(file.name);
const stemOf = (file) => file.name.replace(/\.[^.]*$/, "").normalize();

// Which transcripts go along with which video: movie.en.srt with movie.mp4; of one video all. The others are left.
export function pairs(files) {
  const videos = files.filter((file) => !isTranscript(file)).map((file) => ({ file, transcripts: [] }));
  const left = [];
  for (const transcript of files.filter(isTranscript)) {
    const belongs = ({ file }) => `${stemOf(transcript)}.`.startsWith(`${stemOf(file)}.`);
    const [best] = videos.filter(belongs).sort((a, b) => stemOf(b.file).length - stemOf(a.file).length);
    const video = best ?? (videos.length === 1 ? videos[0] : null);
    if (video) video.transcripts.push(transcript);
    else left.push(transcript);
  }
  return { videos, left };
}

function row(file, transcripts = []) {
  const bar = element("progress");
  bar.max = 1;
  bar.value = 0;
  bar.setAttribute("aria-label", `Upload of ${file.name}`);
  const state = element("span", "state", "Waiting");
  const actions = element("span", "row-actions");
  const part = element("li", "row", named("span", "name", [file, ...transcripts].map((one) => one.name).join(" + ")), actions, state, bar);
  list.append(part);
  show(list, true);
  return {
    part,
    say: (text) => { state.textContent = text; },
    progress: (share) => { if (share === null) bar.removeAttribute("value"); else bar.value = share; },
    actions: (...buttons) => {
      const hadFocus = actions.contains(document.activeElement);
      actions.replaceChildren(...buttons);
      if (hadFocus) (buttons[0] ?? byId("files")).focus();
    },
    end: (text, kind) => {
      state.textContent = text;
      state.setAttribute("role", "status");
      part.classList.add(kind);
      bar.remove();
    },
  };
}

// XMLHttpRequest, because fetch does not report upload progress.
function transfer({ file, transcripts }, shown, control) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    const body = new FormData();
    body.append("file", file);
    for (const transcript of transcripts) body.append("transcript", transcript);
    request.open("POST", "videos");
    request.responseType = "json";
    request.upload.addEventListener("progress", (event) => {
      if (!event.lengthComputable) return;
      shown.progress(event.loaded / event.total);
      const percent = Math.floor((100 * event.loaded) / event.total);
      shown.say(percent < 100 ? `Uploading: ${percent} % of ${size(event.total)}` : "Uploaded, checking");
    });
    request.addEventListener("load", () => {
      if (request.status >= 200 && request.status < 300 && request.response) resolve(request.response);
      else reject(toFailure(request.status, request.response, request.getResponseHeader("Retry-After")));
    });
    request.addEventListener("error", () => reject(new Failure("The upload was interrupted.", { kind: "offline" })));
    request.addEventListener("abort", () => reject(new Cancelled()));
    control.abort = () => request.abort();
    request.send(body);
  });
}

// The current state of a job; the last known one while the server is unreachable or overloaded.
async function poll(job) {
  try {
    return await call(`jobs/${encodeURIComponent(job.id)}`);
  } catch (error) {
    if (error.isTransient) return job;
    throw error;
  }
}

async function follow(job, shown, control) {
  shown.progress(null);
  let cancelling = false;
  control.abort = async () => {
    cancelling = true;
    shown.say("Cancelling");
    await call(`jobs/${encodeURIComponent(job.id)}`, { method: "DELETE" }).catch(() => {});
  };
  for (let wait = 200; ; wait = Math.min(wait * 1.3, 2000)) {
    const now = await poll(job);
    if (now.state === "done") return now.video_id;
    if (now.state === "failed" && cancelling) throw new Cancelled();
    if (now.state === "failed") throw new Failure(sentence(now.reason || "it cannot be read"));
    if (!cancelling) shown.say(now.state === "queued" ? "Queued" : "Processing");
    await pause(wait);
  }
}

async function upload(video, shown, control, onSent) {
  if (control.cancelled) throw new Cancelled();
  shown.say(`Uploading: 0 % of ${size(video.file.size)}`);
  const answer = await onceSignedIn(() => transfer(video, shown, control));
  onSent(); // The next file may be sent while this one is processed.
  hooks.onAccepted();
  if (!answer.job) return [answer.video.id, "Already in the index"];
  return [await follow(answer.job, shown, control), "Searchable"];
}

// A retry may succeed unless the server has read the file or refused it.
const isWorthTrying = (error) => error.isTransient || error.needsKey || error.status >= 500;

async function run(video, shown, control, onSent) {
  numRunning += 1;
  hooks.onAccepted();
  try {
    const [id, text] = await upload(video, shown, control, onSent);
    shown.end(text, "done");
    const open = button("Show", () => hooks.onShow(id), "link");
    open.setAttribute("aria-label", `Show ${video.file.name}`);
    shown.actions(open);
    hooks.onDone();
  } catch (error) {
    if (error instanceof Cancelled) {
      shown.end("Cancelled", "cancelled");
      shown.actions();
    } else {
      shown.end(error.message, "failed");
      const again = button("Try again", () => {
        shown.part.remove();
        add([video.file, ...video.transcripts]);
        list.lastElementChild.querySelector("button").focus();
      }, "link");
      again.setAttribute("aria-label", `Try ${video.file.name} again`);
      shown.actions(...(isWorthTrying(error) ? [again] : []));
    }
  } finally {
    numRunning -= 1;
    onSent();
    hooks.onAccepted();
  }
}

export function add(files) {
  const { videos, left } = pairs(files);
  for (const transcript of left) row(transcript).end("A transcript: choose it together with its video.", "failed");
  for (const video of videos) {
    const { file, transcripts } = video;
    const shown = row(file, transcripts);
    const control = { cancelled: false, abort: () => {} };
    const cancel = button("Cancel", () => {
      control.cancelled = true;
      cancel.disabled = true;
      control.abort();
    }, "link");
    cancel.setAttribute("aria-label", `Cancel ${file.name}`);
    shown.actions(cancel);
    numUnsent += 1;
    queue = queue
      .then(() => new Promise((onSent) => { run(video, shown, control, onSent); }))
      .then(() => { numUnsent -= 1; });
  }
}

export function setUpUploads(given) {
  hooks = given;
  const files = byId("files");
  files.addEventListener("change", () => {
    add([...files.files]);
    files.value = "";
  });
  const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
  addEventListener("dragover", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    show(drop, true);
  });
  addEventListener("dragleave", (event) => {
    if (event.relatedTarget === null) show(drop, false);
  });
  addEventListener("drop", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    show(drop, false);
    const dropped = [...event.dataTransfer.files];
    if (!dropped.length || hooks.takeInstead(dropped)) return;
    hooks.onDropped();
    add(dropped);
  });
  addEventListener("beforeunload", (event) => {
    if (numUnsent) event.preventDefault(); // Files already sent are read anyway.
  });
}
