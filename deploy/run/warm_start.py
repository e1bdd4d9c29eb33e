"""Moments on their way from one run to another: which ones a run has saved, and whether a new run can begin with them."""

from pathlib import Path

from deploy.config.models import RunConfig
from deploy.config.recipe import ConfigError, load_recipe
from deploy.run.prompt_set import encoder_fingerprint
from deploy.rundir.layout import RunDirectory
from moments_service.clusters import load_clusters
from moments_service.offline.portable import PortableMoments, WarmStart


def read_warm_start(
    config: RunConfig, exported: Path | None, codebook: Path | None, discount: float
) -> WarmStart | None:
    """What the new run begins with; None where neither is named. Raises ConfigError if it does not fit the run."""
    if exported is None and codebook is None:
        if discount != 1.0:
            raise ConfigError("--discount is the share of imported moments to keep; name them with --warm-start")
        return None
    try:
        if exported is not None:
            portable = PortableMoments.read(exported).discounted(discount)
            start = WarmStart(portable.clusters, portable)
        else:
            assert codebook is not None
            start = WarmStart(load_clusters(codebook))
        start.refuse_misfit(config.moments, encoder_fingerprint(config))
    except ValueError as error:
        raise ConfigError(f"{exported or codebook}: {error}") from None
    return start


def newest_snapshot(run: RunDirectory) -> Path | None:
    """The newest saved moments of a run: its end, or its newest checkpoint; None if nothing was saved yet."""
    steps = run.checkpoint_steps()
    newest = run.checkpoint(steps[-1]) / "moments" if steps else None
    if not run.final_moments.exists():
        return newest
    # A finished run that was resumed for more steps has checkpoints past its former end.
    trained = len(run.read_metrics())
    return newest if newest is not None and steps[-1] >= trained else run.final_moments


def read_saved(source: Path) -> PortableMoments:
    """Moments of a run or of one checkpoint of it. Raises ConfigError if there are none."""
    run = RunDirectory(source)
    snapshot = newest_snapshot(run) if run.config.exists() else source / "moments"
    if not run.config.exists():
        run = RunDirectory(source.resolve().parents[1])
        if not run.config.exists() or not (source / "run.json").exists():
            raise ConfigError(f"{source} is neither a run nor a checkpoint of one")
    if snapshot is None:
        raise ConfigError(f"{source}: nothing is saved yet; a run saves its moments in every checkpoint and at its end")
    config = load_recipe(run.config)
    try:
        return PortableMoments.from_snapshot(snapshot, config.moments, config.policy, run.path.name)
    except ValueError as error:
        raise ConfigError(str(error)) from None
