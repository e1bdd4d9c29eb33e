// The clusters as a map, and one of them closely.

import { follow, get, throttled } from "/static/api.js";
import { Chart } from "/static/charts.js";
import { inkOn, rewardColor } from "/static/color.js";
import { facts, fill, h, s, table } from "/static/dom.js";
import { count, fixed, NONE, number } from "/static/format.js";
import { groupRows } from "/static/groups_view.js";
import { address, showState } from "/static/head.js";

const MARGIN = 54;
const SIZES = { wide: [760, 520], narrow: [430, 430] };
const NARROW = matchMedia("(max-width: 700px)");
const SMALLEST = 11, LARGEST = 38;
const REFRESH_MS = 2000;

export async function momentsView(place, values, visit) {
  const page = new MomentsPage(values.get("name"));
  fill(place, page.element);
  await page.load();
  if (values.has("cluster")) await page.open(Number(values.get("cluster")));
  if (!visit.current()) return () => page.close();
  const stop = follow(page.name, (status) => { showState(status); page.refresh(); });
  return () => { stop(); page.close(); };
}

class MomentsPage {
  constructor(name) {
    this.name = name;
    this.selected = null;
    this.clusters = [];
    this.charts = [];
    this.map = s("svg", { class: "map", role: "group", "aria-label": "Map of the clusters; arrow keys go from one to the next" });
    this.note = h("p", { class: "soft small" }, "\u00a0");
    this.list = h("div", {});
    this.panel = h("section", { class: "card section panel", "aria-live": "polite", "aria-label": "One cluster" }, h("p", { class: "empty" }, "Choose a cluster."));
    this.element = h("div", { class: "section" }, h("h1", {}, "Clusters and what is remembered of them"),
      h("div", { class: "moments" }, h("section", { class: "card section" }, this.map, legend(), this.note), this.panel,
        h("section", { class: "card section" }, h("h2", {}, "All clusters"), this.list)));
    this.redraw = () => this.draw(this.clusters);
    NARROW.addEventListener("change", this.redraw);
    this.size();
    this.refresh = throttled(() => this.load().catch(() => {}), REFRESH_MS);
  }

  close() {
    this.closed = true;
    NARROW.removeEventListener("change", this.redraw);
    this.refresh.cancel();
    for (const chart of this.charts) chart.destroy();
  }

  async load() {
    const found = await get("clusters", { name: this.name });
    if (this.closed) return;
    const shown = JSON.stringify(found);
    if (shown === this.shown) return;
    this.shown = shown;
    const parts = [];
    if (found.version === null) parts.push("No clusters yet; they come before the first step.");
    else {
      const known = found.clusters.some((cluster) => cluster.mean !== undefined);
      parts.push(`${count(found.clusters.length + found.left_out)} clusters by ${found.by}, ${found.version}.`);
      parts.push(known ? `Moments after step ${count(found.step)}.` : "This run left no moments; the map shows places only.");
      if (found.retired) parts.push(`${count(found.retired)} retired.`);
      if (found.left_out) parts.push(`The ${count(found.left_out)} lightest are left out.`);
    }
    fill(this.note, parts.join(" "));
    this.draw(found.clusters);
    this.showList(found.clusters);
  }

  size() {
    [this.width, this.height] = NARROW.matches ? SIZES.narrow : SIZES.wide;
    this.map.setAttribute("viewBox", `0 0 ${this.width} ${this.height}`);
  }

  draw(clusters) {
    this.clusters = clusters;
    this.size();
    const heaviest = Math.max(...clusters.map((cluster) => cluster.mass ?? 0), 1e-9);
    const crowd = Math.min(1, Math.sqrt(24 / Math.max(clusters.length, 1)));
    const focused = document.activeElement?.dataset?.cluster;
    const entry = clusters.some((cluster) => cluster.id === this.selected) ? this.selected : clusters[0]?.id;
    // Heavy ones first, so that light ones lie on top and can be hit.
    const bubbles = clusters.map((cluster) => this.bubble(cluster, Math.sqrt((cluster.mass ?? 0) / heaviest), crowd, cluster.id === entry));
    fill(this.map, bubbles);
    if (focused !== undefined) this.map.querySelector(`[data-cluster="${Number(focused)}"]`)?.focus();
  }

