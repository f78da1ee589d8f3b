// The notice in place of results: nothing found, no videos yet, not ready, unreachable.

import { button, byId, element, named, show } from "./dom.js";

const notice = byId("notice");

export function hideNotice() {
  show(notice, false);
  notice.replaceChildren();
}

// actions: pairs of a text and a function.
export function showNotice(title, text, actions = [], bad = false) {
  const parts = [element("h2", "", title)];
  if (text) parts.push(named("p", "", text));
  if (actions.length) {
    parts.push(element("div", "form-end", ...actions.map(([label, act]) => button(label, act, "choice"))));
  }
  notice.className = bad ? "bad-notice" : "";
  notice.replaceChildren(...parts);
  show(notice, true);
}
