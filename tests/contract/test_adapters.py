"""The plug-ins for verl and SkyRL: run by the library where it is installed, else by its recorded extension points."""

import importlib
import importlib.util
import inspect
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from moments_service.adapters.clusters import NamedClusters
from moments_service.adapters.local import LocalMoments
from moments_service.config import BlendConfig, ClusterConfig, MomentsConfig
from tests.contract import stand_ins

pytestmark = pytest.mark.contract

ADAPTERS = {"verl": ("verl", "verl_rollouts"), "skyrl": ("skyrl",)}
IDS = ["u1", "u0", "u0", "u1", "u0", "pad0"]
"""Groups of unlike size that do not stand together, and a row that fills the batch up."""
REWARDS = [1.0, 0.0, 1.0, 1.0, 0.0, 1.0]
GROUPS = [[1.0, 1.0, np.nan], [0.0, 1.0, 0.0]]


class TwoTopics:
    def encode(self, texts: list[str]) -> np.ndarray:
        return np.array([[1.0, 0.0] if "sum" in text else [0.0, 1.0] for text in texts], dtype=np.float32)


def load(library: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The adapter of a library, fresh, over the library itself or its stand-in."""
    installed = importlib.util.find_spec(library) is not None
    if not installed:
        for name, module in getattr(stand_ins, library)().items():
            monkeypatch.setitem(sys.modules, name, module)
    adapter = importlib.import_module(f"moments_service.adapters.{library}")
    adapter.registered.use(None)
    adapter.registered._texts.clear()
    yield adapter
    if not installed:
        for name in ADAPTERS[library]:
            sys.modules.pop(f"moments_service.adapters.{name}", None)


@pytest.fixture
def verl(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    yield from load("verl", monkeypatch)


@pytest.fixture
def skyrl(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    yield from load("skyrl", monkeypatch)


def call(library: str, estimator: Any, rewards: list[float] = REWARDS, config: Any = None) -> torch.Tensor:
    """Call as the library's trainer does, with exactly the arguments that were recorded. Returns [B, T]."""
    mask = torch.ones(len(rewards), 3)
    mask[0, 1:] = 0.0
    tokens = torch.zeros(len(rewards), 3)
    tokens[:, 0] = torch.tensor(rewards)
    known = {"token_level_rewards": tokens, "response_mask": mask, "config": config, "index": IDS}
    passed = stand_ins.recorded(library)["passed"]
    if passed["index"] == "ndarray":
        known["index"] = np.array(IDS, dtype=object)
    advantages, returns = estimator(**{name: known.get(name) for name in passed})
    assert advantages.dtype == tokens.dtype and torch.equal(advantages, returns)
    assert torch.equal(advantages[0, 1:], torch.zeros(2))
    assert torch.equal(advantages[1:, 0], advantages[1:, 2])
    return advantages


def expected(moments: LocalMoments, step: int, labels: list[str]) -> list[float]:
    values = moments.advantages(step, ["u1", "u0"], GROUPS, labels=labels).values
    return [values[0, 0], values[1, 0], values[1, 1], values[0, 1], values[1, 2], 0.0]


def check_history(library: str, estimator: Any, config: Any = None) -> None:
    """Three batches through the estimator, against moments of one cluster that are kept beside it."""
    blend = MomentsConfig.model_validate((config or {}).get("bv_blend", {}))
    own = LocalMoments(blend, clusters=NamedClusters())
    for step in range(3):
        given = call(library, estimator, config=config)[:, 0].tolist()
        assert given == pytest.approx(expected(own, step, ["all", "all"]), abs=1e-6)
        own.commit(step)
    uniform = call(library, estimator, [0.0] * 6, config)
    assert (uniform[:5, 0] < -0.1).all() and uniform[5, 0] == 0.0


def test_verl_finds_the_estimator_and_its_advantages_remember(verl: ModuleType) -> None:
    core = importlib.import_module("verl.trainer.ppo.core_algos")
    estimator = core.get_adv_estimator_fn("bv_blend")
    assert estimator is verl.bv_blend
    check_history(
        "verl", estimator, {"bv_blend": {"estimator": {"kind": "bv_blend", "variant": "eb", "temperature": 0.2}}}
    )
    assert verl.registered.moments.config.blend == BlendConfig(variant="eb", temperature=0.2)
    with pytest.raises(ValueError, match="no uid"):
        estimator(token_level_rewards=torch.zeros(1, 1), response_mask=torch.ones(1, 1), config=None)


def test_verl_prompts_become_clusters_on_their_way_to_the_rollouts(verl: ModuleType) -> None:
    rollouts = importlib.import_module("moments_service.adapters.verl_rollouts")
    dispatched: list[Any] = []

    class Silent(rollouts.AgentLoopManager.__mro__[1]):  # type: ignore[misc]
        def __init__(self) -> None: ...

        def generate_sequences(self, prompts: Any) -> None:
            dispatched.append(prompts)

    class Manager(rollouts.AgentLoopManager, Silent):  # type: ignore[misc]
        def __init__(self) -> None: ...

    prompts = {
        "uid": np.array(["u0", "u1"], dtype=object),
        "raw_prompt": [[{"role": "user", "content": text}] for text in ("a sum", "some legs")],
    }
    Manager().generate_sequences(prompts)
    assert dispatched == [prompts]
    moments = LocalMoments(MomentsConfig(clusters=ClusterConfig(count=2)), encoder=TwoTopics())
    verl.registered.use(moments)
    call("verl", verl.bv_blend)
    verl.registered.commit()
    assert len(moments.clusters) == 2
    history = moments.history(["another sum", "other legs"])
    assert history.mean[1] > 0.5 > history.mean[0]
    verl.registered._texts.clear()
    with pytest.raises(KeyError, match="is unknown"):
        call("verl", verl.bv_blend)


def test_verl_checkpoints_carry_the_moments(verl: ModuleType, tmp_path: Path) -> None:
    def settings(mode: str) -> SimpleNamespace:
        resumed = str(tmp_path / "global_step_2")
        trainer = SimpleNamespace(resume_mode=mode, default_local_dir=str(tmp_path), resume_from_path=resumed)
        return SimpleNamespace(trainer=trainer, algorithm={})

    callback = verl.Checkpoints(settings("auto"))
    for _ in range(2):
        call("verl", verl.bv_blend)
    (tmp_path / "global_step_2").mkdir()
    callback.on_save(trainer=None, global_step=2, checkpoint_dir=str(tmp_path / "global_step_2"), async_save=False)
    saved = verl.registered.moments.arrays()
    assert verl.registered.moments.last_step == 1
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("2")
    for mode in ("auto", "resume_path"):
        verl.registered.use(None)
        verl.Checkpoints(settings(mode))
        for name, array in saved.items():
            np.testing.assert_array_equal(verl.registered.moments.arrays()[name], array)
    verl.registered.use(None)
    verl.Checkpoints(settings("disable"))
    with pytest.raises(RuntimeError, match="no moments yet"):
        _ = verl.registered.moments


def test_skyrl_finds_the_estimator_and_its_advantages_remember(skyrl: ModuleType) -> None:
    registry = importlib.import_module("skyrl.backends.skyrl_train.utils.ppo_utils").AdvantageEstimatorRegistry
    skyrl.register()
    skyrl.register()
    check_history("skyrl", registry.get("bv_blend"))
    # Its registry pickles functions to the other processes; only by name do they find the moments of their own.
    assert pickle.loads(pickle.dumps(skyrl.bv_blend)) is skyrl.bv_blend


def test_skyrl_callback_clusters_commits_saves_and_resumes(skyrl: ModuleType, tmp_path: Path) -> None:
    config = MomentsConfig(estimator=BlendConfig(variant="paper"))
    prompts = [
        ([{"role": "user", "content": text}], None, {}, f"u{n}") for n, text in enumerate(("a sum", "some legs"))
    ]
    cfg = SimpleNamespace(trainer=SimpleNamespace(ckpt_path=str(tmp_path), resume_mode="latest", resume_path=None))
    trainer = SimpleNamespace(cfg=cfg, global_step=0, train_dataset=prompts)
    callback = skyrl.Moments(config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(skyrl, "LocalMoments", lambda config, prompts: LocalMoments(config, prompts, encoder=TwoTopics()))
        callback.on_train_start(trainer, None, None)
    moments = skyrl.registered.moments
    assert len(moments.clusters) == 2
    for step in (1, 2):
        call("skyrl", skyrl.bv_blend)
        callback.on_step_end(trainer, SimpleNamespace(global_step=step), None)
        assert moments.last_step == step - 1
    callback.on_save(trainer, SimpleNamespace(ckpt_path=str(tmp_path / "global_step_2")), None)

    skyrl.registered.use(None)
    trainer.global_step = 2
    skyrl.Moments(config).on_train_start(trainer, None, None)
    assert skyrl.registered.moments is not moments and skyrl.registered.moments.last_step == 1
    for name, array in moments.arrays().items():
        np.testing.assert_array_equal(skyrl.registered.moments.arrays()[name], array)
    cfg.trainer.ckpt_path = "s3://bucket/run"
    with pytest.raises(ValueError, match="local disks"):
        callback.on_train_start(trainer, None, None)


@pytest.mark.parametrize("library", ADAPTERS)
def test_the_stand_in_is_what_was_recorded(library: str) -> None:
    """Where the library is absent, the tests above are worth what its stand-in is worth."""
    modules = getattr(stand_ins, library)()
    for name, parameters in stand_ins.recorded(library)["signatures"].items():
        module, _, path = name.partition(":")
        target: Any = modules[module]
        for part in path.split("."):
            target = getattr(target, part, None)
        if target is not None:  # a base class need not have what the adapter overrides
            assert list(inspect.signature(target).parameters) == parameters, name


@pytest.mark.parametrize(
    ("library", "member", "base"),
    [("verl", "Checkpoints.on_save", "CheckpointCallback.on_save")]
    + [
        ("skyrl", f"Moments.{event}", f"TrainingCallback.{event}")
        for event in ("on_train_start", "on_step_end", "on_save")
    ],
)
def test_overridden_methods_take_what_the_library_passes(
    library: str, member: str, base: str, request: pytest.FixtureRequest
) -> None:
    adapter = request.getfixturevalue(library)
    kind, _, method = member.partition(".")
    own = list(inspect.signature(getattr(getattr(adapter, kind), method)).parameters)
    (theirs,) = (p for name, p in stand_ins.recorded(library)["signatures"].items() if name.endswith(f":{base}"))
    assert [name for name in own if name != "_"] == [name for name in theirs if name != "kwargs"]


@pytest.mark.parametrize("library", ADAPTERS)
def test_the_record_is_what_the_installed_library_says(library: str) -> None:
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed; its record is of version {stand_ins.recorded(library)['version']}")
    from tests.contract.recorded.record import record

    found, kept = record(library), stand_ins.recorded(library)
    assert found["signatures"] == kept["signatures"]
    assert found["passed"] == kept["passed"]
