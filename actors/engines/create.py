"""An engine in this process, and the environment variables that it wants there."""

import importlib
import inspect
import logging
import os
from collections.abc import Callable

from actors.config import RolloutConfig
from actors.engines.adapter_plan import AdapterPlan
from actors.engines.kinds import VllmConfig
from actors.engines.protocol import Engine
from actors.import_path import put_own_packages_first
from moments_service.seeding import derive_seed

logger = logging.getLogger(__name__)

ENGINE_ENV = {
    "VLLM_NO_USAGE_STATS": "1",
    # Its warnings are about what we chose on purpose, some of them at every weight update.
    "VLLM_LOGGING_LEVEL": "ERROR",
    # One engine never leaves its machine; vLLM would otherwise advertise the machine's outer address.
    "VLLM_HOST_IP": "127.0.0.1",
}
"""Environment of every engine's process, to be set before torch and vLLM are imported."""

CPU_ENGINE_ENV = ENGINE_ENV | {
    # Binding picks the same cores for every engine on a machine, which then starve each other.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # Keeps the worker inside the engine's one child process: a second child costs its imports and its memory again.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # vLLM compiles one small sampling function even in eager mode: seconds at the first token, and needs a C++ compiler.
    "TORCH_COMPILE_DISABLE": "1",
}
"""What an engine on CPU needs besides; the number of threads comes from `engine_environment`."""


def engine_environment(config: RolloutConfig) -> dict[str, str]:
    """Variables for `runtime_env={"env_vars": ...}` of a rollout actor: torch and vLLM read them when imported."""
    if config.gpus > 0:
        return dict(ENGINE_ENV)
    return CPU_ENGINE_ENV | {"OMP_NUM_THREADS": str(max(1, int(config.cpus)))}


def create_engine(
    config: RolloutConfig, policy: str, seed: int, index: int, adapter: AdapterPlan | None = None
) -> Engine:
    """The engine that `config` names, not yet started. May take seconds.

    policy: directory or hub id of a Hugging Face checkpoint.    seed: the run's.    index: this engine's place among
    the rollout actors.    adapter: where weights will come as adapters alone; ValueError for an engine that takes none.
    """
    put_own_packages_first()  # vLLM's child processes get this process's path
    kind = _implementation(config)
    seed = derive_seed(seed, "engine", index)
    engine: Engine
    if adapter is None:
        engine = kind(config, policy, seed)
    else:
        _refuse_without_adapters(config, kind)
        engine = kind(config, policy, seed, adapter=adapter)
    return engine


def refuse_adapters(config: RolloutConfig, policy: str, adapter: AdapterPlan) -> None:
    """Raise ValueError where the engine cannot serve a policy with such adapters. Imports the engine, and starts none.

    policy: as of `create_engine`.
    """
    _refuse_without_adapters(config, _implementation(config))
    if isinstance(config.engine, VllmConfig):
        from actors.engines.vllm_adaptable import refuse_unadaptable

        try:
            refuse_unadaptable(config, policy, adapter)
        except ValueError:
            raise
        except Exception as error:  # no GPU on the driver's machine, or a model that vLLM cannot make without values
            logger.warning("vLLM says only at its start which layers it can adapt (%s)", error)


def _implementation(config: RolloutConfig) -> Callable[..., Engine]:
    """The class that the section names, in the environment that it wants."""
    for name, value in engine_environment(config).items():
        os.environ.setdefault(name, value)
    module, _, name = config.engine.implementation.partition(":")
    kind: Callable[..., Engine] = getattr(importlib.import_module(module), name)
    return kind


def _refuse_without_adapters(config: RolloutConfig, kind: Callable[..., Engine]) -> None:
    parameters = inspect.signature(kind).parameters.values()
    if not any(each.name == "adapter" or each.kind is each.VAR_KEYWORD for each in parameters):
        raise ValueError(
            f"learner.adapter.publish: engine {config.engine.kind} takes whole policies alone ({config.engine.implementation} has no "
            "argument `adapter`); publish merged, or add it as docs/extending.md says"
        )
