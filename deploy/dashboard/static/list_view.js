// All runs, newest first; two or more can be laid over each other.

import { get } from "/static/api.js";
import { fill, h, table } from "/static/dom.js";
import { count, date, fixed, NONE } from "/static/format.js";
import { address } from "/static/head.js";

const AGAIN_MS = 5000;

export async function listView(place) {
  const chosen = new Set();
  const overlay = h("button", { class: "button main", type: "button", disabled: true, onclick: () => {
    location.hash = address("compare", { run: [...chosen] });
  } }, "Overlay");
  const body = h("div", { class: "card" });
  const title = h("p", { class: "soft small" }, "\u00a0");
  fill(place, h("div", { class: "row apart" }, h("div", {}, h("h1", {}, "Runs"), title), h("div", { class: "row" }, h("span", { class: "soft small" }, "Tick two or more to compare"), overlay)), body);

  function tick(name, box) {
    if (box.checked) chosen.add(name);
    else chosen.delete(name);
    overlay.disabled = chosen.size < 2 || chosen.size > 8;
  }

  let shown = "";
  async function load() {
    const { directory, runs } = await get("runs");
    const now = JSON.stringify(runs);
    if (now === shown) return;
    const focused = document.activeElement?.dataset?.run;
    shown = now;
    title.textContent = `${runs.length} in the directory ${directory}`;
    if (!runs.length) {
      fill(body, h("p", { class: "empty" }, "No run here yet. Start one with bvblend train RECIPE; it appears by itself."));
      return;
    }
    fill(body, table("Runs", [[h("span", { class: "unseen" }, "Compare")], ["Run"], ["State"], ["Estimator"], ["Steps", "num"], ["pass@1", "num"], ["Held out, start → end", "num"], ["Started"]], runs.map((run) => [
      h("input", { type: "checkbox", "aria-label": `Compare ${run.name}`, "data-run": run.name, checked: chosen.has(run.name), onchange: (event) => tick(run.name, event.target) }),
      h("div", {}, h("a", { href: address("run", { name: run.name }) }, run.name), run.problem ? h("div", { class: "problem" }, run.problem) : null),
      h("span", { class: "state", "data-state": run.state }, run.state),
      run.estimator,
      `${count(run.steps)}${run.planned ? ` / ${count(run.planned)}` : ""}`,
      fixed(run.pass_at_1),
      run.held_out ? run.held_out.map((value) => fixed(value)).join(" → ") : NONE,
      h("span", { class: "soft" }, run.started === null ? NONE : date(run.started)),
    ])));
    if (focused) [...body.querySelectorAll("input")].find((box) => box.dataset.run === focused)?.focus();
  }
  await load();
  const timer = setInterval(load, AGAIN_MS);
  return () => clearInterval(timer);
}
