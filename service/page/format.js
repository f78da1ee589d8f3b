// Formats numbers, times and names.

export function clock(seconds, withTenths = false) {
  const whole = Math.max(0, Math.floor(seconds));
  const parts = [Math.floor(whole / 60) % 60, whole % 60].map((n) => String(n).padStart(2, "0"));
  const hours = Math.floor(whole / 3600);
  const tenths = withTenths ? `.${Math.floor(10 * Math.max(0, seconds - whole))}` : "";
  return (hours ? `${hours}:${parts.join(":")}` : `${Number(parts[0])}:${parts[1]}`) + tenths;
}

// Times of one video: with tenths of a second where whole seconds are equal.
export function clocks(times) {
  const whole = times.map((time) => clock(time));
  return new Set(whole).size === times.length ? whole : times.map((time) => clock(time, true));
}

export function capital(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}

export function sentence(text) {
  return /[.!?]$/.test(text) ? capital(text) : `${capital(text)}.`;
}

export function count(number, one, many = `${one}s`) {
  return `${number.toLocaleString()} ${number === 1 ? one : many}`;
}

export function size(bytes) {
  const units = ["bytes", "kB", "MB", "GB", "TB"];
  let index = 0;
  let value = bytes;
  while (value >= 1000 && index < units.length - 1) {
    value /= 1000;
    index += 1;
  }
  return `${index && value < 10 ? value.toFixed(1) : Math.round(value)} ${units[index]}`;
}

export function day(text) {
  const date = new Date(text);
  return Number.isNaN(date.getTime()) ? text : date.toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
}

export function dayOnly(text) {
  const date = new Date(text);
  return Number.isNaN(date.getTime()) ? text : date.toLocaleDateString(undefined, { dateStyle: "medium" });
}

export function lengthText(seconds) {
  return seconds < 10 ? `${seconds.toFixed(1)} s` : clock(seconds);
}

// Videos like another one have a cosine instead of scores.
const isSimilarity = (item) => Object.values(item.scores ?? {}).every((value) => value === null);

export const scoreName = (item) => (isSimilarity(item) ? "Similarity" : "Match");

export const scoreText = (score, item) => score.toFixed(isSimilarity(item) ? 2 : 1);

export const namedScore = (score, item) => `${scoreName(item).toLowerCase()} ${scoreText(score, item)}`;

// 99.4 of 100 lie below: the top 0.6 %.
export function topShare(percentile) {
  const share = 100 - percentile;
  if (share > 10) return null; // Not worth showing.
  return `top ${share < 0.1 ? "0.1" : share < 10 ? share.toFixed(1) : Math.round(share)} %`;
}

export function nameOf(item) {
  return item.title || item.id;
}

export function bestTime(item) {
  return item.moments?.length ? item.moments[0].time_seconds : 0;
}

export function at(address, seconds, more = "") {
  return `${address.split("?")[0]}?time_seconds=${seconds.toFixed(3)}${more}`;
}

// The file from a moment on, by its own clock.
export function mediaAt(item, seconds) {
  return `${item.media_url}#t=${(item.media_start_seconds + seconds).toFixed(3)}`;
}

export function plain(value) {
  if (Array.isArray(value) && value.every((inner) => inner === null || typeof inner !== "object")) {
    return value.map(plain).join(" · ");
  }
  return typeof value === "string" ? value : JSON.stringify(value);
}

// Of a file that is searched with, from what an address says of it.
export const fileName = (text) => text.slice(text.indexOf(".") + 1);
