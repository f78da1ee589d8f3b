// Calls of the API. Every failure is a Failure with a message for the user; a missing key asks for one.

import { sentence } from "./format.js";

// Messages that replace those of the API which are meant for programs.
const MESSAGES = {
  forbidden: "Your key allows reading only.",
  "invalid-cursor": "The index has changed in the meantime. Search once more.",
  "index-unavailable": "The index cannot be reached at the moment. Try again soon.",
  "job-not-found": "This job no longer exists.",
  overloaded: "The server is busy. Try again in a moment.",
  "storage-full": "The server has no space left for more videos.",
  "too-many-requests": "Too many requests. Try again in a moment.",
  unauthorized: "This server needs a key.",
  "key-needed": "This server needs a key.",
  "video-not-found": "This video is no longer in the index.",
};

export class Failure extends Error {
  constructor(message, { status = 0, kind = "", retryAfter = null } = {}) {
    super(message);
    this.status = status;
    this.kind = kind;
    this.retryAfter = retryAfter;
  }

  // Behind a proxy with a password the answer is 403, since at a 401 the browser would forget that password.
  get needsKey() {
    return this.status === 401 || this.kind === "key-needed";
  }

  get isBusy() {
    return this.status === 429 || this.status === 503 || this.status === 504;
  }

  // Transient failures.
  get isTransient() {
    return this.isBusy || this.kind === "offline";
  }
}

let askForKey = async () => false;

export function onMissingKey(handler) {
  askForKey = handler;
}

export function toFailure(status, body, retryAfter) {
  const kind = typeof body?.type === "string" ? body.type.split(":").pop() : "";
  const seconds = Number.parseFloat(retryAfter ?? "");
  // The detail names the fields that the messages are about; the user has chosen them and knows.
  const detail = body?.errors?.map((error) => sentence(error.message)).join(" ") || body?.detail;
  return new Failure(MESSAGES[kind] || detail || `The server answered ${status}.`, {
    status,
    kind,
    retryAfter: Number.isFinite(seconds) ? seconds : null,
  });
}

export async function call(path, options = {}) {
  for (;;) {
    let response;
    try {
      response = await fetch(path, options);
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Failure("The server cannot be reached. Is it running, and are you online?", { kind: "offline" });
    }
    if (response.status === 204) return null;
    const body = await response.json().catch(() => null);
    if (response.ok && body !== null) return body;
    const failure = toFailure(response.status, body, response.headers.get("Retry-After"));
    if (failure.needsKey && path !== "session" && (await askForKey())) continue;
    throw failure;
  }
}

export function send(path, method, body, signal) {
  return call(path, { method, signal, headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
}

export const videoPath = (id) => `videos/${encodeURIComponent(id)}`;

export const pause = (milliseconds) => new Promise((resolve) => { setTimeout(resolve, milliseconds); });

// Try once more after signing in where a key is missing.
export async function onceSignedIn(attempt) {
  for (;;) {
    try {
      return await attempt();
    } catch (error) {
      if (!error.needsKey || !(await askForKey())) throw error;
    }
  }
}
