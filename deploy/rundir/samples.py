"""The samples of a run: found by what they are and what they say, and those of one prompt at two times or in two runs side by side."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from deploy.rundir.groups import Place, RunGroups, Wanted
from moments_service.ledger import FoldedGroup
from moments_service.messages.groups import Transcript

SEARCH_S = 4.0
"""How long one search looks back before it says how far it came."""
_CHUNK = 400
"""Groups that are read at once."""

_Hit = tuple[FoldedGroup, Sequence[int]]
"""A group, and those of its samples that fit."""


@dataclass(frozen=True, slots=True)
class FoundSample:
    """One completion of a group, with what became of it."""

    group: FoldedGroup
    index: int
    """Its place in the group."""
    texts: Transcript | None
    """Of the group; None where they were not kept."""
    group_parts: tuple[dict[str, float] | None, ...] | None
    """What the rewards of the group are made of; None where its verifier said nothing of it."""

    @property
    def reward(self) -> float | None:
        return self.group.group.rewards[self.index]

    @property
    def error(self) -> str | None:
        return self.group.group.errors[self.index]

    @property
    def tokens(self) -> int:
        return self.group.group.lengths[self.index]

    @property
    def truncated(self) -> bool:
        return self.group.group.truncated[self.index]

    @property
    def advantage(self) -> float | None:
        return None if self.group.advantages is None else self.group.advantages[self.index]

    @property
    def parts(self) -> dict[str, float] | None:
        """What its reward is made of."""
        return None if self.group_parts is None else self.group_parts[self.index]

    @property
    def completion(self) -> str | None:
        """None where its text was not kept."""
        kept = () if self.texts is None else self.texts.completions
        return kept[self.index] if self.index < len(kept) else None


@dataclass(frozen=True, slots=True)
class SampleFilter:
    """What to look for; None and "" are for anything."""

    groups: Wanted = field(default_factory=Wanted)
    lowest: float | None = None
    """Reward, at least."""
    highest: float | None = None
    """Reward, at most."""
    shortest: int | None = None
    """Trained tokens, at least."""
    longest: int | None = None
    """Trained tokens, at most."""
    failed: bool | None = None
    """Whether it has no reward."""
    truncated: bool | None = None
    """Whether a length limit ended it."""
    place: Callable[[Place], bool] | None = None
    """What groups are looked at at all, said before anything is read of them."""
    text: str = ""
    """Part of the prompt, the completion or the error, whatever the case of letters."""

    def by_facts(self, group: FoldedGroup) -> list[int]:
        """Which of a group's samples fit, as far as that can be said without their texts."""
        header = group.group
        rewarded = self.lowest is None and self.highest is None
        sized = self.shortest is None and self.longest is None
        return [
            i
            for i, reward in enumerate(header.rewards)
            if (rewarded or _within(reward, self.lowest, self.highest))
            and (sized or _within(header.lengths[i], self.shortest, self.longest))
            and (self.failed is None or self.failed == (reward is None))
            and (self.truncated is None or self.truncated == header.truncated[i])
        ]

    def by_text(self, group: FoldedGroup, texts: Transcript | None, indices: Sequence[int]) -> Sequence[int]:
        """Which of these samples say what is looked for."""
        wanted = self.text.casefold()
        kept = () if texts is None else texts.completions
        errors = group.group.errors
        if texts is not None and wanted in texts.prompt.casefold():
            return indices
        said = ((errors[i] or "", kept[i] if i < len(kept) else "") for i in indices)
        return [i for i, both in zip(indices, said, strict=True) if any(wanted in text.casefold() for text in both)]


@dataclass(frozen=True, slots=True)
class Page:
    """What one search found, newest first."""

    samples: list[FoundSample]
    next: Place | None
    """Where an older page begins; None where nothing older is left."""
    looked_at: int
    """Groups that were read for it. Fewer samples than were asked for and a `next`: time was up."""


def find_samples(run: RunGroups, wanted: SampleFilter, before: Place | None, limit: int) -> Page:
    """The newest samples that fit, of groups older than `before`; whole groups, until there are `limit` or time is up.

    Only groups that a commit has folded in are looked at. Raises as `RunGroups.search`.
    """
    deadline = time.monotonic() + SEARCH_S
    found: list[_Hit] = []
    looked_at = count = 0
    while True:
        places = run.search(wanted.groups, before, _CHUNK)
        chosen = places if wanted.place is None else list(filter(wanted.place, places))
        if wanted.text:
            chosen = run.saying(chosen, wanted.text)
        for group, indices in _hits(run, wanted, chosen):
            if not indices:
                continue
            found.append((group, indices))
            count += len(indices)
            if count >= limit:
                before = Place.of(group)
                return Page(_read(run, found), before, looked_at + places.index(before) + 1)
        looked_at += len(places)
        if len(places) < _CHUNK:
            return Page(_read(run, found), None, looked_at)
        before = places[-1]
        if time.monotonic() > deadline:
            return Page(_read(run, found), before, looked_at)


def _hits(run: RunGroups, wanted: SampleFilter, places: Sequence[Place]) -> list[_Hit]:
    """Of each of these groups the samples that fit."""
    groups = run.folded(places)
    hits: list[_Hit] = [(group, wanted.by_facts(group)) for group in groups]
    if not wanted.text:
        return hits
    texts = run.texts_of(groups)
    return [(group, wanted.by_text(group, of, indices)) for (group, indices), of in zip(hits, texts, strict=True)]


def same_prompt(run: RunGroups, samples: Sequence[FoundSample], step: int | None) -> list[list[FoundSample]]:
    """For each of these, the newest group of the same prompt in a run, at a step if one is named; empty where there is none."""
    prompts = {sample.group.group.prompt_id for sample in samples}
    groups = {prompt: samples_of_prompt(run, prompt, step) for prompt in prompts}
    return [groups[sample.group.group.prompt_id] for sample in samples]


def samples_of_prompt(run: RunGroups, prompt_id: str, step: int | None) -> list[FoundSample]:
    """The newest group of a prompt, at a step if one is named; empty where there is none."""
    newest = run.search(Wanted(id_prefix=f"{prompt_id}:", step=step), limit=1)
    return _read(run, [(group, range(len(group.group.rewards))) for group in run.folded(newest)])


def _read(run: RunGroups, hits: Sequence[_Hit]) -> list[FoundSample]:
    """These samples, with their texts and what their rewards are made of."""
    groups = [group for group, _ in hits]
    return [
        FoundSample(group, i, texts, parts)
        for (group, indices), texts, parts in zip(hits, run.texts_of(groups), run.parts_of(groups), strict=True)
        for i in indices
    ]


def _within(value: float | None, low: float | None, high: float | None) -> bool:
    return value is not None and (low is None or value >= low) and (high is None or value <= high)
