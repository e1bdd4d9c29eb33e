// The parts of a run: its starts, its queues and actors as the driver last saw them, how its time is spent.

import { follow, get, throttled } from "/static/api.js";
import { Chart, stackedBar } from "/static/charts.js";
import { facts, fill, h, table } from "/static/dom.js";
import { count, duration, fixed, NONE } from "/static/format.js";
import { showState } from "/static/head.js";

const REFRESH_MS = 1000;

export async function systemView(place, values, visit) {
  const page = new SystemPage(values.get("name"));
  fill(place, page.element);
  await page.load();
  if (!visit.current()) return () => page.close();
  const stop = follow(page.name, (status) => { showState(status); page.refresh(); });
  return () => { stop(); page.close(); };
}

class SystemPage {
  constructor(name) {
    this.name = name;
    this.charts = [];
    this.services = h("section", { class: "card section narrow" });
    this.phases = h("section", { class: "card section" });
    this.grid = h("div", { class: "charts" });
    this.processes = h("section", { class: "card section narrow", hidden: true });
    this.starts = h("section", { class: "card section narrow" });
    this.versions = h("section", { class: "card section" });
    this.element = h("div", { class: "section" }, h("h1", {}, "System"), this.services, this.processes, this.phases, this.grid, this.starts, this.versions);
    this.refresh = throttled(() => this.load().catch(() => {}), REFRESH_MS);
  }

  close() {
    this.closed = true;
    this.refresh.cancel();
    for (const chart of this.charts) chart.destroy();
  }

  async load() {
    const [found, run] = await Promise.all([get("system", { name: this.name }), get("run", { name: this.name })]);
    if (this.closed) return;
    this.showServices(found);
    this.showProcesses(found);
    fill(this.phases, h("h2", {}, "Where a step's time goes, mean of the last ten"), stackedBar(Object.entries(run.phases), duration));
    this.showStarts(found);
    fill(this.versions, h("h2", {}, "Stands on"), facts(Object.entries(found.versions)),
      found.machine ? h("p", { class: "soft small" }, `${found.machine.processor}, ${found.machine.cores} cores, ${found.machine.memory_gib} GiB`) : null);
    await this.showTimeline(run.series);
  }

  showServices({ services, age_s: age, policy_version: version, checkpoints }) {
    const counts = services.counts ?? {};
    const queue = services.slots === undefined ? [] : [["Groups in flight", `${count(services.in_flight)} of ${count(services.slots)}`], ["Scored, waiting", count(services.scored)], ["Restarts of actors", count(services.restarts)]];
    const pairs = [["Policy version", count(version)], ...queue, ["Groups sampled", count(counts.groups)], ["Trained on", count(counts.trained)], ["Completions", count(counts.completions)],
      ["Without reward", count(counts.errors)], ["Lost", count(counts.lost)], ["Checkpoints", checkpoints.length ? checkpoints.map((step) => count(step)).join(", ") : NONE]];
    const actors = services.actors ?? [];
    fill(this.services, h("div", { class: "row apart" }, h("h2", {}, "Services"), h("span", { class: "soft small" }, age === null ? "this run did not write live.json" : `as of ${duration(age)} ago`)), facts(pairs),
      actors.length ? table("Rollout actors", [["Rollout actor"], ["State"], ["Groups", "num"]], actors.map((actor, i) => [String(i), actor.serving ? "serves" : "comes back", count(actor.load)])) : null);
  }

  showProcesses({ processes }) {
    this.processes.hidden = processes.length === 0;
    fill(this.processes, h("h2", {}, "Processes"), table("Processes", [["Process"], ["Node"], ["Pid", "num"], ["Memory", "num"], ["Threads", "num"]],
      processes.map((one) => [one.role, one.node, String(one.pid), one.resident === null ? NONE : `${fixed(one.resident / 2 ** 30)} GiB`, one.threads === null ? NONE : String(one.threads)])));
  }

  showStarts({ incarnations }) {
    fill(this.starts, h("h2", {}, "Starts of this run"), incarnations.length ? table("Starts of this run", [["Incarnation", "num"], ["Went on after step", "num"], ["First step", "num"], ["Last step", "num"], ["Policy version", "num"]],
      incarnations.map((one) => [one.number, one.after_step < 0 ? "the beginning" : one.after_step + 1, one.first_step === null ? NONE : one.first_step + 1, one.last_step === null ? NONE : one.last_step + 1, one.policy_version ?? NONE].map(String)))
      : h("p", { class: "soft" }, "The ledger says nothing of its starts."));
  }

  async showTimeline(names) {
    const phases = names.filter((name) => name.startsWith("phases/"));
    if (!phases.length) return;
    const found = await get("series", { name: this.name, series: phases });
    if (this.closed) return;
    if (this.charts.length !== phases.length) {
      for (const chart of this.charts) chart.destroy();
      this.charts = phases.map((name) => new Chart({ title: `${name.slice(7)}${name === "phases/publish" ? ": the weights on their way" : ""}`, format: duration, lines: [{ name, label: "seconds a step" }] }));
      fill(this.grid, this.charts.map((chart) => chart.element));
    }
    this.charts.forEach((chart, i) => chart.show({ steps: found.steps, lines: [found.series[phases[i]]] }));
  }
}
