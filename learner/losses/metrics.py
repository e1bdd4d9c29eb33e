"""What a policy step reports about its tokens: sums and maxima that add up over microbatches and ranks."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from learner.losses.kl import kl_k3
from learner.losses.protocol import LossInputs, Measured, log_ratio

MISMATCH_EDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
"""Of the histogram of |trainer's - rollout engine's log-prob|, in nats."""
MISMATCH_BINS = (
    *(f"mismatch_share/<{edge:g}" for edge in MISMATCH_EDGES),
    f"mismatch_share/>={MISMATCH_EDGES[-1]:g}",
)


@dataclass(frozen=True, slots=True)
class Names:
    """Sorted names of what is measured; the same on every rank."""

    means: tuple[str, ...]
    maxima: tuple[str, ...]


@torch.no_grad()
def token_metrics(inputs: LossInputs, truncated_sampler: bool = False) -> Measured:
    """What every loss reports.

    `approx_kl` is k3 of KL(old || new); `mismatch_*` compares the trainer's log-probs before the update with the rollout
    engine's: k3 of KL(rollout || old), the largest |difference| in nats, and how many tokens have one below each of
    MISMATCH_EDGES but not below the edge before it. truncated_sampler: the engine's log-probs are those of a smaller support
    (top-p, top-k) and differ for that reason alone; the same values then stand under `truncation_*`, which no alarm watches.
    """
    logprobs, old = inputs.logprobs.detach(), inputs.old
    drift = log_ratio(logprobs, old)
    difference = old - inputs.rollout
    mismatch = log_ratio(old, inputs.rollout)
    reference = torch.zeros_like(logprobs) if inputs.reference is None else kl_k3(logprobs, inputs.reference)
    bins = torch.bucketize(difference.abs(), torch.tensor(MISMATCH_EDGES, device=difference.device), right=True)
    means = {
        "tokens": torch.ones_like(logprobs),
        "entropy": inputs.entropy.detach(),
        "approx_kl": torch.exp(drift) - 1.0 - drift,
        "reference_kl": reference,
        "mismatch_k3": torch.exp(mismatch) - 1.0 - mismatch,
        **{name: (bins == number).float() for number, name in enumerate(MISMATCH_BINS)},
    }
    maxima = {"ratio_max": torch.exp(drift), "mismatch_max": difference.abs()}
    if truncated_sampler:
        means, maxima = ({_truncation(name): value for name, value in part.items()} for part in (means, maxima))
    return Measured(means, maxima)


def _truncation(name: str) -> str:
    return name.replace("mismatch", "truncation", 1) if name.startswith("mismatch") else name


class Tally:
    """Sums and maxima of one rank over the microbatches of some updates; float64, in the order of their names."""

    def __init__(self, names: Names) -> None:
        self.names = names
        self.loss = torch.zeros((), dtype=torch.float64)
        self.sums = torch.zeros(len(names.means), dtype=torch.float64)
        self.maxima = torch.zeros(len(names.maxima), dtype=torch.float64)

    def add(self, losses: Sequence[torch.Tensor], parts: Sequence[Measured], masks: Sequence[torch.Tensor]) -> None:
        """Count the microbatches of one update. Raises ValueError for other names than those that all ranks agreed on."""
        sums, maxima = [], []
        for part, mask in zip(parts, masks, strict=True):
            if (found := Names(tuple(sorted(part.means)), tuple(sorted(part.maxima)))) != self.names:
                raise ValueError(f"a loss measured {found}, but all ranks expect {self.names}")
            means = torch.stack([part.means[name].detach() for name in self.names.means])
            sums.append(means[:, mask].double().sum(dim=1))
            largest = torch.stack([part.maxima[name].detach() for name in self.names.maxima])
            maxima.append(torch.where(mask, largest, 0.0).double().amax(dim=1))
        self.loss = self.loss + torch.stack([loss.detach().double() for loss in losses]).sum(dim=0).cpu()
        self.sums = self.sums + torch.stack(sums).sum(dim=0).cpu()
        self.maxima = torch.maximum(self.maxima, torch.stack(maxima).amax(dim=0).cpu())

    def means(self) -> dict[str, float]:
        """Named floats of a tally over all ranks: means over tokens, the largest, and `tokens`, a count."""
        named = dict(zip(self.names.means, self.sums.tolist(), strict=True))
        tokens = max(named["tokens"], 1.0)
        means = {name: value if name == "tokens" else value / tokens for name, value in named.items()}
        return means | dict(zip(self.names.maxima, self.maxima.tolist(), strict=True))


def move_sums(old: torch.Tensor, new: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """[3] float64: sums of k3 of KL(old || new) and of |log-ratio|, both in nats, and the number of tokens.

    old, new: [N] log-probs of the same tokens before and after a step.    mask: [N]; tokens outside it do not count.
    """
    drift = log_ratio(new, old)[mask].double()
    return torch.stack(
        [(torch.exp(drift) - 1.0 - drift).sum(), drift.abs().sum(), torch.tensor(float(len(drift))).double()]
    )
