// The page: which view is shown, for which run, and the head above it.

import { get } from "/static/api.js";
import { repaintCharts } from "/static/charts.js";
import { fill, h, setText } from "/static/dom.js";
import { compareView } from "/static/compare_view.js";
import { groupView } from "/static/group_view.js";
import { groupsView } from "/static/groups_view.js";
import { address, showState } from "/static/head.js";
import { listView } from "/static/list_view.js";
import { momentsView } from "/static/moments_view.js";
import { runView } from "/static/run_view.js";
import { samplesView } from "/static/samples_view.js";
import { systemView } from "/static/system_view.js";

const TABS = [["run", "Run"], ["moments", "Moments"], ["groups", "Groups"], ["samples", "Samples"], ["system", "System"]];
const VIEWS = { "": listView, compare: compareView, run: runView, moments: momentsView, groups: groupsView, group: groupView, samples: samplesView, system: systemView };

const main = document.getElementById("main");
const picker = document.getElementById("run-picker");
const tabs = document.getElementById("tabs");
let leave = () => {};
let visit = 0;

function here() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  return { view: path in VIEWS ? path : "", values: new URLSearchParams(query) };
}

async function go() {
  const mine = ++visit;
  const { view, values } = here();
  leave();
  leave = () => {};
  showState(null);
  const name = values.get("name");
  head(view, name);
  const place = h("div", { class: "section" });
  fill(main, place);
  delete document.documentElement.dataset.ready;
  try {
    const left = await VIEWS[view](place, values, { current: () => mine === visit });
    if (mine !== visit) left?.();
    else leave = left ?? (() => {});
  } catch (error) {
    if (mine !== visit) return;
    fill(place, h("div", { class: "card empty", role: "alert" }, error.message, h("p", {}, h("a", { href: "#/" }, "all runs"))));
  }
  if (mine === visit) document.documentElement.dataset.ready = view || "list";
}

function head(view, name) {
  document.title = name ? `${name} · bvblend` : "bvblend";
  const shown = view === "group" ? "groups" : view;
  fill(tabs, name === null ? h("a", { href: "#/", "aria-current": view === "" ? "page" : null }, "Runs") : TABS.map(([tab, title]) =>
    h("a", { href: address(tab, { name }), "aria-current": tab === shown ? "page" : null }, title)));
  pick(name);
}

function pick(name) {
  if (name !== null && ![...picker.options].some((option) => option.value === name)) picker.append(h("option", { value: name }, name));
  picker.value = name ?? "";
}

async function fillPicker() {
  const { runs } = await get("runs");
  fill(picker, h("option", { value: "" }, "All runs"), runs.map((run) => h("option", { value: run.name }, run.name)));
  pick(here().values.get("name"));
}

picker.addEventListener("change", () => {
  const { view } = here();
  const kept = TABS.some(([tab]) => tab === view) ? view : view === "group" ? "groups" : "run";
  location.hash = picker.value ? address(kept, { name: picker.value }) : "#/";
});

document.getElementById("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  try { localStorage.setItem("theme", root.dataset.theme); } catch { /* a private window forgets it */ }
  repaintCharts();
  dispatchEvent(new Event("themechange"));
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaintCharts);
// The link for keyboards must not look like an address of a view.
document.querySelector(".skip").addEventListener("click", (event) => { event.preventDefault(); main.focus(); });

addEventListener("hashchange", () => { go(); scrollTo(0, 0); });
go();
fillPicker();
