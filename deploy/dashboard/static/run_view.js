// One run from its first step to its newest.

import { follow, get, throttled } from "/static/api.js";
import { Chart, histogram, spark, stackedBar } from "/static/charts.js";
import { chartsFor, otherSeries, single, SOURCE } from "/static/chart_specs.js";
import { fill, h, setText, table } from "/static/dom.js";
import { count, duration, fixed, number, percent } from "/static/format.js";
import { showState } from "/static/head.js";
import { rewardMap } from "/static/reward_map.js";

const REFRESH_MS = 1000, REWARDS_MS = 30_000;

export async function runView(place, values, visit) {
  const name = values.get("name");
  const view = new RunPage(name);
  fill(place, view.element);
  await view.load();
  if (!visit.current()) return () => view.close();
  view.follow();
  return () => view.close();
}

/** The interval of an evaluation's pass@1. */
function sure(row) {
  if (typeof row.low === "number" && typeof row.high === "number") return `${fixed(row.low, 3)} to ${fixed(row.high, 3)}`;
  return typeof row.half_width === "number" ? `± ${fixed(row.half_width, 3)}` : "–";
}

/** pass@1, and of the others those of all samples. */
function shownMeasures({ measures }) {
  const depth = (name) => Number(name.split(/[@^]/)[1]) || 0;
  const deepest = Math.max(...Object.keys(measures).map(depth), 1);
  return Object.entries(measures).filter(([name]) => name === "pass@1" || depth(name) === deepest);
}

function files(name, { file, picture }) {
  const link = (path, value, text) => h("a", { href: `${path}?${new URLSearchParams({ name, file: value })}` }, text);
  return h("span", {}, link("/api/evaluated/file", file, "JSON"), picture ? [" ", link("/evaluated/picture", picture, "picture")] : null);
}

class RunPage {
  constructor(name) {
    this.name = name;
    this.range = null;
    this.charts = [];
    this.more = new Set();
    this.stop = () => {};
    this.tiles = new Tiles();
    this.alarms = h("section", { class: "card alarms", hidden: true });
    this.problem = h("p", { class: "card problem", role: "alert", hidden: true });
    this.grid = h("div", { class: "charts" });
    this.sources = h("div", { class: "sources" });
    this.sourcesCard = h("section", { class: "card section", hidden: true }, h("h2", {}, "pass@1 by source"), this.sources);
    this.phases = h("div", {});
    this.phasesCard = h("section", { class: "card section", hidden: true }, h("h2", {}, "A step's phases, mean of the last ten"), this.phases);
    this.histograms = h("div", { class: "pair" });
    this.rewards = h("section", { class: "card section", hidden: true });
    this.evaluations = h("section", { class: "card section narrow", hidden: true });
    this.evaluated = h("section", { class: "card section", hidden: true });
    this.advice = h("section", { class: "card section narrow", hidden: true });
    this.picker = h("select", { "aria-label": "Add another series", onchange: () => this.add() });
    this.reset = h("button", { class: "button", type: "button", disabled: true, onclick: () => this.zoom(null) }, "All steps");
    this.element = h("div", { class: "section" }, h("h1", { class: "unseen" }, `Run ${name}`), this.tiles.element, this.problem, this.alarms,
      h("h2", { class: "unseen" }, "Charts"),
      h("div", { class: "row apart" }, h("p", { class: "soft small" }, "Drag across a chart to look closer."), h("div", { class: "row" }, this.picker, this.reset)),
      this.grid, this.sourcesCard, this.phasesCard, this.rewards, this.histograms, this.evaluations, this.evaluated, this.advice);
    this.spread = throttled(() => this.showRewards(), REWARDS_MS);
    this.others = throttled(() => this.showEvaluated(), REWARDS_MS);
    this.refresh = throttled(() => this.load().catch((error) => this.trouble(error)), REFRESH_MS);
  }

  close() {
    this.closed = true;
    this.stop();
    this.refresh.cancel();
    this.spread.cancel();
    this.others.cancel();
    for (const chart of this.charts) chart.destroy();
  }

  follow() {
    this.showRewards();
    this.showEvaluated();
    this.stop = follow(this.name, (run) => {
      this.show(run);
      this.refresh();
    });
  }

