"""The result of an evaluation as a file: what was measured, how it was drawn, and every sample's verdict."""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

from actors.prompts.prompt import Prompt
from actors.rollout.evaluated import EvaluatedGroup, EvaluationDraw
from deploy.cluster.environment import machine, versions
from deploy.config.recipe import ConfigError
from deploy.evaluation.measure import Measured, measures
from moments_service import durable

MOST_REASONS = 5
"""Kinds of errors that are counted by name."""


@dataclass(frozen=True, slots=True)
class EvaluatedPrompt:
    """A prompt and what became of its samples."""

    prompt_id: str
    source: str
    cluster: int | None
    """Of the run whose policy it is; None where there are no clusters to go by."""
    group: EvaluatedGroup


@dataclass(frozen=True)
class EvaluationResult:
    """What one policy did on some prompts."""

    policy: str
    """Directory, run and step, or model name: for people."""
    of: str
    """Which prompts."""
    how: EvaluationDraw
    prompts: tuple[EvaluatedPrompt, ...]
    step: int | None = None
    """How many steps of its run the policy had; None where it is of no run."""

    @property
    def groups(self) -> list[EvaluatedGroup]:
        return [one.group for one in self.prompts]

    @cached_property
    def measures(self) -> dict[str, Measured]:
        """Over all prompts. Bootstraps are drawn once for the table, the file and the picture."""
        return measures(self.groups)

    def by(self, what: str) -> dict[str, dict[str, Measured]]:
        """The same for each `source` or `cluster`, sorted by name."""
        if what not in self._parts:
            self._parts[what] = self._by(what)
        return self._parts[what]

    @cached_property
    def _parts(self) -> dict[str, dict[str, dict[str, Measured]]]:
        return {}

    def _by(self, what: str) -> dict[str, dict[str, Measured]]:
        parts: dict[str | int, list[EvaluatedGroup]] = defaultdict(list)
        for one in self.prompts:
            if (name := getattr(one, what)) is not None:
                parts[name].append(one.group)
        return {str(name): measures(parts[name]) for name in sorted(parts)}

    def samples(self) -> int:
        return sum(len(group.rewards) for group in self.groups)

    def unscored(self) -> int:
        """Samples without a reward: in no measure, and never a 0."""
        return sum(reward is None for group in self.groups for reward in group.rewards)

    def reasons(self) -> list[tuple[str, int]]:
        """Why samples have no reward, the most frequent first."""
        return Counter(error for group in self.groups for error in group.errors if error is not None).most_common(
            MOST_REASONS
        )

    def lengths(self) -> list[int]:
        return sorted(length for group in self.groups for length in group.lengths)

    def truncated(self) -> float:
        """Share of samples that a length limit ended."""
        return sum(sum(group.truncated) for group in self.groups) / max(self.samples(), 1)


def with_clusters(
    prompts: Sequence[Prompt], groups: Sequence[EvaluatedGroup], clusters: Mapping[str, int]
) -> tuple[EvaluatedPrompt, ...]:
    """clusters: of prompts by their id, as far as known."""
    return tuple(
        EvaluatedPrompt(prompt.prompt_id, prompt.source, clusters.get(prompt.prompt_id), group)
        for prompt, group in zip(prompts, groups, strict=True)
    )


def write_result(result: EvaluationResult, path: Path) -> None:
    """Write it whole, as strict JSON: what was measured first, and all that it was measured from."""
    durable.write_json(
        path,
        {
            "policy": result.policy,
            "of": result.of,
            "how": asdict(result.how),
            "samples": result.samples(),
            "unscored": result.unscored(),
            "step": result.step,
            "reasons": dict(result.reasons()),
            "measures": {name: asdict(one) for name, one in result.measures.items()},
            **{
                f"{what}s": {
                    name: {key: asdict(one) for key, one in found.items()} for name, found in result.by(what).items()
                }
                for what in ("source", "cluster")
            },
            "versions": versions(),
            "machine": machine(),
            "prompts": [asdict(one) for one in result.prompts],
        },
        indent=1,
    )


def read_result(path: Path) -> EvaluationResult:
    """Read what `write_result` wrote. Raises ConfigError for any other file."""
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
        fields = {name: found[name] for name in ("policy", "of", "how", "prompts")} | {"step": found.get("step")}
        return msgspec.convert(fields, EvaluationResult)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: not what `bvblend eval --out` writes ({str(error)[:120]})") from None
