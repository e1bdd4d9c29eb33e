// What the policy said: samples searched by what they are and what they say, alone or beside the same prompts at another step or in another run.

import { get } from "/static/api.js";
import { inkOn, rewardColor } from "/static/color.js";
import { choice, fill, h, offer } from "/static/dom.js";
import { count, fixed, number, shortId } from "/static/format.js";
import { address } from "/static/head.js";
import { COLOURS, legend, strongest, tokenText } from "/static/token_text.js";

const FIELDS = ["text", "source", "cluster", "step", "state", "low", "high", "shortest", "longest", "beside", "beside_step", "colour"];
const STATES = { failed: "without a reward", judged: "with a reward", cut: "cut by a limit", valued: "with values of tokens" };

export async function samplesView(place, values) {
  const page = new SamplesPage(values);
  fill(place, page.element);
  await page.start();
}

class SamplesPage {
  constructor(values) {
    this.name = values.get("name");
    const numeric = (name, more = {}) => h("input", { type: "number", value: values.get(name), placeholder: "any", ...more });
    const step = (name) => numeric(name, { min: 1, value: values.has(name) ? Number(values.get(name)) + 1 : null });
    this.inputs = {
      text: h("input", { type: "search", placeholder: "in prompts, completions, errors", value: values.get("text"), maxlength: 400, spellcheck: "false" }),
      source: choice("any", [], values.get("source")),
      cluster: numeric("cluster", { min: 0 }), step: step("step"),
      low: numeric("low", { step: "any" }), high: numeric("high", { step: "any" }),
      shortest: numeric("shortest", { min: 0 }), longest: numeric("longest", { min: 0 }),
      state: choice("any", Object.entries(STATES), values.get("state")),
      beside: choice("nothing", [], values.get("beside")),
      beside_step: step("beside_step"),
      colour: choice("nothing", COLOURS, values.get("colour")),
    };
    const titles = { text: "Says", source: "Source", cluster: "Cluster", step: "Step", low: "Reward from", high: "to", shortest: "Tokens from", longest: "to", state: "Only those", beside: "Side by side with", beside_step: "at its step", colour: "Colour tokens by" };
    this.form = h("form", { class: "card filters samples", onsubmit: (event) => { event.preventDefault(); this.apply(); }, onchange: () => this.apply() },
      FIELDS.map((field) => h("label", { class: `of-${field}` }, titles[field], this.inputs[field])), h("button", { class: "button", type: "submit" }, "Search"));
    this.told = h("p", { class: "soft small", role: "status" }, "\u00a0");
    this.list = h("div", { class: "section" });
    this.more = h("button", { class: "button", type: "button", hidden: true, onclick: () => this.page() }, "Older samples");
    this.element = h("div", { class: "section" }, h("h1", {}, "Samples"), this.form, this.told, this.list, h("div", { class: "row" }, this.more));
  }

  async start() {
    const { runs } = await get("runs");
    offer(this.inputs.beside, runs.map(({ name }) => [name, name === this.name ? `${name} (this run)` : name]));
    await this.search();
  }

  values() {
    const values = Object.fromEntries(FIELDS.map((field) => [field, this.inputs[field].value.trim()]));
    for (const field of ["step", "beside_step"]) if (values[field]) values[field] = Number(values[field]) - 1;
    return values;
  }

  apply() {
    history.replaceState(null, "", address("samples", { name: this.name, ...this.values() }));
    this.search();
  }

  async search() {
    this.next = null;
    this.shown = this.looked = 0;
    fill(this.list);
    await this.page();
  }

  async page() {
    const { beside, beside_step: besideStep, colour, ...wanted } = this.values();
    const turn = (this.turn = (this.turn ?? 0) + 1);
    this.more.disabled = true;
    try {
      const found = await get("samples", { name: this.name, ...wanted, before: this.next });
      const others = beside ? await Promise.all(found.groups.map((group) => get("samples/prompt", { name: beside, prompt: group.prompt_id, step: besideStep }))) : [];
      const shown = others.map((other) => other.group);
      if (colour) await Promise.all([...found.groups.map((group) => this.fetchTokens(this.name, group)), ...shown.map((group) => group && this.fetchTokens(beside, group))]);
      if (turn === this.turn) this.show(found, beside, shown, colour);
    } catch (error) {
      if (turn === this.turn) fill(this.list, h("p", { class: "card empty", role: "alert" }, error.message));
    }
  }

