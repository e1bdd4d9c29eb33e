// A completion token by token, each on the colour of a value: orange below zero, blue above it, told apart without red and green.

import { fill, h } from "/static/dom.js";
import { count, fixed, percent } from "/static/format.js";

const UNLIKELY_NATS = 5;
const LEAST_MISMATCH = 0.05;
const STRONGEST = 62;
const KINDS = {
  logprob: { title: "log-prob", of: (token) => token[1], legend: () => [["low", "unlikely"], ["", "certain"]], ends: () => [`${fixed(-UNLIKELY_NATS, 0)} nats`, "0"] },
  advantage: { title: "advantage", of: (token) => token[3], legend: () => [["low", "pushed down"], ["high", "pushed up"]], ends: (most) => [fixed(-most), fixed(most)] },
  mismatch: { title: "mismatch", of: (token) => (token[1] === null || token[2] === null ? null : token[1] - token[2]),
    legend: () => [["low", "learner: less likely"], ["high", "learner: likelier"]], ends: (most) => [`${fixed(-most, 3)} nats`, fixed(most, 3)] },
};

/** What tokens can be coloured by: [value, words]. */
export const COLOURS = Object.entries(KINDS).map(([value, kind]) => [value, kind.title]);

/** The value that has the strongest colour among these samples, the answer to samples/tokens. */
export function strongest(samples, value) {
  if (value === "logprob") return UNLIKELY_NATS;
  const sizes = samples.flatMap((sample) => sample.tokens.map((token) => Math.abs(KINDS[value].of(token) ?? 0)));
  const largest = sizes.reduce((most, size) => Math.max(most, size), 0);
  return value === "mismatch" ? Math.max(largest, LEAST_MISMATCH) : largest || 1;
}

/** What the colours of a group mean. most: the value that has the strongest. */
export function legend(value, most) {
  const { title, legend: sides, ends } = KINDS[value], [[, low], [, high]] = sides(), [least, greatest] = ends(most);
  return h("p", { class: "legend small soft" }, h("span", {}, title), h("span", {}, `${low} (${least})`),
    h("span", { class: `heat ${value === "logprob" ? "one" : "two"}`, "aria-hidden": "true" }), h("span", {}, `${high} (${greatest})`));
}

/** A completion whose tokens say their numbers: under the pointer, or where the arrow keys go. sample: of the answer to samples/tokens. */
export function tokenText(sample, value, most) {
  const { of } = KINDS[value];
  const readout = h("p", { class: "readout small soft mono", role: "status" }, "Point at a token, or go through them with the arrow keys");
  const tokens = sample.tokens.map((token) => shaded(token[0], of(token), most));
  const box = h("pre", { class: "text tokens", tabindex: "0", role: "group", "aria-label": `Completion ${sample.index + 1}, token by token` }, tokens,
    sample.more ? h("span", { class: "soft" }, ` … ${count(sample.more)} more tokens`) : null);
  let here = -1;
  const go = (to) => {
    if (to < 0 || to >= tokens.length) return;
    tokens[here]?.classList.remove("here");
    here = to;
    tokens[here].classList.add("here");
    tokens[here].scrollIntoView({ block: "nearest" });
    fill(readout, told(sample.tokens[here], here, sample.tokens.length + sample.more));
  };
  box.addEventListener("pointerover", (event) => go(tokens.indexOf(event.target)));
  box.addEventListener("keydown", (event) => {
    const to = { ArrowRight: here + 1, ArrowDown: here + 1, ArrowLeft: here - 1, ArrowUp: here - 1, Home: 0, End: tokens.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    go(to);
  });
  return h("div", { class: "section" }, box, readout);
}

function shaded(text, value, most) {
  const strength = value === null || !most ? 0 : Math.max(-1, Math.min(1, value / most));
  const token = h("span", { class: strength < 0 ? "low" : strength > 0 ? "high" : null }, text);
  if (strength) token.style.setProperty("--heat", `${Math.round(Math.abs(strength) * STRONGEST)}%`);
  return token;
}

function told([text, learner, sampler, advantage], place, all) {
  const what = `${count(place + 1)}/${count(all)} ${text === "" ? "(part of a character)" : JSON.stringify(text)}`;
  if (learner === null) return `${what}  not sampled by the policy`;
  return `${what}  log-prob ${fixed(learner, 4)} (${percent(Math.exp(learner))}) · sampler ${fixed(sampler, 4)} · mismatch ${fixed(learner - sampler, 5)} · A ${fixed(advantage, 4)}`;
}
