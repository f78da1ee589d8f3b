// The filter form, its chips, and the filter that the server understands.

import { NO_FILTERS } from "./address.js";
import { button, byId, element, named, show } from "./dom.js";
import { clock, nameOf } from "./format.js";

const form = byId("filters");
const chips = byId("chips");
const toggle = byId("open-filters");

// A value typed by a person stands for the text and, where it looks like one, for the number or truth as well.
function meant(text) {
  const trimmed = text.trim();
  if (trimmed === "true" || trimmed === "false") return { in: [trimmed, trimmed === "true"] };
  if (trimmed === "null") return { in: [trimmed, null] };
  if (/^-?\d{1,15}(\.\d{1,10})?$/.test(trimmed)) return { in: [trimmed, Number(trimmed)] };
  return trimmed;
}

function number(text) {
  const value = Number.parseFloat(text);
  return Number.isFinite(value) ? value : null;
}

// The JSON for `filter`, or null.
export function toFilter(filters) {
  const parts = [];
  if (filters.title) parts.push({ title: { gte: filters.title, lt: `${filters.title}\u{10ffff}` } });
  const [least, most] = [number(filters.min), number(filters.max)];
  if (least !== null) parts.push({ duration_seconds: { gte: least } });
  if (most !== null) parts.push({ duration_seconds: { lte: most } });
  if (filters.since) parts.push({ added_at: { gte: filters.since } });
  for (const { key, value } of filters.metadata) parts.push({ [`metadata.${key}`]: meant(value) });
  if (!parts.length) return null;
  return parts.length === 1 ? parts[0] : { and: parts };
}

export function numActive(filters) {
  return Object.entries(filters).filter(([name, value]) => name !== "metadata" && value).length + filters.metadata.length;
}

function without(filters, name) {
  return { ...filters, [name]: "" };
}

function chipTexts(filters) {
  const found = [];
  if (filters.title) found.push([`Title begins with “${filters.title}”`, without(filters, "title")]);
  if (filters.min) found.push([`At least ${clock(number(filters.min) ?? 0)} long`, without(filters, "min")]);
  if (filters.max) found.push([`At most ${clock(number(filters.max) ?? 0)} long`, without(filters, "max")]);
  if (filters.since) found.push([`Added since ${filters.since}`, without(filters, "since")]);
  if (filters.strong) found.push([`Top ${100 - Number(filters.strong)} % of chance`, without(filters, "strong")]);
  filters.metadata.forEach((pair, place) => {
    const rest = filters.metadata.filter((_, other) => other !== place);
    found.push([`${pair.key} = ${pair.value}`, { ...filters, metadata: rest }]);
  });
  return found;
}

function chip(text, onRemove) {
  const made = button(element("span", "cross", "×"), onRemove);
  made.setAttribute("aria-label", `Remove: ${text}`);
  return element("li", "chip", named("span", "", text), made);
}

export function showChips(state, likeItem, go) {
  const made = chipTexts(state.filters).map(([text, filters]) => chip(text, () => {
    go({ filters });
    toggle.focus(); // The chip that had the focus is gone.
  }));
  if (state.like) {
    made.unshift(chip(`Like “${likeItem ? nameOf(likeItem) : state.like}”`, () => {
      go({ like: "" });
      byId("query").focus();
    }));
  }
  if (made.length > 1) {
    made.push(element("li", "", button("Clear all", () => {
      go({ filters: NO_FILTERS, like: "" });
      toggle.focus();
    }, "link")));
  }
  chips.replaceChildren(...made);
  show(chips, made.length > 0);
  const active = numActive(state.filters);
  toggle.querySelector("span").textContent = active ? `Filters (${active})` : "Filters";
}

function fill(filters) {
  for (const name of ["title", "min", "max", "since", "strong"]) form.elements[name].value = filters[name];
}

export function setUpFilters(current, go) {
  toggle.addEventListener("click", () => {
    fill(current().filters);
    show(form, form.hidden);
    toggle.setAttribute("aria-expanded", String(!form.hidden));
    if (!form.hidden) form.elements.title.focus();
  });
  form.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    event.stopPropagation();
    close();
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const values = Object.fromEntries([...new FormData(form)].map(([name, value]) => [name, value.trim()]));
    const { key, value, ...rest } = values;
    const others = current().filters.metadata;
    const metadata = key && !/["\\]/.test(key) ? [...others, { key, value }] : others;
    form.elements.key.value = "";
    form.elements.value.value = "";
    close();
    go({ filters: { ...NO_FILTERS, ...rest, metadata } });
  });
  function close() {
    show(form, false);
    toggle.setAttribute("aria-expanded", "false");
    toggle.focus();
  }
}
