"""An evaluation on this machine: one engine and its verifiers, without Ray, moments or learner."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from actors.prompts.prompt import Prompt
from actors.rollout.evaluated import EvaluatedGroup
from actors.rollout.worker import RolloutWorker
from deploy.config.models import RunConfig
from deploy.config.rollout_spec import rollout_spec
from deploy.evaluation.draw import evaluation_draw

_AT_ONCE = 64
"""Prompts that are given to the engine together; it batches their samples as it does in training."""


async def evaluate_here(
    config: RunConfig, prompts: Sequence[Prompt], progress: Callable[[int], None]
) -> list[EvaluatedGroup]:
    """`evaluation.samples` of each prompt by `policy`, judged. progress: told how many prompts are done."""
    spec = rollout_spec(config, sorted({prompt.verifier for prompt in prompts}))
    # No weights will come: what is evaluated is whole.
    worker = RolloutWorker(replace(spec, adapter=None), index=0)
    await worker.start()
    try:
        found: list[EvaluatedGroup] = []
        for start in range(0, len(prompts), _AT_ONCE):
            found += await worker.evaluate(prompts[start : start + _AT_ONCE], evaluation_draw(config))
            progress(len(found))
        return found
    finally:
        await worker.close()
