"""Evaluated groups with these rewards."""

from actors.rollout.evaluated import EvaluatedGroup


def judged(
    *rewards: float | None, lengths: tuple[int, ...] | None = None, answers: tuple[str, ...] | None = None
) -> EvaluatedGroup:
    """None: a sample without a reward. lengths: 1 each if left out, and the longest are cut."""
    count = len(rewards)
    return EvaluatedGroup(
        rewards=rewards,
        errors=tuple("verifier: broken" if reward is None else None for reward in rewards),
        lengths=lengths or (1,) * count,
        truncated=tuple(length == max(lengths) for length in lengths) if lengths else (False,) * count,
        answers=answers or tuple(map(str, rewards)),
    )
