// Signing in where the server asks for keys, and what the key allows.

import { call, Failure, onMissingKey, send } from "./api.js";
import { byId, closable, once, show } from "./dom.js";

const dialog = closable(byId("sign-in"));
const form = dialog.querySelector("form");
const problem = form.querySelector("[role=alert]");

let scopes = ["read", "write"];
let asking = null;
let onChange = () => {};

export const allows = (scope) => scopes.includes(scope);

async function readAccess() {
  let session = { scopes: ["read", "write"], keys_required: false };
  try {
    session = await call("session");
  } catch (error) {
    if (!(error instanceof Failure)) throw error; // Unreachable: the search itself reports it.
  }
  scopes = session.scopes;
  show(byId("log-out"), session.keys_required && scopes.length > 0);
  for (const part of document.querySelectorAll("[data-scope=write]")) show(part, allows("write") || !scopes.length);
}

// Resolves with whether there is a key now. Concurrent calls share one dialog.
function ask() {
  asking ??= new Promise((resolve) => {
    show(problem, false);
    dialog.showModal();
    form.elements.key.focus();
    dialog.addEventListener("close", () => {
      asking = null;
      resolve(dialog.returnValue === "signed-in");
    }, { once: true });
    dialog.returnValue = "";
  });
  return asking;
}

async function signIn() {
  try {
    await send("session", "POST", { key: form.elements.key.value });
  } catch (error) {
    problem.textContent = error.needsKey ? "This key is not valid." : error.message;
    show(problem, true);
    form.elements.key.select();
    return;
  }
  form.elements.key.value = "";
  await readAccess();
  dialog.close("signed-in");
  onChange();
}

async function signOut() {
  try {
    await call("session", { method: "DELETE" });
    location.reload();
  } catch (error) {
    byId("status").textContent = error.message;
  }
}

export async function setUpSession(changed) {
  onChange = changed;
  onMissingKey(ask);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    once(form.querySelector("[type=submit]"), signIn);
  });
  byId("log-out").addEventListener("click", signOut);
  await readAccess();
}
