"""The verifier `weighted`: several verifiers make one reward. Those that wait for something do so at once."""

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from actors.prompts.prompt import Prompt
from actors.rewards.protocol import Attempt, FunctionVerifier, Verdict, Verifier
from actors.verifiers import get_verifier, refuse_gold


@dataclass(frozen=True, slots=True)
class _Member:
    name: str
    weight: float
    verifier: Verifier


def weighted(of: Mapping[str, Mapping[str, Any]]) -> Verifier:
    """The sum of the rewards of its members, each times its weight; the summands are the parts of the reward.

    of: `{"verifier": NAME, "weight": W}` by the name of each part. An error of one of them is an error of the whole.
    """
    members = [_Member(name, each["weight"], get_verifier(each["verifier"])) for name, each in of.items()]
    alone = all(isinstance(member.verifier, FunctionVerifier) for member in members)
    return _OfCompletions(members) if alone else _OfGroups(members)


def refuse_gold_of_members(gold: str, of: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise ValueError for a gold answer that one of the members cannot compare anything with."""
    for each in of.values():
        refuse_gold(each["verifier"], gold)


class _OfCompletions(FunctionVerifier):
    """Of members that judge one completion at a time."""

    def __init__(self, members: Sequence[_Member]) -> None:
        self._members = members
        self._functions = [each.verifier for each in members if isinstance(each.verifier, FunctionVerifier)]
        self.waits = any(function.waits for function in self._functions)
        bounds = [each.concurrent for each in self._functions if each.concurrent is not None]
        self.concurrent = min(bounds, default=None)

    async def judge_one(self, prompt: Prompt, attempt: Attempt) -> Verdict:
        said = await asyncio.gather(*(function.judge_one(prompt, attempt) for function in self._functions))
        return _sum(self._members, said)


class _OfGroups:
    """Of members of which one judges whole groups."""

    def __init__(self, members: Sequence[_Member]) -> None:
        self._members = members
        self.waits = any(getattr(member.verifier, "waits", True) for member in members)

    async def judge(self, prompt: Prompt, attempts: Sequence[Attempt]) -> list[Verdict]:
        by_member = await asyncio.gather(*(member.verifier.judge(prompt, attempts) for member in self._members))
        return [_sum(self._members, said) for said in zip(*by_member, strict=True)]


def _sum(members: Sequence[_Member], said: Sequence[Verdict]) -> Verdict:
    seconds = math.fsum(verdict.seconds for verdict in said)
    parts = {}
    for member, verdict in zip(members, said, strict=True):
        if verdict.reward is None:
            return Verdict(None, f"part `{member.name}`: {verdict.error}", seconds=seconds)
        parts[member.name] = member.weight * verdict.reward
    note = "; ".join(
        f"{member.name}: {verdict.note}" for member, verdict in zip(members, said, strict=True) if verdict.note
    )
    reward = math.fsum(parts.values())
    if not math.isfinite(reward):
        return Verdict(None, f"verifier returned {reward}", seconds=seconds)
    return Verdict(reward, parts=parts, seconds=seconds, note=note or None)
