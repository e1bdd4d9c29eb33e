"""pass@1 of a policy on a set of prompts."""

from collections import defaultdict
from collections.abc import Sequence

from actors.prompts.prompt import Prompt
from deploy.rundir.evaluation import Evaluation
from moments_service.messages.groups import FULL_REWARD


def measure(prompts: Sequence[Prompt], rewards: Sequence[Sequence[float | None]]) -> Evaluation:
    """rewards: one row per prompt, one entry per completion, None where there is no reward."""
    solved: dict[str, list[float]] = defaultdict(list)
    for prompt, row in zip(prompts, rewards, strict=True):
        known = [reward for reward in row if reward is not None]
        if known:
            solved[prompt.source].append(sum(reward >= FULL_REWARD for reward in known) / len(known))
    everything = [share for shares in solved.values() for share in shares]
    return Evaluation(
        pass_at_1=_mean(everything) if everything else None,
        sources={source: _mean(shares) for source, shares in sorted(solved.items())},
        prompts=len(prompts),
        errors=sum(reward is None for row in rewards for reward in row),
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
