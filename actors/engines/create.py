"""An engine in this process, and the environment variables that it wants there."""

import importlib
import os

from actors.config import RolloutConfig
from actors.engines.adapter_plan import AdapterPlan
from actors.engines.protocol import Engine
from actors.import_path import put_own_packages_first
from moments_service.seeding import derive_seed

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
    the rollout actors.    adapter: where weights will come as adapters alone.
    """
    put_own_packages_first()  # vLLM's child processes get this process's path
    for name, value in engine_environment(config).items():
        os.environ.setdefault(name, value)
    module, _, name = config.engine.implementation.partition(":")
    beside = {} if adapter is None else {"adapter": adapter}
    kind = getattr(importlib.import_module(module), name)
    engine: Engine = kind(config, policy, derive_seed(seed, "engine", index), **beside)
    return engine
