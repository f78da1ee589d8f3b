// The list of ingest jobs. It polls only while a job waits or runs, or the server is unreachable.

import { call } from "./api.js";
import { button, byId, closable, element, named, once, show } from "./dom.js";
import { day, sentence } from "./format.js";
import { uploadsRun } from "./uploads.js";

const POLL_MILLISECONDS = 1500;
const PAGE_SIZE = 20;
const STATES = { queued: "Waiting", running: "Processing", done: "Done", failed: "Failed" };

const dialog = closable(byId("jobs"));
const list = byId("job-list");
const note = byId("jobs-note");
const more = byId("more-jobs");
const badge = byId("num-running");

let shown = [];
let next = null;
let timer = 0;
let isUnreachable = false; // Whether the last poll failed with a transient error.
let onShow = () => {};

const isActive = (job) => job.state === "queued" || job.state === "running";

async function cancel(job) {
  try {
    await call(`jobs/${encodeURIComponent(job.id)}`, { method: "DELETE" });
  } catch (error) {
    note.textContent = error.message;
  }
  await poll();
  byId("jobs").querySelector("[data-close]").focus(); // The button that had the focus is gone.
}

function row(job) {
  const name = job.title || job.video_id;
  const part = element("li", `row ${job.state}`, named("span", "name", name));
  const actions = element("span", "row-actions");
  if (isActive(job)) {
    const stop = button("Cancel", () => cancel(job), "link");
    stop.setAttribute("aria-label", `Cancel ${name}`);
    actions.append(stop);
  } else if (job.state === "done") {
    const open = button("Show", () => onShow(job.video_id), "link");
    open.setAttribute("aria-label", `Show ${name}`);
    actions.append(open);
  }
  const tries = job.attempts > 1 ? `, try ${job.attempts}` : "";
  const when = day(job.finished_at || job.created_at);
  part.append(actions, element("span", "state", `${STATES[job.state] ?? job.state}${tries} · ${when}`));
  if (job.reason) part.append(named("span", "reason", sentence(job.reason)));
  return part;
}

function keyOf(job) {
  return JSON.stringify([job.id, job.state, job.attempts, job.reason, job.title, job.video_id]);
}

// Rows that did not change stay, and with them the focus.
function draw() {
  const before = new Map([...list.children].map((part) => [part.dataset.key, part]));
  const parts = shown.map((job) => {
    const key = keyOf(job);
    const part = before.get(key) ?? row(job);
    part.dataset.key = key;
    return part;
  });
  const isSame = parts.length === list.children.length && parts.every((part, i) => part === list.children[i]);
  if (!isSame) list.replaceChildren(...parts);
  const numActive = shown.filter(isActive).length;
  badge.textContent = String(numActive);
  show(badge, numActive > 0);
  const name = "Uploads and jobs";
  byId("open-jobs").setAttribute("aria-label", numActive ? `${name}, ${numActive} in progress` : name);
  show(more, next !== null);
}

async function poll() {
  clearTimeout(timer);
  try {
    const page = await call(`jobs?limit=${PAGE_SIZE}`);
    const ids = new Set(page.jobs.map((job) => job.id));
    const older = shown.filter((job) => !ids.has(job.id));
    if (!older.length) next = page.next;
    shown = page.jobs.concat(page.jobs.length < PAGE_SIZE ? [] : older);
    note.textContent = shown.length ? "" : "No jobs yet.";
    isUnreachable = false;
  } catch (error) {
    note.textContent = error.message;
    isUnreachable = error.isTransient;
  }
  draw();
  again();
}

async function loadMore() {
  try {
    const page = await call(`jobs?limit=${PAGE_SIZE}&after=${next}`);
    const ids = new Set(shown.map((job) => job.id));
    shown = shown.concat(page.jobs.filter((job) => !ids.has(job.id)));
    next = page.next;
  } catch (error) {
    note.textContent = error.message;
  }
  draw();
  if (more.hidden) byId("jobs").querySelector("[data-close]").focus();
}

function again() {
  clearTimeout(timer);
  if (document.hidden || !(isUnreachable || shown.some(isActive) || uploadsRun())) return;
  timer = setTimeout(poll, POLL_MILLISECONDS);
}

export function refreshJobs() {
  poll();
}

export function openJobs() {
  if (!dialog.open) dialog.showModal();
  poll();
}

export function closeJobs() {
  dialog.close();
}

export function setUpJobs(showVideo) {
  onShow = showVideo;
  byId("open-jobs").addEventListener("click", openJobs);
  byId("open-upload").addEventListener("click", () => {
    openJobs();
    byId("files").focus();
  });
  more.addEventListener("click", () => once(more, loadMore));
  document.addEventListener("visibilitychange", again);
}
