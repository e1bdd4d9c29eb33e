"""`bvblend export`: the policy of a run, as it was at one of its checkpoints, as a Hugging Face directory, or its adapter as peft's."""

import shutil
from pathlib import Path
from typing import Annotated, Literal

import typer

from deploy.cli.console import console
from deploy.cli.places import writing
from deploy.config.recipe import ConfigError
from deploy.rundir.find import find_run, load_run_config, whole_checkpoint
from deploy.rundir.layout import RunDirectory
from learner.adapters.options import LowRank
from moments_service.durable import put_directory


def export(
    run: Annotated[Path, typer.Argument(help="A run, for example runs/latest", show_default=False)],
    out: Annotated[Path, typer.Option(help="New directory to write", show_default=False)],
    step: Annotated[
        int | None,
        typer.Option(min=0, help="Of the checkpoint after so many steps; else the newest", show_default=False),
    ] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option(help="Of the weights; else what the run's engine took", show_default=False),
    ] = None,
    adapter: Annotated[bool, typer.Option("--adapter", help="The adapter alone, for peft and vLLM")] = False,
) -> None:
    """Write a policy that transformers and vLLM load. Example: bvblend export runs/latest --step 50 --out my_policy"""
    directory = find_run(run)
    config = load_run_config(directory)
    after = _step(directory, step)
    options = config.learner.adapter
    if adapter and not isinstance(options, LowRank):
        raise ConfigError(f"--adapter: {directory.path} trained the policy's own parameters; leave it out")
    if out.exists():
        raise ConfigError(f"--out {out}: something is there; name a new directory")
    checkpoint = whole_checkpoint(directory, after)
    import torch

    from learner.errors import CheckpointError
    from learner.export_checkpoint import export_checkpoint, export_checkpoint_adapter

    weights = getattr(torch, dtype or config.rollout.dtype)
    partial = out.with_name(f"{out.name}.partial")
    try:
        with writing(out):
            if adapter and isinstance(options, LowRank):
                export_checkpoint_adapter(checkpoint / "learner", partial, config.policy, weights, options)
            else:
                export_checkpoint(checkpoint / "learner", partial, config.policy, weights, options)
            put_directory(partial, out)
    except CheckpointError as error:
        raise ConfigError(str(error)) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    console.print(f"{out}: the {'adapter' if adapter else 'policy'} after {after} steps", soft_wrap=True)


def _step(directory: RunDirectory, step: int | None) -> int:
    """The one that is asked for, or the newest. Raises ConfigError where there is no checkpoint of it."""
    steps = directory.checkpoint_steps()
    if not steps:
        raise ConfigError(
            f"{directory.path} has no checkpoint; one is written every checkpoint.every steps and at a stop"
        )
    if step is not None and step not in steps:
        raise ConfigError(
            f"--step {step}: {directory.path} has no such checkpoint; there are {', '.join(map(str, steps))} (checkpoint.keep)"
        )
    return steps[-1] if step is None else step
