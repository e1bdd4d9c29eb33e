"""Asks an installed verl or SkyRL what the adapters rely on: signatures, and what its trainer passes to an estimator.

    python -m tests.contract.recorded.record verl     # writes verl.json next to this file

The contract test runs the adapters against the record, and the record against the library wherever that is installed.
"""

import importlib
import inspect
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

SIGNATURES = {
    "verl": [
        "verl.trainer.ppo.core_algos:register_adv_est",
        "verl.trainer.ppo.core_algos:get_adv_estimator_fn",
        "verl.trainer.ppo.checkpoint_callback:CheckpointCallback.__init__",
        "verl.trainer.ppo.checkpoint_callback:CheckpointCallback.on_save",
        "verl.utils.checkpoint.checkpoint_manager:find_latest_ckpt_path",
        "verl.trainer.ppo.v1:AgentLoopManagerTQ.generate_sequences",
    ],
    "skyrl": [
        "skyrl.backends.skyrl_train.utils.ppo_utils:AdvantageEstimatorRegistry.register",
        "skyrl.backends.skyrl_train.utils.ppo_utils:AdvantageEstimatorRegistry.list_available",
        "skyrl.train.utils.callbacks:TrainingCallback.on_train_start",
        "skyrl.train.utils.callbacks:TrainingCallback.on_step_end",
        "skyrl.train.utils.callbacks:TrainingCallback.on_save",
    ],
}


def signatures(library: str) -> dict[str, list[str]]:
    """Names of the parameters of each extension point."""
    found = {}
    for name in SIGNATURES[library]:
        module, _, path = name.partition(":")
        target: Any = importlib.import_module(module)
        for part in path.split("."):
            target = getattr(target, part)
        found[name] = list(inspect.signature(target).parameters)
    return found


def passed_by_verl() -> dict[str, str]:
    """What verl's trainer hands to an estimator that is not built in, by the type of each argument."""
    import numpy as np
    import torch
    from omegaconf import OmegaConf
    from verl import DataProto
    from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY
    from verl.trainer.ppo.ray_trainer import compute_advantage

    passed: dict[str, Any] = {}

    def probe(**arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
        passed.update(arguments)
        return arguments["token_level_rewards"], arguments["token_level_rewards"]

    tensors = {"token_level_rewards": torch.zeros(2, 3), "response_mask": torch.ones(2, 3)}
    data = DataProto.from_dict(tensors, non_tensors={"uid": np.array(["a", "a"], dtype=object)})
    ADV_ESTIMATOR_REGISTRY["probe"] = probe
    compute_advantage(data, "probe", config=OmegaConf.create({"adv_estimator": "probe"}))
    del ADV_ESTIMATOR_REGISTRY["probe"]
    return {name: type(value).__name__ for name, value in passed.items()}


def passed_by_skyrl() -> dict[str, str]:
    """What SkyRL hands to an estimator, by the type of each argument; its trainer adds no others."""
    import torch
    from skyrl.backends.skyrl_train.utils import ppo_utils

    passed: dict[str, Any] = {}

    def probe(**arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
        passed.update(arguments)
        return arguments["token_level_rewards"], arguments["token_level_rewards"]

    ppo_utils.AdvantageEstimatorRegistry.register("probe", probe)
    tensors = {"token_level_rewards": torch.zeros(2, 3), "response_mask": torch.ones(2, 3)}
    ppo_utils.compute_advantages_and_returns(**tensors, index=["a", "a"], adv_estimator="probe", config=None)
    ppo_utils.AdvantageEstimatorRegistry.unregister("probe")
    return {name: type(value).__name__ for name, value in passed.items()}


def record(library: str) -> dict[str, Any]:
    passed = passed_by_verl() if library == "verl" else passed_by_skyrl()
    return {"library": library, "version": version(library), "signatures": signatures(library), "passed": passed}


if __name__ == "__main__":
    path = Path(__file__).with_name(f"{sys.argv[1]}.json")
    path.write_text(json.dumps(record(sys.argv[1]), indent=2) + "\n")
