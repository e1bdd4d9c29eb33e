"""Shaping that cannot do what it is for is refused before anything starts."""

from collections.abc import Sequence

from actors.shaping.hard_truncation import HardTruncation
from actors.shaping.protocol import Limited, ShapingOptions
from moments_service.messages.groups import FULL_REWARD

BESIDE_ANOTHER = frozenset({"soft_overlong"})
"""Rules by length that may stand beside another one: they act at the limit alone."""


def refuse_senseless_shaping(
    rules: Sequence[ShapingOptions],
    max_tokens: int,
    group_size: int,
    highest_reward: float | None,
    mask_truncated: bool,
) -> None:
    """Raise ValueError, which names the key and what to do instead.

    max_tokens: most tokens of a completion.    highest_reward: that there can be, where that is known.    mask_truncated: whether
    completions that a length limit ended are left out of the loss.
    """
    if not rules:
        return
    kinds = [rule.kind for rule in rules]
    if twice := sorted({kind for kind in kinds if kinds.count(kind) > 1}):
        raise ValueError(f"shaping: {', '.join(twice)} stands there twice; one of each kind is enough")
    if group_size == 1:
        raise ValueError(
            f"shaping: {kinds[0]} compares the completions of a group, and group_size = 1 leaves nothing to compare; raise group_size, "
            "or leave it out"
        )
    by_length = [rule.kind for rule in rules if rule.by_length and rule.kind not in BESIDE_ANOTHER]
    if len(by_length) > 1:
        raise ValueError(
            f"shaping: {' and '.join(by_length)} pay for the same lengths, each in its own way; take one of them"
        )
    for rule in rules:
        if isinstance(rule, Limited) and (rule.max_tokens or 0) > max_tokens:
            raise ValueError(
                f"shaping: {rule.kind}: max_tokens = {rule.max_tokens} is more than sampling.max_tokens = {max_tokens}, so no completion "
                "gets there; lower it, or leave it out"
            )
        if isinstance(rule, HardTruncation) and (rule.max_tokens or max_tokens) == max_tokens and mask_truncated:
            raise ValueError(
                f"shaping: hard_truncation takes the reward of completions of {max_tokens} tokens, which learner.mask_truncated leaves out of "
                "the loss; set one of the two, or a smaller max_tokens"
            )
    if highest_reward is not None and highest_reward < FULL_REWARD:
        raise ValueError(
            f"shaping: {kinds[0]} goes by right answers, which have a reward of {FULL_REWARD:g} or more, and rewards.range ends at "
            f"{highest_reward:g}; scale the reward, or leave shaping out"
        )
