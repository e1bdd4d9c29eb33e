"""Where a run goes on: a checkpoint that is whole, of this run, and whose past its ledger still holds."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.config.models import RunConfig
from deploy.config.recipe import ConfigError, validated, with_overrides
from deploy.rundir.find import before_choices, load_run_config
from deploy.rundir.layout import RunDirectory
from moments_service.durable import DamagedFileError, verify_directory
from moments_service.history import RunHistory
from moments_service.ledger import LedgerDamagedError, LedgerReader, checked_for_writing
from moments_service.ledger.seals import lost_end
from moments_service.state import read_origin

PROMPTS_FILE = "prompts.json"
"""In a checkpoint: fingerprints of the prompts that were dealt, by id."""


@dataclass(frozen=True, slots=True)
class ResumePoint:
    """What a run goes on from."""

    checkpoint: Path
    state: Mapping[str, Any]
    """The driver's."""
    without_lost_groups: bool = False
    """Whether the ledger may have lost its end since."""

    @property
    def step(self) -> int:
        """How many steps were done."""
        return int(self.state["step"])

    @property
    def prompts(self) -> dict[str, str] | None:
        """Fingerprints of the prompts that were dealt; None where an older version wrote the checkpoint."""
        path = self.checkpoint / PROMPTS_FILE
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    @property
    def snapshot(self) -> Path:
        """Of the moments."""
        return self.checkpoint / "moments"


def resume_point(
    directory: RunDirectory,
    from_step: int | None = None,
    older: bool = False,
    without_lost_groups: bool = False,
    note: Callable[[str], object] = lambda _: None,
) -> ResumePoint | None:
    """The newest checkpoint, or that of `from_step`; None where the run has none yet. Only for the owner of the run.

    older: where it is not whole, take the newest one that is; `note` says so.    without_lost_groups: go on from it though the
    ledger has lost its end. Everything is read and compared with its checksum. Raises ConfigError, which names what differs.
    """
    directory.sweep()
    try:
        ledger, _ = checked_for_writing(directory.moments)
    except LedgerDamagedError as error:
        raise ConfigError(str(error)) from None
    steps = directory.checkpoint_steps()
    if from_step is not None and from_step not in steps:
        there = ", ".join(map(str, steps)) or "none"
        raise ConfigError(f"--from-step {from_step}: {directory.path} has no such checkpoint; there are {there}")
    if not steps:
        return None
    wanted = [step for step in reversed(steps) if from_step is None or step <= from_step]
    good = _good_ones(directory, wanted, ledger, without_lost_groups)
    found = next(good)
    if isinstance(found, ResumePoint):
        return found
    instead = next((point for point in good if isinstance(point, ResumePoint)), None)
    if instead is None:
        raise ConfigError(f"{found}. No older checkpoint is whole either")
    if older:
        note(f"{found}. Going on from step {instead.step} instead")
        return instead
    raise ConfigError(
        f"{found}. The next older checkpoint that is whole is that of step {instead.step}: go on from it with --from-step "
        f"{instead.step}, or let --resume-from-older choose"
    )


def _good_ones(
    directory: RunDirectory, steps: list[int], ledger: list[Path], without_lost_groups: bool
) -> Iterator[ResumePoint | str]:
    """For each step its checkpoint, or what is wrong with it."""
    for step in steps:
        try:
            yield _checked(directory, step, ledger, without_lost_groups)
        except (DamagedFileError, LedgerDamagedError) as error:
            yield str(error)


