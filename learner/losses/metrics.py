"""What a policy step reports about its tokens: sums and maxima that add up over microbatches and ranks."""

import torch

from learner.config import LossConfig
from learner.losses.ppo_clip import LOG_RATIO_LIMIT, kl_k3

MISMATCH_EDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
"""Of the histogram of |trainer's - rollout engine's log-prob|, in nats."""
MISMATCH_BINS = (
    *(f"mismatch_share/<{edge:g}" for edge in MISMATCH_EDGES),
    f"mismatch_share/>={MISMATCH_EDGES[-1]:g}",
)
SUMS = (
    *("loss", "tokens", "entropy", "clip_low", "clip_high", "approx_kl", "reference_kl", "mismatch_k3"),
    *MISMATCH_BINS,
)
MAXIMA = ("ratio_max", "mismatch_max")


@torch.no_grad()
def token_metrics(
    logprobs: torch.Tensor,
    entropy: torch.Tensor,
    old_logprobs: torch.Tensor,
    reference_logprobs: torch.Tensor | None,
    rollout_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    weights: torch.Tensor,
    config: LossConfig,
) -> tuple[torch.Tensor, torch.Tensor]:
    """([len(SUMS) - 1] sums after the loss, [len(MAXIMA)] maxima), float64, of the tokens whose weight is not 0.

    All tensors [N]. `clip_low` and `clip_high` count tokens whose gradient the clip removed; `approx_kl` is k3 of
    KL(old || new); `mismatch_*` compares the trainer's log-probs before the update with the rollout engine's: k3 of
    KL(rollout || old), the largest |difference| in nats, and how many tokens have one below each of MISMATCH_EDGES but
    not below the edge before it.
    """
    kept = weights > 0
    drift = torch.clamp(logprobs - old_logprobs, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    ratio = torch.exp(drift)
    difference = old_logprobs - rollout_logprobs
    mismatch = torch.clamp(difference, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    reference = torch.zeros_like(logprobs) if reference_logprobs is None else kl_k3(logprobs, reference_logprobs)
    bins = torch.bucketize(difference.abs(), torch.tensor(MISMATCH_EDGES, device=difference.device), right=True)
    sums = torch.stack(
        [
            torch.ones_like(logprobs),
            entropy,
            ((ratio < 1.0 - config.clip_low) & (advantages < 0)).float(),
            ((ratio > 1.0 + config.clip_high) & (advantages > 0)).float(),
            torch.exp(drift) - 1.0 - drift,
            reference,
            torch.exp(mismatch) - 1.0 - mismatch,
            *((bins == number).float() for number in range(len(MISMATCH_BINS))),
        ]
    )
    maxima = torch.stack([ratio, difference.abs()])
    return sums[:, kept].double().sum(dim=1), torch.where(kept, maxima, 0.0).double().amax(dim=1)


def token_means(sums: torch.Tensor, maxima: torch.Tensor) -> dict[str, float]:
    """Named floats of globally reduced sums [len(SUMS)] and maxima [len(MAXIMA)]: means over tokens, and totals.

    `loss` stays a sum (its weights are normalised) and `tokens` a count.
    """
    named = dict(zip(SUMS, sums.tolist(), strict=True))
    tokens = max(named["tokens"], 1.0)
    means = {name: value if name in ("loss", "tokens") else value / tokens for name, value in named.items()}
    return means | dict(zip(MAXIMA, maxima.tolist(), strict=True))


def move_sums(old: torch.Tensor, new: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """[3] float64: sums of k3 of KL(old || new) and of |log-ratio|, both in nats, and the number of tokens.

    old, new: [N] log-probs of the same tokens before and after a step.    weights: [N]; tokens of weight 0 do not count.
    """
    drift = torch.clamp(new - old, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)[weights > 0].double()
    return torch.stack(
        [(torch.exp(drift) - 1.0 - drift).sum(), drift.abs().sum(), torch.tensor(float(len(drift))).double()]
    )