  /** Everything but the curves; the server says it whenever anything changed. */
  show(run) {
    this.run = run;
    this.tiles.show(run);
    showState(run);
    this.ensureCharts(run.series);
    this.showPhases(run.phases);
    if (run.steps) this.spread();
    this.others();
    this.showHistograms(run.histograms);
    this.problem.hidden = run.problem === null;
    setText(this.problem, run.problem ?? "");
    this.showAlarms(run.alarms, run.alarm_count);
    this.showEvaluations(run.evaluations);
    this.showAdvice(run.advice);
  }

  async load() {
    if (!this.run) {
      const run = await get("run", { name: this.name });
      if (this.closed) return;
      this.show(run);
    }
    const { run } = this;
    const wanted = [...this.charts.flatMap((chart) => chart.spec.lines.map((line) => line.name)), ...run.series.filter((one) => one.startsWith(SOURCE))];
    const range = this.range ? { first: this.range[0], last: this.range[1] } : {};
    const { charts } = this, turn = (this.turn = (this.turn ?? 0) + 1);
    const found = wanted.length ? await get("series", { name: this.name, series: wanted, ...range }) : { steps: [], series: {} };
    if (this.closed || charts !== this.charts || turn !== this.turn) return; // an answer to what was asked before
    for (const chart of charts) chart.show({ steps: found.steps, lines: chart.spec.lines.map((line) => found.series[line.name]) });
    this.showSources(found.series);
  }

  ensureCharts(names) {
    const specs = [...chartsFor(names), ...otherSeries(names).filter((name) => this.more.has(name)).map(single)];
    const key = JSON.stringify(specs.map((spec) => [spec.title, spec.lines.length]));
    if (key === this.key) return;
    this.key = key;
    for (const chart of this.charts) chart.destroy();
    this.charts = specs.map((spec) => new Chart({ ...spec, zoom: (first, last) => this.zoom([first, last]) }));
    fill(this.grid, this.charts.length ? this.charts.map((chart) => chart.element) : h("p", { class: "card empty" }, "No step yet. The first one appears here by itself."));
    fill(this.picker, h("option", { value: "" }, "Another series…"), otherSeries(names).filter((name) => !this.more.has(name)).map((name) => h("option", { value: name }, name)));
  }

  add() {
    this.more.add(this.picker.value);
    this.ensureCharts(this.run.series);
    this.load().catch((error) => this.trouble(error));
  }

  zoom(range) {
    this.range = range;
    this.reset.disabled = range === null;
    this.load().catch((error) => this.trouble(error));
  }

  showSources(series) {
    const rows = Object.entries(series).filter(([name]) => name.startsWith(SOURCE));
    this.sourcesCard.hidden = rows.length === 0;
    fill(this.sources, rows.map(([name, { trend }]) => {
      const source = name.slice(SOURCE.length), latest = trend.findLast((value) => value !== null) ?? null;
      return h("div", { class: "source" }, h("span", { class: "name", title: source }, source),
        spark(trend, [0, 1], `${source}: pass@1 over the steps, now ${fixed(latest)}`), h("span", { class: "num" }, fixed(latest)));
    }));
  }

  /** Read from the ledger, so seldom while the run goes on. */
  async showRewards() {
    let found;
    try {
      found = await get("rewards", { name: this.name });
    } catch (error) {
      this.trouble(error);
      return;
    }
    if (this.closed) return;
    this.rewards.hidden = found.steps.length === 0;
    if (found.steps.length) fill(this.rewards, h("h2", {}, "Rewards over the steps, share of completions"), rewardMap(found));
  }

  showPhases(phases) {
    const parts = Object.entries(phases);
    this.phasesCard.hidden = parts.length === 0;
    fill(this.phases, stackedBar(parts, duration));
  }

  showHistograms({ mismatch, staleness }) {
    const versions = (behind) => (behind === "0" ? "the same version" : `${behind} version${behind === "1" ? "" : "s"} behind`);
    const shown = [
      ["Tokens by mismatch of sampler and learner (nats)", Object.entries(mismatch)],
      ["Groups by staleness", Object.entries(staleness).map(([behind, share]) => [versions(behind), share])],
    ].filter(([, bins]) => bins.length);
    fill(this.histograms, shown.map(([title, bins]) => h("section", { class: "card section" }, h("h2", {}, title), histogram(bins, title))));
  }

