"""A service whose clusters change while it runs: nothing is lost, and it comes back bit for bit."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from moments_service.clusters import PromptSet
from moments_service.config import BlendConfig, ClusterConfig, MomentsConfig
from moments_service.messages.groups import ScoredGroup
from moments_service.service import MomentsService
from tests.unit.test_clusters import unit
from tests.unit.test_moments_service import group, train_on

pytestmark = pytest.mark.unit

CONFIG = MomentsConfig(clusters=ClusterConfig(count=2, adapt=True))
BLENDED = CONFIG.model_copy(update={"estimator": BlendConfig()})
"""Trusts history also where no reward ever differs within a group."""
AXES = np.eye(8)
POINTS = unit(
    np.concatenate(
        [
            np.tile(AXES[0] + 0.4 * AXES[1], (10, 1)),
            np.tile(AXES[0] - 0.4 * AXES[1], (10, 1)),
            np.tile(AXES[4], (10, 1)),
        ]
    )
    + 0.01 * np.random.default_rng(0).normal(size=(30, 8))
)
PROMPTS = PromptSet(tuple(f"prompt{i}" for i in range(30)), ("sums",) * 30, ("",) * 30, POINTS)


def of(prompt: int, epoch: int) -> ScoredGroup:
    """Every prompt of the first ten succeeds always, the others never."""
    scored = group(prompt, (1.0,) * 4 if prompt < 10 else (0.0,) * 4)
    return replace(scored, group_id=f"prompt{prompt}:{epoch}:0:0", sequence=30 * epoch + prompt)


def state(service: MomentsService) -> dict[str, bytes]:
    arrays = service._fitted_state().arrays()
    return {name: array.tobytes() for name, array in arrays.items()} | {"heirs": service._fitted().heirs.tobytes()}


async def split_service(directory: Path) -> MomentsService:
    """A service that was trained on everything once, then changed its clusters."""
    service = MomentsService(CONFIG, directory, seed=0)
    assert await service.fit_clusters(PROMPTS) == 2
    await train_on(service, 0, *(of(prompt, 0) for prompt in range(30)))
    mass = sum((await service.cluster_stats())["mass"])
    change = await service.adapt_clusters()
    assert change is not None and len(change.clusters) == 4
    assert sum((await service.cluster_stats())["mass"]) == pytest.approx(mass)
    return service


async def test_a_split_frees_each_kind_of_prompt_from_the_others_history(tmp_path: Path) -> None:
    service = await split_service(tmp_path)
    await train_on(service, 1, *(of(prompt, 1) for prompt in range(30)))
    clusters = await service.assign(PROMPTS)
    assert len(set(clusters[:10])) == len(set(clusters[10:20])) == 1 and clusters[0] != clusters[10]
    mean = (await service.cluster_stats())["mean"]
    assert mean[clusters[0]] > 0.6 > 0.4 > mean[clusters[10]]
    await service.close()


async def test_a_service_that_died_after_a_change_comes_back_bit_for_bit(tmp_path: Path) -> None:
    service = await split_service(tmp_path)
    await train_on(service, 1, *(of(prompt, 1) for prompt in range(12)))
    # No close: the process is gone, the files are what they are.
    again = MomentsService(CONFIG, tmp_path, seed=0)
    assert state(again) == state(service)
    assert again._fitted().fingerprint == service._fitted().fingerprint
    await again.fit_clusters(PROMPTS)
    assert state(again) == state(service)
    await service.close()
    await again.close()


async def test_groups_under_way_during_a_change_count_for_the_heirs(tmp_path: Path) -> None:
    service = MomentsService(BLENDED, tmp_path, seed=0)
    await service.fit_clusters(PROMPTS)
    await train_on(service, 0, *(of(prompt, 0) for prompt in range(30)))
    await service.submit(of(0, 1), payload="submitted before the change")
    change = await service.adapt_clusters()
    assert change is not None
    batch = await service.draw(1, [of(0, 1).group_id])
    assert batch.weight[0] > 0
    heir = change.clusters.heirs[batch.clusters[0]]
    before = (await service.cluster_stats())["mass"]
    await service.commit(1, policy_version=2)
    after = (await service.cluster_stats())["mass"]
    assert heir != batch.clusters[0]
    assert after[heir] > before[heir] and after[batch.clusters[0]] == 0
    again = MomentsService(BLENDED, tmp_path, seed=0)
    assert state(again) == state(service)
    await service.close()
    await again.close()


async def test_a_resume_goes_on_with_the_clusters_of_its_snapshot(tmp_path: Path) -> None:
    run, snapshot = tmp_path / "run", tmp_path / "snapshot"
    snapshot.mkdir()
    first = MomentsService(CONFIG, run, seed=0)
    await first.fit_clusters(PROMPTS)
    await train_on(first, 0, *(of(prompt, 0) for prompt in range(30)))
    await first.snapshot(snapshot)
    saved = state(first)
    await first.adapt_clusters()
    await train_on(first, 1, *(of(prompt, 1) for prompt in range(30)))
    expected = state(first)
    await first.close()
    second = MomentsService(CONFIG, run, seed=0, incarnation=1, snapshot=snapshot)
    assert state(second) == saved
    await second.fit_clusters(PROMPTS)
    await second.adapt_clusters()
    await train_on(second, 1, *(of(prompt, 1) for prompt in range(30)))
    assert state(second) == expected
    third = MomentsService(CONFIG, run, seed=0, incarnation=1, snapshot=snapshot)
    assert state(third) == expected
    assert sorted(path.name for path in run.glob("codebook-*")) == [
        "codebook-000.safetensors",
        "codebook-001.safetensors",
    ]
    await second.close()
    await third.close()


async def test_new_prompts_grow_the_clusters_of_a_run(tmp_path: Path) -> None:
    service = MomentsService(CONFIG, tmp_path, seed=0)
    await service.fit_clusters(PROMPTS)
    await train_on(service, 0, of(0, 0))
    before = (await service.cluster_stats())["mass"]
    new = PromptSet(("new",), ("gcd",), ("",), AXES[7:].astype(np.float32))
    assert await service.fit_clusters(new) == 3
    assert (await service.cluster_stats())["mass"] == [*before, 0.0]
    assert (await service.assign(new)).tolist() == [2]
    again = MomentsService(CONFIG, tmp_path, seed=0)
    assert state(again) == state(service)
    await service.close()
    await again.close()


async def test_clusters_do_not_change_in_the_middle_of_a_batch(tmp_path: Path) -> None:
    service = MomentsService(CONFIG, tmp_path, seed=0)
    with pytest.raises(RuntimeError, match="fit_clusters first"):
        await service.adapt_clusters()
    await service.fit_clusters(PROMPTS)
    await service.submit(of(0, 0), payload="p")
    await service.draw(0, [of(0, 0).group_id])
    with pytest.raises(RuntimeError, match="is not committed"):
        await service.adapt_clusters()
    await service.close()


@pytest.mark.parametrize("by", ["source", "prompt"])
async def test_clusters_by_label_need_no_embeddings(tmp_path: Path, by: str) -> None:
    config = MomentsConfig(clusters=ClusterConfig(by=by))  # type: ignore[arg-type]
    service = MomentsService(config, tmp_path, seed=0)
    prompts = PromptSet(("prompt0", "prompt1"), ("sums", "sums"), ("", ""))
    assert await service.fit_clusters(prompts) == (1 if by == "source" else 2)
    trained = await train_on(service, 0, group(0), group(1))
    assert [entry.cluster for entry in trained] == ([0, 0] if by == "source" else [0, 1])
    await service.close()


async def test_what_the_feed_is_told_follows_the_version_in_force_and_a_resume_says_it_again(tmp_path: Path) -> None:
    run, snapshot = tmp_path / "run", tmp_path / "snapshot"
    snapshot.mkdir()
    first = MomentsService(CONFIG, run, seed=0)
    await first.fit_clusters(PROMPTS)
    unknown = await first.expected_signal()
    assert np.array_equal(unknown.clusters, await first.assign(PROMPTS)) and len(set(unknown.within)) == 1
    await train_on(first, 0, *(of(prompt, 0) for prompt in range(30)))
    await first.adapt_clusters()
    told = await first.expected_signal()
    assert np.array_equal(told.clusters, await first.assign(PROMPTS)) and max(told.clusters) == 3
    assert len(told.within) == len(told.total) == 4
    # Of all kinds the groups were uniform; the kinds differ in what a single completion says.
    assert max(told.within) < 0.02 < unknown.within[0]
    await first.snapshot(snapshot)
    await first.close()
    second = MomentsService(CONFIG, run, seed=0, incarnation=1, snapshot=snapshot)
    await second.fit_clusters(PROMPTS)
    again = await second.expected_signal()
    for name in ("clusters", "within", "total"):
        assert getattr(again, name).tobytes() == getattr(told, name).tobytes()
    await second.close()
