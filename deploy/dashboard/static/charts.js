// Lines over steps. Each chart is a card of fixed height: nothing moves when numbers change.

import uPlot from "/static/vendor/uPlot.esm.js";
import { themed } from "/static/color.js";
import { h, s, setText } from "/static/dom.js";
import { number, percent } from "/static/format.js";

const PALETTE = 8;
const sync = uPlot.sync("steps");
const live = new Set();

/** Which colour the line of a place has; "ko" is for what is only compared with. */
export function keyOf(line, place) {
  return line.other ? "ko" : `k${(line.color ?? place) % PALETTE}`;
}

function colorOf(line, place) {
  return themed(line.other ? "--other" : `--c${(line.color ?? place) % PALETTE}`);
}

/**
 * A chart in a card.
 * spec: {title, lines: [{name, label, other?, color?, format?}], format?, range?, wide?, zoom?: (first, last) => void}
 * Its `show(data)` takes {steps, lines: [{values, trend}]} in the order of spec.lines.
 */
export class Chart {
  constructor(spec) {
    this.spec = spec;
    this.plot = null;
    this.data = null;
    this.format = spec.format ?? number;
    this.at = h("span", { class: "at" });
    this.values = spec.lines.map(() => h("b", {}, ""));
    const legend = spec.lines.map((line, i) => h("span", {},
      h("i", { class: `key ${keyOf(line, i)}${line.other ? " dashed" : ""}` }), line.label, this.values[i]));
    this.host = h("div", { class: "plot", role: "img" });
    this.element = h("section", { class: `card chart${spec.wide ? " wide" : ""}`, "data-chart": spec.title },
      h("div", { class: "head" }, h("h3", {}, spec.title), this.at), h("div", { class: "legend" }, legend), this.host);
    this.resized = new ResizeObserver(() => this.fit());
    this.resized.observe(this.host);
    live.add(this);
  }

  destroy() {
    this.resized.disconnect();
    this.plot?.destroy();
    this.plot = null;
    live.delete(this);
  }

  show(data) {
    this.data = data;
    const columns = this.columns(data);
    if (this.plot === null) {
      if (this.host.clientWidth === 0) return;
      this.plot = new uPlot(this.options(), columns, this.host);
      sync.sub(this.plot);
    } else {
      this.plot.setData(columns);
    }
    this.point(this.plot.cursor.idx ?? null);
    this.describe();
  }

  columns({ steps, lines }) {
    // What was measured lies faint behind the trend, and the first line on top of the others; where there is one line for
    // each run, only trends are drawn.
    const upwards = [...lines].reverse();
    const faint = this.spec.trendsOnly ? [] : upwards.map((line) => line.values);
    return [steps.map((step) => step + 1), ...faint, ...upwards.map((line) => line.trend)];
  }

  options() {
    const { lines, range, trendsOnly, zoom } = this.spec;
    const text = themed("--soft"), grid = themed("--line");
    const font = "11px system-ui, sans-serif";
    const colors = lines.map((line, i) => colorOf(line, i));
    const faint = trendsOnly ? [] : lines.map((line, i) => ({ stroke: faded(colors[i]), width: 1, points: { show: false } }));
    const trends = lines.map((line, i) => ({
      stroke: colors[i], width: 2, points: { show: false }, dash: line.other ? [5, 4] : undefined, spanGaps: true,
    }));
    const axis = { stroke: text, font, grid: { stroke: grid, width: 1 }, ticks: { show: false } };
    return {
      width: this.host.clientWidth, height: this.host.clientHeight, legend: { show: false }, padding: [6, 16, 0, 0],
      scales: { x: { time: false }, y: { range: range ?? around } },
      axes: [
        { ...axis, size: 24, gap: 3, space: 60, grid: { show: false }, values: (_, ticks) => ticks.map((tick) => (Number.isInteger(tick) ? number(tick) : "")) },
        { ...axis, size: 46, gap: 4, space: 34, values: (_, ticks) => ticks.map((tick) => this.format(tick)) },
      ],
      cursor: {
        y: false, sync: { key: sync.key, setSeries: false }, points: { size: 6 }, drag: { x: Boolean(zoom), y: false, setScale: false },
      },
      series: [{}, ...faint.reverse(), ...trends.reverse()],
      hooks: {
        setCursor: [(plot) => this.point(plot.cursor.idx ?? null)],
        setSelect: [(plot) => this.zoomed(plot)],
      },
    };
  }

