"""Modules with the extension points of verl and SkyRL as recorded, for machines where those are not installed."""

import json
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

RECORDED = Path(__file__).parent / "recorded"


def recorded(library: str) -> dict[str, Any]:
    return json.loads((RECORDED / f"{library}.json").read_text())


def _module(name: str, **members: Any) -> types.ModuleType:
    module = types.ModuleType(name)
    module.__dict__.update(members)
    return module


def _with_parents(modules: list[types.ModuleType]) -> dict[str, types.ModuleType]:
    found = {module.__name__: module for module in modules}
    for name in list(found):
        parts = name.split(".")
        for end in range(1, len(parts)):
            found.setdefault(".".join(parts[:end]), types.ModuleType(".".join(parts[:end])))
    return found


def verl() -> dict[str, types.ModuleType]:
    registry: dict[str, Callable[..., Any]] = {}

    def register_adv_est(name_or_enum: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        return lambda function: registry.setdefault(name_or_enum, function)

    class CheckpointCallback:
        def __init__(self, config: Any = None) -> None:
            self.config = config

    class AgentLoopManagerTQ:
        def generate_sequences(self, prompts: Any) -> None:
            self.dispatched = prompts

    def find_latest_ckpt_path(path: str, directory_format: str = "global_step_{}") -> str | None:
        tracker = Path(path) / "latest_checkpointed_iteration.txt"
        return str(Path(path) / directory_format.format(tracker.read_text())) if tracker.exists() else None

    return _with_parents(
        [
            _module(
                "verl.trainer.ppo.core_algos",
                register_adv_est=register_adv_est,
                get_adv_estimator_fn=lambda name_or_enum: registry[name_or_enum],
            ),
            _module("verl.trainer.ppo.checkpoint_callback", CheckpointCallback=CheckpointCallback),
            _module("verl.trainer.ppo.v1", AgentLoopManagerTQ=AgentLoopManagerTQ),
            _module("verl.utils.checkpoint.checkpoint_manager", find_latest_ckpt_path=find_latest_ckpt_path),
        ]
    )


def skyrl() -> dict[str, types.ModuleType]:
    functions: dict[str, Callable[..., Any]] = {}

    class AdvantageEstimatorRegistry:
        @classmethod
        def register(cls, name: str, func: Callable[..., Any]) -> None:
            if name in functions:
                raise ValueError(f"advantage estimator '{name}' already registered")
            functions[name] = func

        @classmethod
        def get(cls, name: str) -> Callable[..., Any]:
            return functions[name]

        @classmethod
        def list_available(cls) -> list[str]:
            return list(functions)

    return _with_parents(
        [
            _module(
                "skyrl.backends.skyrl_train.utils.ppo_utils", AdvantageEstimatorRegistry=AdvantageEstimatorRegistry
            ),
            _module("skyrl.train.utils.callbacks", TrainingCallback=type("TrainingCallback", (), {})),
        ]
    )
