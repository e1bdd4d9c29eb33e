// Numbers as people read them.

export const NONE = "–";

/** Three or so significant digits; thousands with a thin space. */
export function number(value, digits = 3) {
  if (value === null || value === undefined || Number.isNaN(value)) return NONE;
  const size = Math.abs(value);
  if (size >= 1000) return Math.round(value).toLocaleString("en").replaceAll(",", "\u202f");
  if (size !== 0 && size < 0.001) return value.toExponential(1).replace("e-", "e\u2212");
  return trimmed(value.toPrecision(digits));
}

/** A fixed number of decimals, for numbers that stand beside each other. */
export function fixed(value, decimals = 2) {
  return value === null || value === undefined ? NONE : value.toFixed(decimals).replace("-", "\u2212");
}

export function percent(value) {
  return value === null || value === undefined ? NONE : `${Math.round(value * 100)}\u202f%`;
}

export function count(value) {
  return value === null || value === undefined ? NONE : value.toLocaleString("en").replaceAll(",", "\u202f");
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return NONE;
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 90) return `${number(seconds, 2)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172800) return `${number(seconds / 3600, 2)} h`;
  return `${number(seconds / 86400, 2)} days`;
}

export function date(epoch) {
  return new Date(epoch * 1000).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
}

/** The beginning of a group's id, and what comes after its prompt's hash. */
export function shortId(id) {
  const [prompt, ...rest] = id.split(":");
  return prompt.length > 10 ? `${prompt.slice(0, 8)}…:${rest.join(":")}` : id;
}

function trimmed(text) {
  return text.includes(".") && !text.includes("e") ? text.replace(/\.?0+$/, "") : text;
}
