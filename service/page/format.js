// Numbers, times and names as people read them.

export function clock(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  const parts = [Math.floor(whole / 60) % 60, whole % 60].map((n) => String(n).padStart(2, "0"));
  const hours = Math.floor(whole / 3600);
  return hours ? `${hours}:${parts.join(":")}` : `${Number(parts[0])}:${parts[1]}`;
}

export function count(number, one, many = `${one}s`) {
  return `${number.toLocaleString()} ${number === 1 ? one : many}`;
}

export function size(bytes) {
  const units = ["bytes", "kB", "MB", "GB", "TB"];
  let place = 0;
  let value = bytes;
  while (value >= 1000 && place < units.length - 1) {
    value /= 1000;
    place += 1;
  }
  return `${place && value < 10 ? value.toFixed(1) : Math.round(value)} ${units[place]}`;
}

export function day(text) {
  const date = new Date(text);
  return Number.isNaN(date.getTime()) ? text : date.toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
}

export function dayOnly(text) {
  const date = new Date(text);
  return Number.isNaN(date.getTime()) ? text : date.toLocaleDateString(undefined, { dateStyle: "medium" });
}

export function scoreText(score) {
  return Math.abs(score) < 2 ? score.toFixed(2) : score.toFixed(1);
}

// 99.4 of 100 lie below: the top 0.6 %.
export function topShare(percentile) {
  const share = 100 - percentile;
  if (share > 10) return null; // Nothing to boast of.
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

export function plain(value) {
  if (Array.isArray(value) && value.every((inner) => inner === null || typeof inner !== "object")) {
    return value.map(plain).join(" · ");
  }
  return typeof value === "string" ? value : JSON.stringify(value);
}