def _checked(directory: RunDirectory, step: int, ledger: list[Path], without_lost_groups: bool) -> ResumePoint:
    checkpoint = directory.checkpoint(step)
    verify_directory(checkpoint)
    point = ResumePoint(checkpoint, driver_state(checkpoint), without_lost_groups)
    if point.step != step:
        raise DamagedFileError(f"{checkpoint} holds step {point.step}: it was renamed or copied there")
    if (run := point.state.get("run")) is not None and run != directory.identity():
        raise DamagedFileError(
            f"{checkpoint} is a checkpoint of another run ({run}, this one is {directory.identity()})"
        )
    origin = read_origin(point.snapshot)
    if (origin.last_step + 1, origin.incarnation) != (step, point.state.get("incarnation")):
        raise DamagedFileError(
            f"{checkpoint} is mixed up: its moments are of step {origin.last_step + 1} and start {origin.incarnation} of the run, "
            f"its driver's state of step {step} and start {point.state.get('incarnation')}"
        )
    if origin.ledger is not None and not without_lost_groups:
        lost = lost_end(directory.moments, ledger, origin.ledger)
        if lost is not None:
            raise LedgerDamagedError(
                f"{lost}, or add --without-lost-groups: training goes on as it would have, and those groups are in no history "
                "that can be looked up"
            )
    return point


def driver_state(checkpoint: Path) -> dict[str, Any]:
    """What the driver wrote into a checkpoint. Raises DamagedFileError for anything else."""
    path = checkpoint / "run.json"
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DamagedFileError(f"{path} cannot be read: {error}") from None
    if not isinstance(state, dict) or type(state.get("step")) is not int or not isinstance(state.get("feed"), dict):
        raise DamagedFileError(f"{path} does not say which step and where in the prompts the run was")
    return state


def refuse_what_cannot_go_on(config: RunConfig, directory: RunDirectory, point: ResumePoint) -> None:
    """Raise ConfigError where the configuration, as it is now, cannot go on from there."""
    if config.steps < point.step:
        raise ConfigError(
            f"steps: {config.steps} is less than the {point.step} that {point.checkpoint} has behind it; raise `steps`, or go on from "
            "an older checkpoint with --from-step"
        )
    try:
        RunHistory(config.moments, directory.moments).restore(point.snapshot)
    except ValueError as error:
        raise ConfigError(f"moments: {error}; resume with the configuration of before, or start a new run") from None


def changed_since(directory: RunDirectory, config: RunConfig) -> list[str]:
    """`key: before -> now` of whatever the newest start of the run was configured with otherwise.

    As its ledger says; where an older version wrote that, as config.yaml says.
    """
    try:
        with LedgerReader(directory.moments) as reader:
            said = reader.configs().get(reader.last_incarnation())
    except FileNotFoundError:
        return []
    before = load_run_config(directory) if said is None else json.loads(said)
    new = _leaves(config.model_dump(mode="json"))
    old = _leaves(before) if isinstance(before, dict) else _leaves(before.model_dump(mode="json"))
    if isinstance(before, dict):
        try:
            # Keys that are newer than that start have the value that it would get now; nobody has changed them.
            old |= _leaves(with_overrides(validated(before), before_choices(before)).model_dump(mode="json"))
        except ConfigError:  # it has keys that this version does not know
            new = {key: value for key, value in new.items() if key in old}
    return [
        f"{key}: {_shown(old, key)} -> {_shown(new, key)}"
        for key in sorted(old.keys() | new.keys())
        if (key in old, old.get(key)) != (key in new, new.get(key))
    ]


def _shown(leaves: Mapping[str, Any], key: str) -> str:
    return json.dumps(leaves[key]) if key in leaves else "nothing"


def has_unrecorded_starts(directory: RunDirectory) -> bool:
    """Whether an older version started the run, so that config.yaml alone says what its groups came from."""
    try:
        with LedgerReader(directory.moments) as reader:
            return not reader.incarnations().keys() <= reader.configs().keys()
    except FileNotFoundError:
        return False


def _leaves(value: Any, key: str = "") -> dict[str, Any]:
    """By key, as `--set` writes it."""
    if isinstance(value, list) and all(isinstance(entry, dict) for entry in value):
        value = {str(place): entry for place, entry in enumerate(value)}
    if not isinstance(value, dict) or not value:
        return {key: value}
    return {
        name: leaf
        for inner, below in value.items()
        for name, leaf in _leaves(below, f"{key}.{inner}".strip(".")).items()
    }
