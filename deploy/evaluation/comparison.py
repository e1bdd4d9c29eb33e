"""Two evaluations on the prompts that they share: differences are taken prompt by prompt, so that hard and easy prompts cancel."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from deploy.config.recipe import ConfigError
from deploy.evaluation.intervals import Interval, difference_variance, prompts_to_see, t_interval
from deploy.evaluation.measure import mean, share_of, solved
from deploy.evaluation.result import EvaluationResult
from moments_service import durable


@dataclass(frozen=True, slots=True)
class Difference:
    """pass@1 of the second less that of the first."""

    prompts: int
    first: float
    second: float
    interval: Interval | None
    """Of the difference, by Student's t over prompts; None for fewer than two."""


def differences(first: EvaluationResult, second: EvaluationResult) -> dict[str, Difference]:
    """By source, and under "" over all prompts that both have with a judged sample. Raises ConfigError where they share none."""
    shares = {one.prompt_id: share for one in first.prompts if (share := share_of(one.group)) is not None}
    pairs: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for one in second.prompts:
        if one.prompt_id in shares and (share := share_of(one.group)) is not None:
            pair = shares[one.prompt_id], share
            pairs[""].append(pair)
            pairs[one.source].append(pair)
    if not pairs:
        raise ConfigError(
            f"{first.policy} and {second.policy} were evaluated on no common prompt; evaluate both on the same file"
        )
    return {name: _difference(found) for name, found in sorted(pairs.items())}


def remarks(first: EvaluationResult, second: EvaluationResult) -> list[str]:
    """What else is different between two evaluations: how they were drawn, and what is in no difference."""
    one, other = asdict(first.how), asdict(second.how)
    differ = [f"{name} {one[name]:g} and {other[name]:g}" for name in one if one[name] != other[name]]
    said = [f"not drawn alike, which is part of the difference: {', '.join(differ)}"] if differ else []
    judged = [{of.prompt_id for of in result.prompts if solved(of.group)} for result in (first, second)]
    both = judged[0] & judged[1]
    for name, result in (("first", first), ("second", second)):
        if left := len(result.prompts) - len(both):
            said.append(
                f"{left} of {len(result.prompts)} prompts of the {name} are in no difference: the other has no verdict on them, or it none"
            )
        if unscored := result.unscored():
            said.append(
                f"{unscored} of {result.samples()} samples of the {name} have no reward and are in no difference"
            )
    return said


def write_differences(first: EvaluationResult, second: EvaluationResult, path: Path) -> None:
    """Write `differences` and `remarks` as strict JSON; "" is all sources."""
    found = {name: asdict(one) for name, one in differences(first, second).items()}
    value = {"first": first.policy, "second": second.policy, "remarks": remarks(first, second), "differences": found}
    durable.write_json(path, value, indent=1)


@dataclass(frozen=True, slots=True)
class Power:
    """How many prompts show a difference of pass@1 with a chance of 80 %, in a test at 5 %."""

    difference: float
    drawn: int
    """Samples of each prompt by each policy."""
    unlike: int
    """Prompts, if what the two policies can do is unrelated over prompts; evaluated on the same or on different ones."""
    alike: int
    """Prompts, both policies on the same ones, if they find the same prompts hard."""


def power(result: EvaluationResult, difference: float, drawn: Sequence[int]) -> list[Power]:
    """For policies that do about as well as this one, by the samples that are drawn of each prompt. Raises ConfigError."""
    if result.how.temperature == 0:
        raise ConfigError(
            f"{result.policy}: greedy samples of a prompt are all the same, and say nothing of how much they differ; evaluate with --temperature 1"
        )
    samples = [judged for group in result.groups if len(judged := solved(group)) >= 2]
    if len(samples) < 2:
        raise ConfigError(
            f"{result.policy}: how much samples of a prompt differ takes two prompts with two judged samples each; evaluate with --samples 4"
        )
    if not 0 < abs(difference) < 1:
        raise ConfigError(f"--power {difference:g}: a difference of pass@1 lies between 0 and 1")
    return [
        Power(
            difference,
            each,
            unlike=prompts_to_see(difference, difference_variance(samples, alike=0.0, drawn=each)),
            alike=prompts_to_see(difference, difference_variance(samples, alike=1.0, drawn=each)),
        )
        for each in drawn
    ]


def _difference(pairs: Sequence[tuple[float, float]]) -> Difference:
    first, second = (mean(values) for values in zip(*pairs, strict=True))
    return Difference(len(pairs), first, second, t_interval([after - before for before, after in pairs]))
