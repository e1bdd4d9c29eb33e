// Which series stand together in a chart, and how they are read. A chart without any of its series is not shown.

import { fixed, number, percent } from "/static/format.js";

const SHARE = [0, 1];
const PART = "reward_part/", MOST_PARTS = 8;
const share = () => SHARE;

export const CHARTS = [
  { title: "pass@1 and reward", wide: true, format: (value) => fixed(value), lines: [
    { name: "reward/pass_at_1", label: "pass@1" }, { name: "reward/mean", label: "mean reward", other: true }] },
  { title: "Effective signal", range: share, format: percent, lines: [
    { name: "effective_signal/own", label: "this run" }, { name: "effective_signal/grpo", label: "GRPO, same groups", other: true }] },
  { title: "Groups whose rewards differ", range: share, format: percent, lines: [
    { name: "reward/non_uniform", label: "share" }, { name: "signal/own", label: "any advantage", other: true }] },
  { title: "Entropy", lines: [{ name: "learner/entropy", label: "nats a token" }] },
  { title: "KL", lines: [
    { name: "learner/approx_kl", label: "of the updates" }, { name: "learner/reference_kl", label: "to the reference", color: 1 },
    { name: "learner/move_kl", label: "of the step", color: 2 }] },
  { title: "Gradient norm", lines: [{ name: "learner/grad_norm", label: "before clipping" }] },
  { title: "Completion length", lines: [{ name: "completion/length", label: "tokens" }] },
  { title: "Truncated completions", range: (_, low, high) => [0, Math.max(high ?? 0, 0.05)], format: percent, lines: [{ name: "completion/truncated", label: "share" }] },
  { title: "Sampler and learner mismatch", lines: [
    { name: "learner/mismatch_k3", label: "KL (k3)" }, { name: "learner/mismatch_max", label: "largest", other: true }] },
  { title: "Trust in history", range: share, format: (value) => fixed(value), lines: [{ name: "advantage/history_weight", label: "mean w" }] },
  { title: "Size of advantages", format: (value) => fixed(value), lines: [
    { name: "advantage/mean_abs", label: "mean |A|" }, { name: "advantage/clipped", label: "share clipped", other: true, format: percent }] },
  { title: "Shaping", format: (value) => fixed(value), lines: [
    { name: "shaping/mean", label: "mean part" }, { name: "shaping/touched", label: "share touched", other: true, format: percent }] },
  { title: "Completions without a reward", range: (_, low, high) => [0, Math.max(high ?? 0, 0.05)], format: percent, lines: [{ name: "reward/errors", label: "share" }] },
  { title: "Groups that wait for verdicts", range: share, format: percent, lines: [{ name: "verifier/waited", label: "share of their time" }] },
  { title: "Speed", lines: [{ name: "tokens_per_s", label: "tokens / s" }] },
  { title: "Seconds a step", lines: [{ name: "seconds", label: "seconds" }] },
];

const SHOWN_APART = /^(step|incarnation|policy_version|phases\/.*|pass_at_1\/.*|learner\/(lr|updates|microbatches|tokens|loss|.*_s))$/;

/** The charts of a run that has these series, with only the lines that it has. */
export function chartsFor(names) {
  const known = new Set(names);
  return [...CHARTS, partsOf(names)].map((chart) => ({ ...chart, lines: chart.lines.filter((line) => known.has(line.name)) })).filter((chart) => chart.lines.length);
}

/** What rewards are made of, where verifiers name it: the first of them, as many as there are colours for. */
function partsOf(names) {
  const parts = names.filter((name) => name.startsWith(PART)).sort().slice(0, MOST_PARTS);
  return { title: "Parts of the reward", format: (value) => fixed(value), lines: parts.map((name) => ({ name, label: name.slice(PART.length) })) };
}

/** Series that no chart shows: each gets one when it is asked for. */
export function otherSeries(names) {
  const drawn = new Set(chartsFor(names).flatMap((chart) => chart.lines.map((line) => line.name)));
  return names.filter((name) => !drawn.has(name) && !["step", "incarnation"].includes(name) && !/^(pass_at_1|staleness|learner\/mismatch_share)\//.test(name));
}

/** Series of one chart of its own. */
export function single(name) {
  return { title: name, lines: [{ name, label: SHOWN_APART.test(name) ? "" : "value" }], format: number };
}

export const SOURCE = "pass_at_1/";
