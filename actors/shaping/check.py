"""Shaping that cannot do what it is for is refused before anything starts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from actors.shaping.dot import Dot
from actors.shaping.format_length import FormatLength
from actors.shaping.hard_truncation import HardTruncation
from actors.shaping.protocol import Budgeted, Limited, ShapingOptions
from moments_service.messages.groups import FULL_REWARD

BESIDE_ANOTHER = frozenset({"soft_overlong"})
"""Rules by length that may stand beside another one: they act at the limit alone."""


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What a run is like, as far as its shaping must fit it."""

    max_tokens: int
    """Most tokens of a completion."""
    room: int
    """Tokens that a sample may have beyond the longest prompt and completion."""
    group_size: int
    largest_group: int
    highest_reward: float | None
    """That there can be; None where nobody says."""
    mask_truncated: bool
    """Whether completions that a length limit ended are left out of the loss."""
    passes_by: bool
    """Whether groups of equal rewards are not trained on."""


def refuse_senseless_shaping(rules: Sequence[ShapingOptions], run: Circumstances) -> None:
    """Raise ValueError, which names the key and what to do instead."""
    if not rules:
        return
    _refuse_together([rule.kind for rule in rules], rules)
    if run.group_size == 1:
        raise ValueError(
            f"shaping: {rules[0].kind} compares the completions of a group, and group_size = 1 leaves nothing to compare; raise group_size, "
            "or leave it out"
        )
    for rule in rules:
        for check in CHECKS:
            if (problem := check(rule, run)) is not None:
                raise ValueError(f"shaping: {rule.kind} {problem}")


def _refuse_together(kinds: list[str], rules: Sequence[ShapingOptions]) -> None:
    if twice := sorted({kind for kind in kinds if kinds.count(kind) > 1}):
        raise ValueError(f"shaping: {', '.join(twice)} stands there twice; one of each kind is enough")
    if len(rules) > 1 and any(isinstance(rule, FormatLength) for rule in rules):
        raise ValueError(
            f"shaping: format_length stands in the place of the reward that {' and '.join(kind for kind in kinds if kind != 'format_length')} "
            "would shape; take one of them"
        )
    by_length = [rule.kind for rule in rules if rule.by_length and rule.kind not in BESIDE_ANOTHER]
    if len(by_length) > 1:
        raise ValueError(
            f"shaping: {' and '.join(by_length)} pay for the same lengths, each in its own way; take one of them"
        )


def _limit(rule: ShapingOptions, run: Circumstances) -> str | None:
    if isinstance(rule, Limited) and (rule.max_tokens or 0) > run.max_tokens:
        return (
            f"has max_tokens = {rule.max_tokens}, more than sampling.max_tokens = {run.max_tokens}, so no completion gets there; lower it, "
            "or leave it out"
        )
    return None


def _masked(rule: ShapingOptions, run: Circumstances) -> str | None:
    longest = isinstance(rule, HardTruncation) and (rule.max_tokens or run.max_tokens) == run.max_tokens
    if longest and run.mask_truncated:
        return (
            f"takes the reward of completions of {run.max_tokens} tokens, which learner.mask_truncated leaves out of the loss; set one "
            "of the two, or a smaller max_tokens"
        )
    return None


def _budget(rule: ShapingOptions, run: Circumstances) -> str | None:
    if not isinstance(rule, Budgeted):
        return None
    largest = rule.largest_budget
    if largest > run.max_tokens:
        return f"tells budgets of up to {largest} tokens, more than sampling.max_tokens = {run.max_tokens}; lower one or raise the other"
    # A token is a byte at least.
    needed = len(rule.told("", largest).encode())
    if needed > run.room:
        return (
            f"tells a budget in up to {needed} tokens, for which prompts.max_tokens + sampling.max_tokens leave {run.room} of "
            "rollout.max_model_len; raise the latter"
        )
    return None


def _outliers(rule: ShapingOptions, run: Circumstances) -> str | None:
    if not isinstance(rule, Dot):
        return None
    if run.passes_by:
        return "looks at groups that are all right, which prompts.filter = dapo passes by; leave one of the two out"
    if run.largest_group < rule.smallest_group:
        return (
            f"cuts at {rule.deviations:g} standard deviations, and in a group of {run.largest_group} no length is so far out; raise group_size "
            f"to {rule.smallest_group} or more, or lower deviations"
        )
    return None


def _correctness(rule: ShapingOptions, run: Circumstances) -> str | None:
    highest = run.highest_reward
    if rule.by_correctness and highest is not None and highest < FULL_REWARD:
        return (
            f"goes by right answers, which have a reward of {FULL_REWARD:g} or more, and rewards.range ends at {highest:g}; scale the "
            "reward, or leave it out"
        )
    return None


CHECKS: tuple[Callable[[ShapingOptions, Circumstances], str | None], ...] = (
    _limit,
    _masked,
    _budget,
    _outliers,
    _correctness,
)
"""Each says what is wrong with a rule in a run; None where nothing is."""
