// One group in full: what was asked, what was answered, and where every advantage came from.

import { get } from "/static/api.js";
import { facts, fill, h, table } from "/static/dom.js";
import { count, fixed, number } from "/static/format.js";
import { outcomeWords } from "/static/groups_view.js";
import { address, showState } from "/static/head.js";

export async function groupView(place, values, visit) {
  const name = values.get("name"), key = { name, id: values.get("id"), incarnation: values.get("incarnation") };
  const [group, run] = await Promise.all([get("group", key), get("run", { name })]);
  if (!visit.current()) return;
  showState(run);
  const verdict = h("p", { class: "verdict small soft", role: "status" }, "\u00a0");
  const pieces = h("div", {});
  const completions = group.completions.map((completion, i) => new Completion(key, completion, i, run.estimator));
  fill(place, head(group, name), h("section", { class: "card section" }, h("h2", {}, "Prompt"), group.prompt
    ? new LongText(key, -1, group.prompt).element : h("p", { class: "soft" }, group.texts_dropped ? "The texts were dropped when the ledger had grown (docs/ledger.md)." : "The text was not kept (transcripts.share).")),
    h("section", { class: "card section" }, h("h2", {}, "Where its advantages came from"), h("p", { class: "formula" }, "A = (reward − baseline) / scale; w is the trust in the cluster's history"), pieces, verdict),
    h("section", { class: "card" }, h("h2", {}, "Completions"), completions.map((completion) => completion.element)));
  showPieces(pieces, run.estimator, group, null);
  if (group.waiting) fill(verdict, "It waits for its batch, or the run ended before.");
  else computeAgain(key, false, { verdict, pieces, completions, group, run });
}

async function computeAgain(key, patient, parts) {
  const { verdict, pieces, completions, group, run } = parts;
  fill(verdict, "Computing again from the ledger…");
  let found;
  try {
    found = await get("group/recomputed", { ...key, patient: patient || null });
  } catch (error) {
    fill(verdict, error.message);
    return;
  }
  if (found.state === "untrained") fill(verdict, "Folded into history, but not trained on.");
  else if (found.state === "ask") {
    fill(verdict, `To compute it again, ${count(found.commits)} commits have to be folded. `,
      h("button", { class: "link", type: "button", onclick: () => computeAgain(key, true, parts) }, "Do it"));
  } else {
    verdict.className = `verdict small ${found.same ? "good" : "warn"}`;
    fill(verdict, found.same ? "✓ computed again from the ledger: the same, bit for bit" : "✗ computed again from the ledger: NOT the same");
    showPieces(pieces, run.estimator, group, found);
    completions.forEach((completion, i) => completion.showAgain(found.recomputed.advantages[i], found.grpo.advantages[i]));
  }
}

function head(group, name) {
  const where = group.waiting ? "not folded yet" : `step ${count(group.step + 1)}`;
  return h("div", { class: "section" }, h("div", { class: "row" }, h("a", { href: address("groups", { name }) }, "← groups"), h("span", { class: `chip ${group.outcome}` }, outcomeWords(group.outcome)),
    group.superseded ? h("span", { class: "chip lost" }, "past a checkpoint that a resume went back to") : null),
  h("h1", { class: "mono" }, group.id),
  h("section", { class: "card" }, facts([["Step", group.waiting ? where : h("a", { href: address("groups", { name, step: group.step }) }, count(group.step + 1))],
    ["Cluster", h("a", { href: address("moments", { name, cluster: group.cluster }) }, String(group.cluster))], ["Source", group.source],
    ["Place in the feed", count(group.sequence)], ["Policy versions", group.versions[0] === group.versions[1] ? String(group.versions[0]) : group.versions.join(" to ")], ["Incarnation", String(group.incarnation)]])));
}

function showPieces(place, estimator, group, again) {
  const row = (name, numbers) => [name, number(numbers.baseline, 5), number(numbers.scale, 5), number(numbers.weight, 5)];
  const rows = [row(`${estimator}, as trained`, group)];
  rows.push(again ? row("computed again", again.recomputed) : ["computed again", "…", "…", "…"]);
  rows.push(again ? row("GRPO would have used", again.grpo) : ["GRPO would have used", "…", "…", "…"]);
  const past = again?.past;
  fill(place, h("div", { class: "narrow" }, table("What the advantages are made of", [["Estimator", ""], ["Baseline", "num"], ["Scale", "num"], ["w", "num"]], rows)),
    h("p", { class: "small soft" }, !past ? "\u00a0" : past.seen ? `Its cluster before this step: mean ${number(past.mean, 4)}, variance ${number(past.variance, 4)}, mass ${number(past.mass, 4)}.` : "Its cluster was never seen before this step."));
}

class Completion {
  constructor(key, completion, place, estimator) {
    this.again = h("dd", {}, "…");
    this.grpo = h("dd", {}, "…");
    const parts = Object.entries(completion.parts ?? {}).map(([name, part]) => [h("dt", { class: "part" }, name), h("dd", { class: "part" }, number(part))]);
    const numbers = h("dl", { class: "numbers" }, h("dt", {}, "Reward"), h("dd", {}, completion.reward === null ? "none" : number(completion.reward)), parts,
      h("dt", {}, `A (${estimator})`), h("dd", {}, fixed(completion.advantage, 4)), h("dt", {}, "computed again"), this.again, h("dt", {}, "under GRPO"), this.grpo,
      h("dt", {}, "Tokens"), h("dd", {}, `${count(completion.tokens)}${completion.truncated ? ", cut" : ""}`));
    const text = completion.error ? h("p", { class: "warn text" }, completion.error.text)
      : completion.text ? new LongText(key, place, completion.text).element : h("p", { class: "soft" }, "The text was not kept.");
    this.element = h("article", { class: "completion", "aria-label": `Completion ${place + 1}` }, numbers, text);
  }

  showAgain(advantage, grpo) {
    this.again.textContent = fixed(advantage, 4);
    this.grpo.textContent = fixed(grpo, 4);
  }
}

/** A text that may be endless: its beginning, and more of it when asked. It is only ever text. */
class LongText {
  constructor(key, place, part) {
    this.key = key;
    this.place = place;
    this.text = h("pre", { class: "text", tabindex: "0", "aria-label": place < 0 ? "Prompt" : `Text of completion ${place + 1}` }, part.text);
    this.left = h("span", { class: "soft small" });
    this.button = h("button", { class: "link small", type: "button", onclick: () => this.more() }, "Show more");
    this.foot = h("p", { class: "row" }, this.button, this.left);
    this.element = h("div", { class: "section" }, this.text, this.foot);
    this.continued(part);
  }

  continued(part) {
    this.next = part.next;
    this.foot.hidden = part.next === null;
    this.left.textContent = part.next === null ? "" : `${count(part.next)} of ${count(part.chars)} characters`;
  }

  async more() {
    this.button.disabled = true;
    try {
      const part = await get("group/text", { ...this.key, completion: this.place, offset: this.next });
      this.text.append(part.text);
      this.continued(part);
    } catch (error) {
      this.left.textContent = error.message;
    }
    this.button.disabled = false;
  }
}