  showAlarms(alarms, all) {
    this.alarms.hidden = all === 0;
    fill(this.alarms, h("h2", {}, all === 1 ? "One alarm" : `${count(all)} alarms`), h("ul", {}, alarms.map((alarm) =>
      h("li", {}, `step ${count(alarm.step + 1)}: ${alarm.kind} ${alarm.cluster === null ? "in all clusters" : `in cluster ${alarm.cluster}`}: ${number(alarm.found)}, expected ${number(alarm.expected)}`))));
  }

  showEvaluations(rows) {
    this.evaluations.hidden = rows.length === 0;
    const label = "Evaluations";
    fill(this.evaluations, h("h2", {}, label), table(label, [["After step", "num"], ["Prompts"], ["pass@1", "num"], ["95 %", "num"], ["Count", "num"], ["Without reward", "num"]],
      rows.map((row) => [count(row.step), row.split === "held_out" ? "held out" : row.split, fixed(row.pass_at_1, 3), sure(row), count(row.prompts), count(row.errors)])));
  }

  /** Evaluations that `bvblend eval` left in the run's directory. */
  async showEvaluated() {
    let found;
    try {
      found = (await get("evaluated", { name: this.name })).evaluated;
    } catch (error) {
      this.trouble(error);
      return;
    }
    if (this.closed) return;
    this.evaluated.hidden = found.length === 0;
    const label = "Evaluated by bvblend eval";
    fill(this.evaluated, h("h2", {}, label), table(label, [["After step", "num"], ["Policy"], ["Prompts"], ["Measure"], ["Mean", "num"], ["95 %", "num"], ["Prompts counted", "num"], ["Samples", "num"], ["Without reward", "num"], ["Files"]],
      found.flatMap((one) => shownMeasures(one).map(([name, measure], i) => (i === 0
        ? [one.step === null ? "–" : count(one.step), one.policy, one.of, name, fixed(measure.mean, 3), sure({ low: measure.exact_low, high: measure.exact_high }), count(measure.prompts), count(one.samples), count(one.unscored), files(this.name, one)]
        : ["", "", "", name, fixed(measure.mean, 3), sure({ low: measure.exact_low, high: measure.exact_high }), count(measure.prompts), "", "", ""])))));
  }

  /** What the rewards of a finished run say of the next one. */
  showAdvice(reasons) {
    this.advice.hidden = reasons.length === 0;
    fill(this.advice, h("h2", {}, "What its rewards advise"), h("ul", {}, reasons.map((reason) => h("li", {}, reason))),
      h("p", { class: "soft small" }, "bvblend advise, with this run's directory, compares group sizes too."));
  }

  trouble(error) {
    this.alarms.hidden = false;
    fill(this.alarms, h("p", { role: "alert" }, error.message));
  }
}

/** The head of a run in six numbers. */
class Tiles {
  constructor() {
    this.cells = {};
    const titles = [["steps", "Step"], ["pass", "pass@1"], ["signal", "Effective signal"], ["reward", "Mean reward"], ["speed", "Speed"], ["eta", "Time left"]];
    this.element = h("dl", { class: "tiles" }, titles.map(([key, title]) => {
      const value = h("span", {}, "–"), note = h("div", { class: "note" }, "\u00a0");
      this.cells[key] = { value, note };
      return h("div", { class: `tile${key === "pass" ? " strong" : ""}` }, h("dt", {}, title), h("dd", {}, value, note));
    }));
  }

  show(status) {
    const recent = status.recent;
    this.set("steps", count(status.steps), reading(status) ?? (status.planned ? `of ${count(status.planned)}` : ""));
    this.set("pass", fixed(recent["reward/pass_at_1"], 3), "mean of ten steps");
    this.set("signal", percent(recent["effective_signal/own"]), `GRPO's, same groups: ${percent(recent["effective_signal/grpo"])}`);
    this.set("reward", fixed(recent["reward/mean"], 3), status.estimator);
    this.set("speed", `${number(recent.tokens_per_s)} tok/s`, `${duration(recent.seconds)} a step`);
    this.set("eta", status.state === "running" ? duration(status.eta_s) : status.state, status.state === "running" ? "at the last steps' pace" : "");
  }

  set(key, value, note) {
    setText(this.cells[key].value, value);
    setText(this.cells[key].note, note || "\u00a0");
  }
}

function reading(status) {
  const share = status.read;
  return share < 1 ? `reading, ${percent(share)}` : null;
}