  zoomed(plot) {
    if (!this.spec.zoom || plot.select.width < 4) return;
    const first = Math.round(plot.posToVal(plot.select.left, "x")) - 1;
    const last = Math.round(plot.posToVal(plot.select.left + plot.select.width, "x")) - 1;
    plot.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
    if (last > first) this.spec.zoom(Math.max(0, first), last);
  }

  point(index) {
    const { steps, lines } = this.data;
    const place = index === null || index >= steps.length ? steps.length - 1 : index;
    setText(this.at, place < 0 ? "" : `step ${number(steps[place] + 1)}`);
    lines.forEach((line, i) => {
      const format = this.spec.lines[i].format ?? this.format;
      const latest = index === null ? line.trend.findLast((value) => value !== null) : line.trend[place] ?? line.values[place];
      setText(this.values[i], format(latest ?? null));
    });
  }

  describe() {
    const said = this.spec.lines.map((line, i) => {
      const known = this.data.lines[i].trend.filter((value) => value !== null);
      const format = line.format ?? this.format;
      return known.length ? `${line.label} from ${format(known[0])} to ${format(known.at(-1))}` : `${line.label} without values`;
    });
    const label = `${this.spec.title} over ${this.data.steps.length} points: ${said.join("; ")}`;
    if (this.host.getAttribute("aria-label") !== label) this.host.setAttribute("aria-label", label);
  }

  fit() {
    if (this.data === null || this.host.clientWidth === 0) return;
    if (this.plot === null) this.show(this.data);
    else if (this.plot.width !== this.host.clientWidth) this.plot.setSize({ width: this.host.clientWidth, height: this.host.clientHeight });
  }

  repaint() {
    if (this.plot === null) return;
    this.plot.destroy();
    this.plot = null;
    this.show(this.data);
  }
}

/** Draw every chart again, after the theme changed. */
export function repaintCharts() {
  for (const chart of live) chart.repaint();
}

/** A small line without axes. values: numbers or null.    range: [low, high]. */
export function spark(values, [low, high], label) {
  const width = 96, height = 24, step = width / Math.max(values.length - 1, 1);
  let path = "", pen = "M";
  values.forEach((value, i) => {
    if (value === null) return;
    const y = height - 2 - ((value - low) / (high - low || 1)) * (height - 4);
    path += `${pen}${(i * step).toFixed(1)} ${y.toFixed(1)}`;
    pen = "L";
  });
  return s("svg", { class: "spark", width, height, viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", role: "img", "aria-label": label },
    s("line", { x1: 0, x2: width, y1: height - 1, y2: height - 1 }), s("path", { d: path }));
}

/** Parts of a whole as one bar with their names below. parts: [name, value]. */
export function stackedBar(parts, format) {
  const total = parts.reduce((sum, [, value]) => sum + value, 0) || 1;
  const bar = h("div", { class: "stack", role: "img", "aria-label": parts.map(([name, value]) => `${name} ${format(value)}`).join(", ") });
  const names = h("div", { class: "parts" });
  parts.forEach(([name, value], i) => {
    const piece = h("div", { class: `b${i % PALETTE}` });
    piece.style.flex = `${value / total} 1 0`;
    bar.append(piece);
    names.append(h("span", {}, h("i", { class: `swatch b${i % PALETTE}` }), name, h("b", {}, format(value))));
  });
  return h("div", { class: "section" }, bar, names);
}

/** A histogram as rows of bars. bins: [name, share of all], in order. */
export function histogram(bins, label) {
  const most = Math.max(...bins.map(([, share]) => share), 1e-9);
  return h("dl", { class: "histogram", "aria-label": label }, bins.map(([name, share]) => {
    const bar = h("div", { class: "b0" });
    bar.style.width = `${(100 * share) / most}%`;
    return h("div", {}, h("dt", {}, name), h("dd", {}, h("div", { class: "track" }, bar), h("span", { class: "num" }, percent(share))));
  }));
}

function around(_, low, high) {
  if (low === null || high === null) return [0, 1];
  const room = (high - low || Math.abs(high) || 1) * 0.06;
  return [low >= 0 ? Math.max(0, low - room) : low - room, high + room];
}

function faded(color) {
  return color.replace(/^rgb\(([^)]*)\)$/, "rgba($1, 0.28)");
}