  async fetchTokens(name, group) {
    if (group.has_tokens) group.token_values = (await get("samples/tokens", { name, id: group.id, step: group.step, incarnation: group.incarnation })).samples;
  }

  show(found, beside, others, colour) {
    this.next = found.next;
    this.more.hidden = this.next === null;
    this.more.disabled = false;
    this.shown += found.groups.reduce((sum, group) => sum + group.samples.length, 0);
    this.looked += found.looked_at;
    const back = found.next === null ? "all there are" : `back to step ${count(found.step + 1)}`;
    fill(this.told, `${count(this.shown)} samples in ${count(this.looked)} groups, ${back}`, colour ? this.whereKept(found) : null);
    offer(this.inputs.source, found.sources.map((source) => [source, source]));
    this.list.append(...found.groups.map((group, i) => groupCard(this.name, group, beside, others[i], colour)));
    if (!this.shown) fill(this.list, h("p", { class: "card empty" }, "No sample fits. Samples appear once their batch was trained on."));
  }

  /** Says where coloured samples are, where none of those shown is one. */
  whereKept(found) {
    if (this.list.querySelector(".tokens") || found.groups.some((group) => group.token_values?.length)) return null;
    const step = found.newest_tokens;
    if (step === null) return "; this run kept no values of tokens (transcripts.tokens_every)";
    return [`; values of tokens were kept last at `, h("a", { href: address("samples", { name: this.name, state: "valued", colour: this.inputs.colour.value }) }, `step ${count(step + 1)}`)];
  }
}

function groupCard(name, group, beside, other, colour) {
  const prompt = group.prompt ? h("pre", { class: "text", tabindex: "0", "aria-label": "Prompt" }, shown(group.prompt)) : h("p", { class: "soft" }, "The texts were not kept.");
  const rows = (one) => sampleRows(one, colour);
  const column = (run, one) => h("div", { class: "section" }, place(run, one), rows(one));
  const beneath = !beside ? rows(group)
    : h("div", { class: "pair" }, column(name, group), other ? column(beside, other) : h("p", { class: "soft small" }, `No group of this prompt in ${beside}.`));
  return h("section", { class: "card section sampled" }, beside ? null : place(name, group), prompt, beneath);
}

function place(name, group) {
  const link = h("a", { class: "mono", href: address("group", { name, id: group.id, incarnation: group.incarnation }), title: group.id }, shortId(group.id));
  return h("p", { class: "row small soft" }, h("span", {}, `${name}, step ${count(group.step + 1)}`), h("span", {}, group.source), h("span", {}, `cluster ${group.cluster}`), link);
}

function sampleRows(group, colour) {
  if (!colour) return group.samples.map((sample) => sampleRow(sample));
  const values = new Map((group.token_values ?? []).map((one) => [one.index, one]));
  if (!values.size) return [h("p", { class: "small soft" }, "No values of these tokens were kept (transcripts.tokens_every, transcripts.tokens_groups)."), group.samples.map((sample) => sampleRow(sample))];
  const most = strongest(group.token_values, colour);
  return [legend(colour, most), group.samples.map((sample) => sampleRow(sample, values.has(sample.index) ? tokenText(values.get(sample.index), colour, most) : null))];
}

function sampleRow(sample, coloured = null) {
  const reward = sample.reward === null ? "none" : number(sample.reward);
  const badge = h("span", { class: "reward", title: "reward" }, reward);
  badge.style.background = rewardColor(sample.reward);
  badge.style.color = inkOn(sample.reward);
  const parts = Object.entries(sample.parts ?? {}).map(([part, value]) => h("span", {}, `${part} ${number(value)}`));
  const facts = h("div", { class: "row small soft" }, badge, h("span", {}, `A ${fixed(sample.advantage, 3)}`), h("span", {}, `${count(sample.tokens)} tokens${sample.truncated ? ", cut" : ""}`), parts);
  const text = coloured ?? (sample.text ? h("pre", { class: "text", tabindex: "0", "aria-label": `Completion ${sample.index + 1}` }, shown(sample.text)) : null);
  return h("article", { class: "sample", "aria-label": `Sample ${sample.index + 1}` }, facts, sample.error ? h("p", { class: "warn text" }, shown(sample.error)) : null, text);
}

function shown(part) {
  return part.next === null ? part.text : `${part.text} … ${count(part.chars - part.next)} more characters`;
}
