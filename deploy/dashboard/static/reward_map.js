// How rewards were spread over the steps: a column a step, a row a bin, the deeper the colour the more completions.

import { h, s } from "/static/dom.js";
import { count, number, percent } from "/static/format.js";

const ROW = 22, HEIGHT = 18, WIDTH = 1000;

/** found: what /api/rewards answered, with at least one step. */
export function rewardMap({ steps, bins, shares, unscored }) {
  const rows = bins.map(([low, high], i) => ({ name: low === high ? number(low) : `${number(low)} to ${number(high)}`, kind: "full", cells: shares.map((bin) => bin[i]) })).reverse();
  if (unscored.some((share) => share > 0)) rows.push({ name: "no reward", kind: "none", cells: unscored });
  const wide = WIDTH / steps.length, gap = Math.min(2, wide / 8);
  const most = Math.max(...rows.flatMap((row) => row.cells));
  const cells = rows.flatMap((row, r) => row.cells.map((share, c) =>
    s("rect", { class: row.kind, x: c * wide, y: r * ROW, width: wide - gap, height: HEIGHT, "fill-opacity": share > 0 ? 0.08 + (0.92 * share) / most : 0 },
      s("title", {}, `step ${count(steps[c] + 1)}, reward ${row.name}: ${percent(share)}`))));
  const last = steps.length - 1;
  const label = `Rewards by step. At step ${count(steps[last] + 1)}: ${rows.map((row) => `${row.name} ${percent(row.cells[last])}`).join(", ")}`;
  return h("div", { class: "reward-map" }, h("div", { class: "names", "aria-hidden": "true" }, rows.map((row) => h("span", { title: row.name }, row.name))),
    s("svg", { viewBox: `0 0 ${WIDTH} ${rows.length * ROW}`, height: rows.length * ROW, preserveAspectRatio: "none", role: "img", "aria-label": label }, cells),
    h("div", { class: "names now", "aria-hidden": "true" }, rows.map((row) => h("span", {}, percent(row.cells[last])))),
    h("p", { class: "ends soft small" }, h("span", {}, `step ${count(steps[0] + 1)}`), h("span", {}, `step ${count(steps[last] + 1)}`)));
}
