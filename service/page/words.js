// Similarities of words and frames, loaded when the user opens them.

import { send } from "./api.js";
import { button, element } from "./dom.js";
import { clocks } from "./format.js";

function table(explanation, onPick) {
  const { tokens, frame_times: times, similarity } = explanation;
  const rows = tokens.map((token, index) => [token, similarity[index]]).slice(1, -1); // Without start and end.
  const values = rows.flatMap(([, row]) => row);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const names = clocks(times);
  const head = element("tr", "", element("td", ""), ...times.map((time, index) => {
    const cell = element("th", "", button(names[index], () => onPick(time)));
    cell.scope = "col";
    return cell;
  }));
  const body = rows.map(([token, row]) => {
    const name = element("th", "", token);
    name.scope = "row";
    name.dir = "auto";
    const cells = row.map((value) => {
      const share = high > low ? (value - low) / (high - low) : 1;
      const mark = element("span", "", value.toFixed(2));
      mark.style.setProperty("--share", share.toFixed(3));
      return element("td", "heat", mark);
    });
    return element("tr", "", name, ...cells);
  });
  const made = element("table", "", element("caption", "", "Cosine of each word with each frame"),
    element("thead", "", head), element("tbody", "", ...body));
  const scroll = element("div", "scroll", made);
  scroll.tabIndex = 0;
  scroll.setAttribute("role", "group");
  scroll.setAttribute("aria-label", "Cosine of each word with each frame");
  return scroll;
}

export function showWords(section, item, query, onPick) {
  section.replaceChildren();
  if (!query || item.scores === undefined) return;
  const open = button("Which words match which frames?", async () => {
    open.disabled = true;
    const note = element("p", "quiet", "Loading…");
    note.setAttribute("role", "status");
    section.append(note);
    try {
      const body = { query, limit: 1, explain: true, filter: { id: item.id } };
      const answer = await send("search", "POST", body);
      const explanation = answer.results[0]?.explanation;
      if (!section.contains(open)) return;
      if (!explanation) throw new Error("This video no longer matches the query.");
      const made = table(explanation, onPick);
      section.replaceChildren(element("h3", "", "Words and frames"), made);
      made.focus();
    } catch (error) {
      note.textContent = error.message;
      note.classList.add("bad");
      open.disabled = false;
    }
  }, "link");
  section.append(open);
}
