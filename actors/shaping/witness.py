"""What shaping does where completions are sampled: tells budgets, looks at tokens and texts, has outliers judged again."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from actors.prompts.prompt import Ticket
from actors.rewards.protocol import Attempt, Verdict
from actors.rollout.sample import Sample
from actors.shaping.dot import Dot, cut
from actors.shaping.protocol import Budgeted, ShapingOptions, Watching

Judge = Callable[[Sequence[Attempt]], Awaitable[Sequence[Verdict]]]
Decode = Callable[[Sequence[int]], str]

NAN = float("nan")


@dataclass(frozen=True, slots=True)
class Witnessed:
    """What goes on from a group: the samples as the learner gets them, and by kind of rule a number for each of them."""

    samples: tuple[Sample, ...]
    observed: dict[str, tuple[float, ...]]
    judge_s: float = 0.0
    """How long verifiers worked once more."""


class Witness:
    """The rules of a run as a rollout actor needs them. Headers, rewards and what is remembered go past it untouched."""

    def __init__(self, rules: Sequence[ShapingOptions], seed: int) -> None:
        """seed: the run's."""
        self._watching = [rule for rule in rules if isinstance(rule, Watching)]
        self._budgeted = [rule for rule in rules if isinstance(rule, Budgeted)]
        self._dot = next((rule for rule in rules if isinstance(rule, Dot)), None)
        self._seed = seed

    def told(self, ticket: Ticket) -> Ticket:
        """The ticket with its budget in the prompt's text, where a rule tells one. The prompt keeps its id, and so its history."""
        for rule in self._budgeted:
            text = rule.told(ticket.prompt.text, self._budget(rule, ticket))
            ticket = replace(ticket, prompt=replace(ticket.prompt, text=text))
        return ticket

    async def looked_at(
        self,
        ticket: Ticket,
        samples: tuple[Sample, ...],
        texts: Sequence[str],
        rewards: Sequence[float | None],
        judge: Judge,
        decode: Decode,
    ) -> Witnessed:
        """What rules want to know of a group that was judged.

        texts: what the policy said, over all turns.    judge: as the group was judged.    decode: sampled tokens to text.
        """
        observed = {rule.kind: tuple(map(rule.observe, samples, texts)) for rule in self._watching}
        for rule in self._budgeted:
            observed[rule.kind] = (float(self._budget(rule, ticket)),) * len(samples)
        if self._dot is None:
            return Witnessed(samples, observed)
        return await self._without_outliers(self._dot, samples, rewards, observed, judge, decode)

    def _budget(self, rule: Budgeted, ticket: Ticket) -> int:
        return rule.budget(ticket.group_id, ticket.born, self._seed)

    async def _without_outliers(
        self,
        dot: Dot,
        samples: tuple[Sample, ...],
        rewards: Sequence[float | None],
        observed: dict[str, tuple[float, ...]],
        judge: Judge,
        decode: Decode,
    ) -> Witnessed:
        keep = dot.cuts([sample.trained_tokens for sample in samples], rewards)
        shorter = {place: cut(samples[place], tokens) for place, tokens in keep.items()}
        attempts = []
        for place, sample in shorter.items():
            text = decode(sample.token_ids[sample.loss_mask].tolist())
            attempts.append(Attempt(text, place, sample.trained_tokens, True, (text,)))
        verdicts = await judge(attempts) if attempts else ()
        again = [NAN] * len(samples)
        kept = list(samples)
        for (place, sample), verdict in zip(shorter.items(), verdicts, strict=True):
            if verdict.reward is not None:  # one that cannot be judged again stays as it was
                again[place], kept[place] = verdict.reward, sample
        seconds = sum(verdict.seconds for verdict in verdicts)
        return Witnessed(tuple(kept), observed | {dot.kind: tuple(again)}, seconds)
