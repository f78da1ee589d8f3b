// The state of the page in its URL: query, filters, view, and the open video.

const isDay = (text) => /^\d{4}-\d\d-\d\d$/.test(text) && !Number.isNaN(Date.parse(text));
const isLength = (text) => Number(text) >= 0 && Number(text) < Infinity;

// Each filter, and whether a text is a valid value: invalid values in an address edited by hand are ignored.
const FILTERS = {
  without: () => true,
  title: () => true,
  min: isLength,
  max: isLength,
  since: isDay,
  from: isDay,
  until: isDay,
  strong: (text) => Number(text) > 0 && Number(text) < 100,
  words: (text) => text === "boost" || text === "only",
  copies: (text) => text === "all",
};
// KEY or KEY.KEY, as the server accepts them.
const METADATA_KEY = /^[^"\\.]+(\.[^"\\.]+)*$/;

export function readAddress(text = location.search) {
  const parameters = new URLSearchParams(text);
  const filters = Object.fromEntries(Object.entries(FILTERS).map(([name, isSense]) => {
    const value = (parameters.get(name) || "").trim();
    return [name, value && isSense(value) ? value : ""];
  }));
  filters.metadata = parameters.getAll("meta").map((pair) => {
    const cut = pair.indexOf("=");
    return { key: pair.slice(0, Math.max(cut, 0)), value: pair.slice(cut + 1) };
  }).filter(({ key }) => METADATA_KEY.test(key));
  const time = Number.parseFloat(parameters.get("t") ?? "");
  return {
    query: (parameters.get("q") || "").trim().slice(0, 2000),
    like: parameters.get("like") || "",
    file: parameters.get("file") || "",
    view: parameters.get("view") === "list" ? "list" : "grid",
    video: parameters.get("video") || "",
    time: Number.isFinite(time) && time >= 0 ? time : null,
    filters,
  };
}

export function writeAddress(state) {
  const parameters = new URLSearchParams();
  if (state.file) parameters.set("file", state.file);
  else if (state.like) parameters.set("like", state.like);
  else if (state.query) parameters.set("q", state.query);
  for (const name of Object.keys(FILTERS)) if (state.filters[name]) parameters.set(name, state.filters[name]);
  for (const { key, value } of state.filters.metadata) parameters.append("meta", `${key}=${value}`);
  if (state.view === "list") parameters.set("view", "list");
  if (state.video) {
    parameters.set("video", state.video);
    if (state.time !== null) parameters.set("t", String(Math.round(state.time * 1000) / 1000));
  }
  const text = parameters.toString();
  return text ? `?${text}` : location.pathname;
}

// Whether two addresses show the same list of videos.
export function sameList(first, second) {
  const list = (state) => writeAddress({ ...state, video: "", time: null, view: "grid" });
  return list(first) === list(second);
}

export const NO_FILTERS = { without: "", title: "", min: "", max: "", since: "", from: "", until: "", strong: "", words: "", copies: "", metadata: [] };
