"""What a policy step reports about its tokens: sums and maxima that add up over microbatches and ranks, by the tokens' age."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from learner.batching.packed import PackedBatch
from learner.losses.histogram import bins, edges_like, is_bin, quantiles
from learner.losses.kl import kl_k3
from learner.losses.protocol import LossInputs, Measured, log_ratio

MISMATCH_EDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
"""Of the histogram of |trainer's - rollout engine's log-prob|, in nats."""
MISMATCH_BINS = (
    *(f"mismatch_share/<{edge:g}" for edge in MISMATCH_EDGES),
    f"mismatch_share/>={MISMATCH_EDGES[-1]:g}",
)
AGE_EDGES = (1, 2, 4, 8)
AGES = ("0", "1", "2-3", "4-7", "8+")
"""Policy versions between sampling and training, as metrics are told apart by them; the edges begin all but the first."""
BY_AGE = ("tokens", "ratio", "mismatch", "truncation", "clip", "correction")
"""How the metrics begin that are also reported by age."""


@dataclass(frozen=True, slots=True)
class Names:
    """Sorted names of what is measured; the same on every rank."""

    means: tuple[str, ...]
    maxima: tuple[str, ...]


@torch.no_grad()
def token_metrics(inputs: LossInputs, trained: torch.Tensor, truncated_sampler: bool = False) -> Measured:
    """What every loss reports.    trained: [N] log-probs of the policy that is trained, from before the update where they are known.

    `approx_kl` is k3 of KL(old || new), and `ratio_*` are quantiles of new / old. `mismatch_*` compares the trainer's log-probs with
    the rollout engine's: k3 of KL(rollout || trained), mean and largest |difference| in nats, how many tokens have one below
    each of MISMATCH_EDGES but not below the edge before it, and what `mismatch_of` makes of their ratios. truncated_sampler: the engine's
    log-probs are those of a smaller support (top-p, top-k) and differ for that reason alone; the same values then stand under
    `truncation_*`, which no alarm watches.
    """
    logprobs = inputs.logprobs.detach()
    drift = log_ratio(logprobs, inputs.old)
    difference = trained - inputs.rollout
    mismatch = log_ratio(trained, inputs.rollout)
    excess = torch.expm1(mismatch)
    reference = torch.zeros_like(logprobs) if inputs.reference is None else kl_k3(logprobs, inputs.reference)
    near = torch.bucketize(difference.abs(), edges_like(MISMATCH_EDGES, difference), right=True)
    means = {
        "tokens": torch.ones_like(logprobs),
        "entropy": inputs.entropy.detach(),
        "approx_kl": torch.expm1(drift) - drift,
        "reference_kl": reference,
        "mismatch_k3": excess - mismatch,
        "mismatch_mean": difference.abs(),
        "mismatch_chi2": torch.expm1(2.0 * mismatch),
        "mismatch_excess": excess,
        **{name: (near == number).float() for number, name in enumerate(MISMATCH_BINS)},
        **bins("ratio", drift),
        **bins("mismatch_ratio", mismatch),
    }
    maxima = {"ratio_max": torch.exp(drift), "mismatch_max": difference.abs()}
    if truncated_sampler:
        means, maxima = ({_truncation(name): value for name, value in part.items()} for part in (means, maxima))
    return Measured(means, maxima)


def _truncation(name: str) -> str:
    return name.replace("mismatch", "truncation", 1) if name.startswith("mismatch") else name


class Tally:
    """Sums and maxima of one rank over the microbatches of some updates: a row for each of AGES, float64, in the order of their names.

    They stay on the device that computes, and are read once, when all of a step is in them.
    """

    def __init__(self, names: Names, device: torch.device | None = None) -> None:
        """device: of what will be counted; None is the CPU."""
        self.names = names
        self.loss = torch.zeros((), dtype=torch.float64, device=device)
        self.sums = torch.zeros(len(AGES), len(names.means), dtype=torch.float64, device=device)
        self.maxima = torch.zeros(len(AGES), len(names.maxima), dtype=torch.float64, device=device)

    def add(self, losses: Sequence[torch.Tensor], parts: Sequence[Measured], batches: Sequence[PackedBatch]) -> None:
        """Count the microbatches of one update, which are on the CPU. Raises ValueError for other names than those that all
        ranks agreed on.
        """
        sums, maxima = [], []
        for part, batch in zip(parts, batches, strict=True):
            if (found := Names(tuple(sorted(part.means)), tuple(sorted(part.maxima)))) != self.names:
                raise ValueError(f"a loss measured {found}, but all ranks expect {self.names}")
            means = torch.stack([part.means[name].detach() for name in self.names.means])
            largest = torch.stack([part.maxima[name].detach() for name in self.names.maxima])
            rows, tops = means.new_zeros(self.sums.shape, dtype=torch.float64), largest.new_zeros(self.maxima.shape)
            for age, tokens in _by_age(batch):
                chosen = tokens.to(means.device, non_blocking=True)
                rows[age] = means[:, chosen].double().sum(dim=1)
                tops[age] = largest[:, chosen].amax(dim=1).clamp(min=0.0)
            sums.append(rows)
            maxima.append(tops.double())
        self.loss = self.loss + torch.stack([loss.detach().double() for loss in losses]).sum(dim=0)
        self.sums = self.sums + torch.stack(sums).sum(dim=0)
        self.maxima = torch.maximum(self.maxima, torch.stack(maxima).amax(dim=0))

    def means(self) -> dict[str, float]:
        """Named floats of a tally over all ranks: means over tokens, the largest, and `tokens`, a count.

        Where any token is older than the policy, those of BY_AGE also stand under `NAME_by_age/AGE`, for every age that is there.
        """
        whole = self._named(self.sums.sum(dim=0), self.maxima.amax(dim=0))
        ages = self.sums[:, self.names.means.index("tokens")].tolist()
        if not any(ages[1:]):
            return whole
        by_age = {
            f"{name}_by_age/{AGES[age]}": value
            for age, count in enumerate(ages)
            if count
            for name, value in self._named(self.sums[age], self.maxima[age]).items()
            if name.startswith(BY_AGE) and "/" not in name
        }
        return whole | by_age

    def _named(self, sums: torch.Tensor, maxima: torch.Tensor) -> dict[str, float]:
        named = dict(zip(self.names.means, sums.tolist(), strict=True))
        tokens = max(named["tokens"], 1.0)
        means = {name: value if name == "tokens" else value / tokens for name, value in named.items()}
        return mismatch_of(means) | dict(zip(self.names.maxima, maxima.tolist(), strict=True))


def mismatch_of(means: dict[str, float]) -> dict[str, float]:
    """With what only means of all tokens give: quantiles in the place of bins, and in that of the mean of w - 1, for the weights
    w = trained / rollout, their effective sample size `mismatch_ess` = (mean of w)^2 / mean of w^2, a share of the tokens.

    `mismatch_chi2` is the mean of w^2 - 1. Differences from 1 are summed and not the weights, whose float32 forgets small ones.
    """
    found = {name: value for name, value in means.items() if not is_bin(name)}
    for name in {name.partition("_bin/")[0] for name in means if is_bin(name)}:
        found |= quantiles(name, means)
    for kind in ("mismatch", "truncation"):
        if f"{kind}_excess" in found:
            found[f"{kind}_ess"] = (1.0 + found.pop(f"{kind}_excess")) ** 2 / (1.0 + found[f"{kind}_chi2"])
    return found


def _by_age(batch: PackedBatch) -> Iterator[tuple[int, torch.Tensor]]:
    """Of each age that is there: its place in AGES, and [n] which trained tokens have it."""
    ages = torch.bucketize(batch.lag, torch.tensor(AGE_EDGES), right=True)
    for age in ages[batch.mask].unique().tolist():
        yield age, torch.nonzero(batch.mask & (ages == age))[:, 0]


def move_sums(old: torch.Tensor, new: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """[3] float64: sums of k3 of KL(old || new) and of |log-ratio|, both in nats, and the number of tokens.

    old, new: [N] log-probs of the same tokens before and after a step.    mask: [N]; tokens outside it do not count.
    """
    drift = torch.where(mask, log_ratio(new, old), 0.0).double()
    return torch.stack([(torch.exp(drift) - 1.0 - drift).sum(), drift.abs().sum(), mask.double().sum()])
