"""Starts the rollout actors of a run: resources, environment, restarts."""

from collections.abc import Sequence
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup

from actors.config import RolloutConfig, SamplingConfig
from actors.engines import engine_environment
from actors.placement import Part, bundle, place_in
from actors.rollout.actor import RolloutActor

MAX_CONCURRENCY = 100_000
"""Calls an actor takes at once. The driver's slots bound rollouts; weight updates must never queue behind them."""


def rollout_part(config: RolloutConfig) -> Part:
    """What the rollout actors ask of the cluster."""
    each = bundle(config.cpus, config.gpus)
    return Part("rollout actor", "rollout", config.actors, each, config.placement)


def spawn_rollout_actors(
    config: RolloutConfig,
    sampling: SamplingConfig,
    places: PlacementGroup,
    *,
    policy: str,
    chat: bool,
    seed: int,
    text_share: float,
    text_chars: int,
    verifiers: Sequence[str],
    start_timeout_s: float,
) -> list[Any]:
    """Handles of `config.actors` rollout actors, one in each of `places`. Returns at once; each serves after `ready`.

    places: reserved for `rollout_part`.    policy: directory (on every node) or hub id.    verifiers: names to load at the
    start.    start_timeout_s: how long a rollout waits for `ready`.
    Ray restarts an actor that dies for as long as its driver lives; the driver then calls `ready` with the newest weights.
    """
    environment = engine_environment(config)
    if config.gpus == 0:
        environment["CUDA_VISIBLE_DEVICES"] = ""  # Ray leaves all GPUs visible to actors that asked for none
    options = {
        "num_cpus": config.cpus,
        "num_gpus": config.gpus,
        "runtime_env": {"env_vars": environment},
        "max_restarts": -1,
        # Calls made while Ray restarts the actor wait for it; those that must not run twice say so themselves.
        "max_task_retries": -1,
        "max_concurrency": MAX_CONCURRENCY,
    }
    actor = ray.remote(RolloutActor)
    return [
        actor.options(**options, scheduling_strategy=place_in(places, index)).remote(
            config, sampling, policy, chat, seed, index, text_share, text_chars, verifiers, start_timeout_s
        )
        for index in range(config.actors)
    ]
