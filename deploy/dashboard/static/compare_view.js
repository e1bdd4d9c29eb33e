// Several runs laid over each other: one colour a run, trends only.

import { get } from "/static/api.js";
import { Chart } from "/static/charts.js";
import { CHARTS } from "/static/chart_specs.js";
import { fill, h, table } from "/static/dom.js";
import { count, fixed, number, percent } from "/static/format.js";
import { address } from "/static/head.js";

const REFRESH_MS = 4000;

export async function compareView(place, values) {
  const names = values.getAll("run");
  const page = new ComparePage(names);
  fill(place, page.element);
  await page.load();
  const timer = setInterval(() => page.running && page.load(), REFRESH_MS);
  return () => { clearInterval(timer); page.close(); };
}

class ComparePage {
  constructor(names) {
    this.names = names;
    this.charts = [];
    this.range = null;
    this.running = false;
    this.head = h("div", { class: "card" });
    this.grid = h("div", { class: "charts" });
    this.reset = h("button", { class: "button", type: "button", disabled: true, onclick: () => this.zoom(null) }, "All steps");
    this.element = h("div", { class: "section" }, h("div", { class: "row apart" }, h("h1", {}, `${names.length} runs over each other`), this.reset), this.head,
      h("h2", { class: "unseen" }, "Charts"), this.grid);
  }

  close() {
    this.closed = true;
    for (const chart of this.charts) chart.destroy();
  }

  zoom(range) {
    this.range = range;
    this.reset.disabled = range === null;
    this.load();
  }

  async load() {
    const first = CHARTS.map((chart) => chart.lines[0].name);
    const range = this.range ? { first: this.range[0], last: this.range[1] } : {};
    const turn = (this.turn = (this.turn ?? 0) + 1);
    const runs = await get("compare", { name: this.names, series: first, ...range });
    if (this.closed || turn !== this.turn) return; // an answer to what was asked before
    this.running = runs.some(({ run }) => run.state === "running" || run.read < 1);
    this.showHead(runs);
    const specs = CHARTS.filter((chart) => runs.some((run) => chart.lines[0].name in run.series));
    if (!this.charts.length) {
      this.charts = specs.map((spec) => new Chart({ ...spec, trendsOnly: true, zoom: (low, high) => this.zoom([low, high]),
        lines: runs.map(({ run }, i) => ({ name: spec.lines[0].name, label: short(run.name), color: i })) }));
      fill(this.grid, this.charts.map((chart) => chart.element));
    }
    this.charts.forEach((chart, i) => chart.show(joined(runs, specs[i].lines[0].name)));
  }

  showHead(runs) {
    const label = "Runs that are compared";
    fill(this.head, table(label, [["Run"], ["Estimator"], ["State"], ["Steps", "num"], ["pass@1", "num"], ["Effective signal", "num"], ["GRPO's", "num"], ["tokens / s", "num"]], runs.map(({ run }, i) => [
      h("span", { class: "row" }, h("i", { class: `key k${i % 8}` }), h("a", { href: address("run", { name: run.name }) }, run.name)),
      run.estimator, run.state, count(run.steps), fixed(run.recent["reward/pass_at_1"], 3), percent(run.recent["effective_signal/own"]), percent(run.recent["effective_signal/grpo"]), number(run.recent.tokens_per_s)])));
  }
}

/** The trends of one series of all runs over all their steps. */
function joined(runs, name) {
  const steps = [...new Set(runs.flatMap((run) => run.steps))].sort((a, b) => a - b);
  const places = new Map(steps.map((step, i) => [step, i]));
  const lines = runs.map((run) => {
    const trend = new Array(steps.length).fill(null);
    run.steps.forEach((step, i) => { trend[places.get(step)] = run.series[name]?.trend[i] ?? null; });
    return { trend, values: trend };
  });
  return { steps, lines };
}

function short(name) {
  return name.replace(/-\d{8}-\d{6}(-\d+)?$/, "");
}
