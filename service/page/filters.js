// The filter form, its chips, and the filter sent to the server.

import { NO_FILTERS } from "./address.js";
import { button, byId, element, named, show } from "./dom.js";
import { clock, fileName, nameOf } from "./format.js";

const form = byId("filters");
const chips = byId("chips");
const toggle = byId("open-filters");

// A value typed by a user matches as text and, where it looks like one, as a number or boolean as well.
function meant(text) {
  const trimmed = text.trim();
  if (trimmed === "true" || trimmed === "false") return { in: [trimmed, trimmed === "true"] };
  if (trimmed === "null") return { in: [trimmed, null] };
  if (/^-?\d{1,15}(\.\d{1,10})?$/.test(trimmed)) return { in: [trimmed, Number(trimmed)] };
  return trimmed;
}

// The day after one of the form 2026-01-31.
function dayAfter(day) {
  const next = new Date(`${day}T00:00:00Z`);
  next.setUTCDate(next.getUTCDate() + 1);
  return next.toISOString().slice(0, 10);
}

// The JSON for `filter`, or null.
export function toFilter(filters) {
  const parts = [];
  if (filters.title) parts.push({ title: { contains: filters.title } });
  if (filters.min) parts.push({ duration_seconds: { gte: Number(filters.min) } });
  if (filters.max) parts.push({ duration_seconds: { lte: Number(filters.max) } });
  if (filters.since) parts.push({ added_at: { gte: filters.since } });
  if (filters.from) parts.push({ recorded_at: { gte: filters.from } });
  if (filters.until) parts.push({ recorded_at: { lt: dayAfter(filters.until) } });
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
  if (filters.without) found.push([`Less of “${filters.without}”`, without(filters, "without")]);
  if (filters.title) found.push([`Title contains “${filters.title}”`, without(filters, "title")]);
  if (filters.min) found.push([`At least ${clock(Number(filters.min))} long`, without(filters, "min")]);
  if (filters.max) found.push([`At most ${clock(Number(filters.max))} long`, without(filters, "max")]);
  if (filters.since) found.push([`Added since ${filters.since}`, without(filters, "since")]);
  if (filters.from) found.push([`Recorded from ${filters.from}`, without(filters, "from")]);
  if (filters.until) found.push([`Recorded until ${filters.until}`, without(filters, "until")]);
  if (filters.strong) found.push([`Match in the top ${100 - Number(filters.strong)} %`, without(filters, "strong")]);
  if (filters.words) {
    const text = filters.words === "only" ? "Only where words are written or said" : "Words written or said count too";
    found.push([text, without(filters, "words")]);
  }
  if (filters.copies) found.push(["Copies are shown too", without(filters, "copies")]);
  filters.metadata.forEach((pair, index) => {
    const rest = filters.metadata.filter((_, other) => other !== index);
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
  if (state.file) {
    made.unshift(chip(`Looks like “${fileName(state.file)}”`, () => {
      go({ file: "" });
      byId("query").focus();
    }));
  }
  if (state.like) {
    made.unshift(chip(`Like “${likeItem ? nameOf(likeItem) : state.like}”`, () => {
      go({ like: "" });
      byId("query").focus();
    }));
  }
  if (made.length > 1) {
    made.push(element("li", "", button("Clear all", () => {
      go({ filters: NO_FILTERS, like: "", file: "" });
      toggle.focus();
    }, "link")));
  }
  chips.replaceChildren(...made);
  show(chips, made.length > 0);
  const active = numActive(state.filters);
  toggle.querySelector("span").textContent = active ? `Filters (${active})` : "Filters";
}

function fill(filters) {
  const names = ["without", "title", "min", "max", "since", "from", "until", "strong", "words", "copies"];
  for (const name of names) form.elements[name].value = filters[name];
  relate();
}

// Constraints between two fields; the browser reports a violation.
function relate() {
  const { min, max, from, until, key, value } = form.elements;
  until.min = from.value;
  max.min = min.value || "0";
  key.required = value.value.trim() !== "";
  value.required = key.value.trim() !== "";
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
  form.addEventListener("input", relate);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const values = Object.fromEntries([...new FormData(form)].map(([name, value]) => [name, value.trim()]));
    const { key, value, ...rest } = values;
    const others = current().filters.metadata;
    const metadata = key ? [...others, { key, value }] : others;
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
