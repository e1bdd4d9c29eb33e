"""Starts the rollout actors of a run: resources, environment, restarts."""

from typing import Any

import ray
from ray.util.placement_group import PlacementGroup

from actors.config import RolloutConfig
from actors.engines.create import engine_environment
from actors.placement import Part, bundle, place_in
from actors.rollout.actor import RolloutActor
from actors.rollout.spec import RolloutSpec

MAX_CONCURRENCY = 100_000
"""Calls an actor takes at once. The driver's slots bound rollouts; weight updates must never queue behind them."""


def rollout_part(config: RolloutConfig) -> Part:
    """What the rollout actors ask of the cluster."""
    each = bundle(config.cpus, config.gpus)
    return Part("rollout actor", "rollout", config.actors, each, config.placement)


def spawn_rollout_actors(spec: RolloutSpec, places: PlacementGroup) -> list[Any]:
    """Handles of `rollout.actors` rollout actors, one in each of `places`. Returns at once; each serves after `ready`.

    places: reserved for `rollout_part`. Ray restarts an actor that dies for as long as its driver lives; the driver then
    calls `ready` with the newest weights.
    """
    config = spec.rollout
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
        actor.options(**options, scheduling_strategy=place_in(places, index)).remote(spec, index)
        for index in range(config.actors)
    ]
