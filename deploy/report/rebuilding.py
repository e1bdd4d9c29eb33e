"""The moments of a run made again from its ledger alone, and compared with what the run saved."""

import sqlite3
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from safetensors import SafetensorError

from deploy.config.models import RunConfig
from deploy.config.recipe import ConfigError
from deploy.rundir.layout import RunDirectory
from deploy.rundir.saved_moments import newest_snapshot
from moments_service.ledger import LedgerDamagedError, LedgerReader
from moments_service.ledger.parts import part_paths
from moments_service.ledger.seals import check_parts
from moments_service.offline.portable import PortableMoments
from moments_service.offline.rebuild import differing_arrays, rebuild
from moments_service.progress import Progress, silent
from moments_service.state import read_origin


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What a ledger alone says of a run."""

    portable: PortableMoments
    parts: int
    transactions: int
    compared: str
    """What the rebuilt moments were compared with, and what came of it."""
    same: bool | None
    """None where there was nothing to compare with."""


def rebuild_run(config: RunConfig, run: RunDirectory, step: int | None, progress: Progress = silent) -> Rebuilt:
    """Check every row of the ledger and fold every commit again, up to `step` steps (all if None).

    Raises ConfigError where the ledger is missing, damaged or does not reach so far.
    """
    try:
        paths = part_paths(run.moments)
        seals = check_parts(paths).seals
        reader = LedgerReader(run.moments)
    except (FileNotFoundError, LedgerDamagedError, sqlite3.Error) as error:
        raise ConfigError(str(error)) from None
    try:
        incarnation = reader.last_incarnation()
        _refuse_gaps(run, reader.steps(incarnation), step)
        history = rebuild(config.moments, run.moments, before_step=2**62 if step is None else step, progress=progress)
        state, clusters = history.state, history.clusters
        assert state is not None and clusters is not None
        compared, same = _compare(config, run, _saved(run, step))
        began = [number for number, first, _ in reader.lineage(incarnation) if first <= max(0, state.last_step)]
        counts = reader.counts(began[-1], state.last_step)
        portable = PortableMoments.from_state(state, clusters, counts, config.policy, run.path.name)
        return Rebuilt(portable, len(paths), seals, compared, same)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    finally:
        reader.close()


def _refuse_gaps(run: RunDirectory, steps: list[int], wanted: int | None) -> None:
    for before, after in pairwise([-1, *steps]):
        if after != before + 1:
            raise ConfigError(
                f"the ledger in {run.moments} has no commits of steps {before + 1} to {after - 1}: a part of it was lost, and "
                "moments cannot be made again without it; restore the part from a copy"
            )
    if wanted is not None and wanted > len(steps):
        raise ConfigError(f"--step {wanted}: the ledger in {run.moments} holds {len(steps)} steps")


def _saved(run: RunDirectory, step: int | None) -> Path | None:
    """The newest saved moments; where a step is wanted, those that were saved after it."""
    if step is None:
        return newest_snapshot(run)
    if step in run.checkpoint_steps():
        return run.checkpoint(step) / "moments"
    final = run.final_moments
    return final if final.exists() and read_origin(final).last_step + 1 == step else None


def _compare(config: RunConfig, run: RunDirectory, saved: Path | None) -> tuple[str, bool | None]:
    if saved is None:
        return "nothing to compare with: no moments were saved then", None
    name = saved.relative_to(run.path)
    try:
        origin = read_origin(saved)
        # The moments as that start of the run saw them: a later one may have begun with more clusters.
        history = rebuild(config.moments, run.moments, origin.incarnation, origin.last_step + 1)
        assert history.state is not None and history.clusters is not None
        differing = differing_arrays(history.state, saved)
    except (OSError, SafetensorError) as error:
        return f"{name} cannot be read ({error}): nothing to compare with", None
    if history.clusters.fingerprint != origin.codebook:
        differing.append("the clusters")
    when = f"{name}, after {origin.last_step + 1} steps"
    if differing:
        return f"NOT the same as {when}: {', '.join(differing)}", False
    return f"the same as {when}, bit for bit", True
