// What is shown, as the page's address says it: query, filters, view, and the open video.

const FILTERS = ["title", "min", "max", "since", "strong"];

export function readAddress(text = location.search) {
  const parameters = new URLSearchParams(text);
  const filters = Object.fromEntries(FILTERS.map((name) => [name, (parameters.get(name) || "").trim()]));
  filters.metadata = parameters.getAll("meta").map((pair) => {
    const cut = pair.indexOf("=");
    return cut > 0 ? { key: pair.slice(0, cut), value: pair.slice(cut + 1) } : null;
  }).filter(Boolean);
  const time = Number.parseFloat(parameters.get("t") ?? "");
  return {
    query: (parameters.get("q") || "").trim().slice(0, 2000),
    like: parameters.get("like") || "",
    view: parameters.get("view") === "list" ? "list" : "grid",
    video: parameters.get("video") || "",
    time: Number.isFinite(time) && time >= 0 ? time : null,
    filters,
  };
}

export function writeAddress(state) {
  const parameters = new URLSearchParams();
  if (state.like) parameters.set("like", state.like);
  else if (state.query) parameters.set("q", state.query);
  for (const name of FILTERS) if (state.filters[name]) parameters.set(name, state.filters[name]);
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

export const NO_FILTERS = { title: "", min: "", max: "", since: "", strong: "", metadata: [] };