  bubble(cluster, share, crowd, entry) {
    const x = MARGIN + ((cluster.x + 1) / 2) * (this.width - 2 * MARGIN), y = MARGIN + ((cluster.y + 1) / 2) * (this.height - 2 * MARGIN);
    const radius = (SMALLEST + share * (LARGEST - SMALLEST)) * (0.4 + 0.6 * crowd) * (NARROW.matches ? 0.75 : 1);
    const seen = cluster.seen ?? cluster.mass > 0;
    const ring = radius + 3.5, around = 2 * Math.PI * ring, trust = Math.min(Math.max(cluster.weight ?? 0, 0), 1);
    const mean = seen ? cluster.mean : null;
    const label = `Cluster ${cluster.id}, ${cluster.name || "no groups yet"}: mean reward ${fixed(mean ?? null)}, mass ${number(cluster.mass ?? null)}, trust ${fixed(cluster.weight ?? null)}`;
    const body = s("circle", { class: "body", cx: x, cy: y, r: radius, fill: rewardColor(mean) });
    return s("g", { class: "bubble", role: "button", tabindex: entry ? 0 : -1, "data-cluster": cluster.id, "aria-label": label, "aria-pressed": String(cluster.id === this.selected),
      onclick: () => this.open(cluster.id), onkeydown: (event) => this.key(event, cluster.id) },
      s("title", {}, label), body,
      s("circle", { class: "track", cx: x, cy: y, r: ring, "stroke-width": 2.5 }),
      s("circle", { class: "ring", cx: x, cy: y, r: ring, "stroke-width": 2.5, "stroke-dasharray": `${trust * around} ${around}`, transform: `rotate(-90 ${x} ${y})` }),
      s("circle", { class: "halo", cx: x, cy: y, r: ring + 4.5 }),
      radius > 11 ? s("text", { x, y, fill: inkOn(mean), "aria-hidden": "true" }, String(cluster.id)) : null);
  }

  key(event, cluster) {
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      this.open(cluster);
      return;
    }
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    const all = [...this.map.querySelectorAll(".bubble")];
    const next = all[(all.findIndex((one) => Number(one.dataset.cluster) === cluster) + step + all.length) % all.length];
    for (const one of all) one.setAttribute("tabindex", one === next ? "0" : "-1");
    next.focus();
  }

  showList(clusters) {
    fill(this.list, table("All clusters", [["Id", "num"], ["Mostly"], ["Mean", "num"], ["± sd", "num"], ["Mass", "num"], ["Trust", "num"]], clusters.slice(0, 100).map((cluster) => [
      String(cluster.id),
      h("button", { class: "link", type: "button", onclick: () => this.open(cluster.id) }, cluster.name || `cluster ${cluster.id}`),
      fixed(cluster.mean), cluster.variance === undefined ? NONE : fixed(Math.sqrt(cluster.variance)), number(cluster.mass), fixed(cluster.weight)])));
  }

  async open(cluster) {
    this.selected = cluster;
    for (const one of this.map.querySelectorAll(".bubble")) one.setAttribute("aria-pressed", String(Number(one.dataset.cluster) === cluster));
    history.replaceState(null, "", address("moments", { name: this.name, cluster }));
    let found;
    try {
      found = await get("cluster", { name: this.name, cluster });
    } catch (error) {
      fill(this.panel, h("p", { class: "empty" }, error.message));
      return;
    }
    if (this.closed || this.selected !== cluster) return;
    this.showCluster(found);
  }

  showCluster(found) {
    for (const chart of this.charts) chart.destroy();
    this.charts = [];
    const parts = [h("div", { class: "row apart" }, h("h2", {}, `Cluster ${found.id}${found.name ? `: ${found.name}` : ""}`),
      h("a", { class: "small", href: address("groups", { name: this.name, cluster: found.id }) }, "all its groups"))];
    parts.push(facts([["Mean reward", fixed(found.mean, 3)], ["Mass", number(found.mass)], ["Trust w", fixed(found.weight, 3)], ["Groups", count(found.count)]]));
    if (found.note) parts.push(h("p", { class: "soft small" }, found.note));
    for (const [key, title] of [["reward", "Mean reward of its groups"], ["trust", "Trust in its history"]]) {
      const line = found.history[key];
      if (!line?.steps?.length) continue;
      const chart = new Chart({ title, range: () => [0, 1], format: (value) => fixed(value), lines: [{ name: key, label: "" }] });
      this.charts.push(chart);
      parts.push(chart.element);
      queueMicrotask(() => chart.show({ steps: line.steps, lines: [line] }));
    }
    if (found.exemplars.length) parts.push(h("h3", {}, "Prompts in it"), h("ul", { class: "prompts" }, found.exemplars.map((one) => h("li", {}, one.prompt.text, one.prompt.next === null ? null : "…"))));
    if (found.groups.length) parts.push(h("h3", {}, "Its last groups"), groupRows(this.name, found.groups, ["step", "id", "outcome", "rewards"]));
    fill(this.panel, parts);
  }
}

function legend() {
  const stops = 12, cell = 12;
  const ramp = s("svg", { width: stops * cell, height: 10, "aria-hidden": "true" }, Array.from({ length: stops }, (_, i) =>
    s("rect", { x: i * cell, y: 0, width: cell + 0.5, height: 10, fill: rewardColor(i / (stops - 1)) })));
  return h("div", { class: "scale" }, h("span", {}, "mean reward 0"), h("span", { class: "ramp" }, ramp), h("span", {}, "1"),
    h("span", {}, "· size: mass · ring: trust in history"));
}

