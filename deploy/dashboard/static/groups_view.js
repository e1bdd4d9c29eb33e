// Groups, searched by what they are; newest first, a page at a time.

import { follow, get, throttled } from "/static/api.js";
import { choice, fill, h, offer, table } from "/static/dom.js";
import { count, fixed, number, shortId } from "/static/format.js";
import { address, showState } from "/static/head.js";

const WORDS = { mixed: "mixed", solved: "all solved", unsolved: "none solved", error: "no reward", lost: "not trained on", rescued: "equal rewards, yet an advantage" };
const AGAIN_MS = 2000;
const FIELDS = ["id", "cluster", "step", "source", "outcome"];

export async function groupsView(place, values, visit) {
  const page = new GroupsPage(values);
  fill(place, page.element);
  await page.search();
  if (!visit.current()) return undefined;
  const stop = follow(page.name, (status) => { showState(status); page.progress(status); });
  return () => { stop(); page.again.cancel(); };
}

/** Rows of a list of groups with these columns: step, id, cluster, source, outcome, rewards, weight, tokens. */
export function groupRows(name, groups, columns) {
  const kinds = {
    step: ["Step", "num", (group) => count(group.step + 1)],
    id: ["Group", "mono", (group) => h("a", { href: address("group", { name, id: group.id, incarnation: group.incarnation }), title: group.id }, shortId(group.id))],
    cluster: ["Cluster", "num", (group) => h("a", { href: address("moments", { name, cluster: group.cluster }) }, String(group.cluster))],
    source: ["Source", "", (group) => group.source],
    outcome: ["Outcome", "", (group) => h("span", { class: `chip ${group.outcome}` }, WORDS[group.outcome])],
    rewards: ["Rewards", "", (group) => dots(group.rewards)],
    weight: ["w", "num", (group) => fixed(group.weight)],
    push: ["mean |A|", "num", (group) => fixed(meanSize(group.advantages))],
    tokens: ["Tokens", "num", (group) => count(group.tokens)],
  };
  return table("Groups", columns.map((key) => kinds[key].slice(0, 2)), groups.map((group) => columns.map((key) => kinds[key][2](group))));
}

/** The words for an outcome. */
export function outcomeWords(outcome) {
  return WORDS[outcome] ?? outcome;
}

function dots(rewards) {
  const shown = rewards.slice(0, 24);
  const label = `rewards ${rewards.map((reward) => (reward === null ? "none" : number(reward))).join(", ")}`;
  return h("span", { class: "dots", role: "img", "aria-label": label }, shown.map((reward) =>
    h("span", { class: `dot ${reward === null ? "none" : reward >= 1 ? "full" : reward > 0 ? "part" : ""}` })));
}

function meanSize(advantages) {
  const known = (advantages ?? []).filter((value) => value !== null);
  return known.length ? known.reduce((sum, value) => sum + Math.abs(value), 0) / known.length : null;
}

class GroupsPage {
  constructor(values) {
    this.name = values.get("name");
    this.groups = [];
    this.inputs = {
      id: h("input", { type: "search", placeholder: "beginning of an id", value: values.get("id"), autocomplete: "off", spellcheck: "false", maxlength: 400 }),
      cluster: h("input", { type: "number", min: 0, value: values.get("cluster"), placeholder: "any" }),
      step: h("input", { type: "number", min: 1, value: values.has("step") ? Number(values.get("step")) + 1 : null, placeholder: "any" }),
      source: choice("any", [], values.get("source")),
      outcome: choice("any", Object.entries(WORDS), values.get("outcome")),
    };
    const titles = { id: "Group", cluster: "Cluster", step: "Step", source: "Source", outcome: "Outcome" };
    this.form = h("form", { class: "card filters", onsubmit: (event) => { event.preventDefault(); this.apply(); }, onchange: () => this.apply() },
      FIELDS.map((field) => h("label", {}, titles[field], this.inputs[field])), h("button", { class: "button", type: "submit" }, "Search"));
    this.again = throttled(() => this.countAgain().catch(() => {}), AGAIN_MS);
    this.total = h("p", { class: "soft small", role: "status" }, "\u00a0");
    this.rows = h("div", { class: "card" });
    this.more = h("button", { class: "button", type: "button", hidden: true, onclick: () => this.page() }, "Older groups");
    this.element = h("div", { class: "section" }, h("h1", {}, "Groups"), this.form, this.total, this.rows, h("div", { class: "row" }, this.more));
  }

  wanted() {
    const values = Object.fromEntries(FIELDS.map((field) => [field, this.inputs[field].value.trim()]));
    if (values.step) values.step = Number(values.step) - 1;
    return { name: this.name, ...values };
  }

  apply() {
    history.replaceState(null, "", address("groups", this.wanted()));
    this.search();
  }

  async search() {
    this.groups = [];
    this.next = null;
    await this.page();
  }

  async page() {
    const wanted = this.wanted(), turn = (this.turn = (this.turn ?? 0) + 1);
    this.more.disabled = true;
    let found;
    try {
      found = await get("groups", { ...wanted, before: this.next });
    } catch (error) {
      if (turn === this.turn) fill(this.rows, h("p", { class: "empty", role: "alert" }, error.message));
      return;
    }
    if (turn !== this.turn) return;
    this.groups.push(...found.groups);
    this.next = found.next;
    this.tell(found.total);
    this.show(found);
  }

  /** The run goes on: count again, and show what is new where nobody has paged further. */
  progress(status) {
    if (status.steps === this.steps) return;
    this.steps = status.steps;
    this.again();
  }

  async countAgain() {
    const turn = this.turn;
    const found = await get("groups", this.wanted());
    if (turn !== this.turn) return;
    this.tell(found.total);
    if (this.groups.length > found.groups.length || document.activeElement?.closest("table")) return;
    this.groups = found.groups;
    this.next = found.next;
    this.show(found);
  }

  show(found) {
    this.more.hidden = this.next === null;
    this.more.disabled = false;
    offer(this.inputs.source, found.sources.map((source) => [source, source]));
    fill(this.rows, this.groups.length ? groupRows(this.name, this.groups, ["step", "id", "cluster", "source", "outcome", "rewards", "push", "weight", "tokens"])
      : h("p", { class: "empty" }, "No group fits. Groups appear once their batch was trained on."));
  }

  tell(total) {
    fill(this.total, `${count(total)} found`);
  }
}
