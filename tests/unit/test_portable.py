"""Moments that leave their run: written, read, discounted, merged, compared; and a run that begins with them."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moments_service.clusters import Codebook, PromptSet, fit_codebook
from moments_service.config import BlendConfig, ClusterConfig, MomentsConfig
from moments_service.durable import seal_directory
from moments_service.estimators.naming import configured
from moments_service.moments import ClusterMoments, CommittedRewards
from moments_service.moments.leave_one_out import TrackedHistory
from moments_service.offline.portable import About, PortableMoments, WarmStart, differences, merge
from moments_service.service import MomentsService
from moments_service.state import Counts
from tests.unit.test_clusters import blobs
from tests.unit.test_moments_service import group, train_on

pytestmark = pytest.mark.unit

VARIANTS = ("safe", "paper", "hierarchical")
CODEBOOK = fit_codebook(PromptSet(("a", "b", "c"), ("",) * 3, ("",) * 3, np.eye(3, dtype=np.float32), "mini-1"), 3, 0)


def portable(variant: str, *rewards: tuple[int, list[float]], codebook: Codebook = CODEBOOK) -> PortableMoments:
    config = configured(MomentsConfig(), variant if variant == "hierarchical" else f"bv_blend:{variant}")
    moments = config.create_moments(len(codebook))
    for step, (cluster, values) in enumerate(rewards):
        moments.fold(CommittedRewards(np.array([cluster]), np.array([values]), ("p",), policy_version=step))
    moments.carry_over(1.0)
    about = About(
        moments=config.moments_kind,
        blend=config.blend,
        estimator=config.estimator.kind,
        encoder=codebook.encoder,
        codebook=codebook.fingerprint,
        policy="tiny",
        run="one",
        steps=len(rewards),
        counts=Counts(groups=len(rewards)),
    )
    return PortableMoments(codebook, moments, about)


def same(first: ClusterMoments, second: ClusterMoments) -> bool:
    one, two = first.state(), second.state()
    return one.keys() == two.keys() and all(np.array_equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_written_is_what_is_read(variant: str, tmp_path: Path) -> None:
    before = portable(variant, (0, [1.0, 0.0]), (2, [0.5, 0.5]))
    before.write(tmp_path / "out")
    after = PortableMoments.read(tmp_path / "out")
    assert after.about == before.about and same(after.moments, before.moments)
    assert after.clusters.fingerprint == CODEBOOK.fingerprint
    with pytest.raises(ValueError, match="exists already"):
        before.write(tmp_path / "out")


def test_parts_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    portable("safe", (0, [1.0])).write(tmp_path / "out")
    fit_codebook(blobs(3, 5), 3, 0).save(tmp_path / "out" / "codebook.safetensors")
    with pytest.raises(ValueError, match=r"codebook\.safetensors is damaged"):
        PortableMoments.read(tmp_path / "out")
    seal_directory(tmp_path / "out")
    with pytest.raises(ValueError, match=f"belong to codebook {CODEBOOK.fingerprint}"):
        PortableMoments.read(tmp_path / "out")
    with pytest.raises(ValueError, match="holds no exported moments"):
        PortableMoments.read(tmp_path)


@settings(max_examples=40, deadline=None)
@given(
    rewards=st.lists(
        st.tuples(st.integers(0, 2), st.lists(st.sampled_from([0.0, 0.3, 1.0]), min_size=1, max_size=4)), max_size=6
    ),
    discount=st.floats(0.01, 1.0),
    variant=st.sampled_from(VARIANTS),
)
def test_a_discount_scales_the_mass_and_nothing_else(rewards: list, discount: float, variant: str) -> None:
    full = portable(variant, *rewards)
    every = np.arange(3)
    before = full.moments.history(every)
    moments = full.discounted(discount).moments
    after = moments.history(every)
    np.testing.assert_array_equal(after.seen, before.seen)
    if isinstance(after, TrackedHistory) and isinstance(before, TrackedHistory):
        # Each cluster stands where it stood and is trusted less; what is shrunk to the others moves towards them.
        np.testing.assert_allclose(after.precision, discount * before.precision, rtol=1e-12, atol=0)
        np.testing.assert_array_equal(after.level, before.level)
        return
    np.testing.assert_allclose(after.mass, discount * before.mass, rtol=1e-12, atol=0)
    if variant == "paper":
        np.testing.assert_array_equal(after.mean, before.mean)
    else:
        # Means without the prior's pseudo-counts are the same; with it they move towards the prior.
        sums, old = moments.state(), full.moments.state()
        np.testing.assert_allclose(sums["total"] * old["count"], old["total"] * sums["count"])


@pytest.mark.parametrize("discount", [0.0, -1.0, 1.5])
def test_a_discount_is_a_share(discount: float) -> None:
    with pytest.raises(ValueError, match="share of the mass"):
        portable("safe").discounted(discount)


def test_merged_counts_add_up_and_the_papers_moments_are_weighed_by_mass() -> None:
    first, second = portable("safe", (0, [1.0, 0.0])), portable("safe", (0, [1.0, 1.0]), (1, [0.0, 0.0]))
    both = merge(first, second)
    sums = both.moments.state()
    fade = 0.95  # the second run's first reward is one version older than its last
    np.testing.assert_allclose(sums["count"], [2 + 2 * fade, 2, 0])
    np.testing.assert_allclose(sums["total"], [1 + 2 * fade, 0, 0])
    assert both.about.run == "one + one" and both.about.counts.groups == 3
    paper = merge(portable("paper", (0, [1.0])), portable("paper", (0, [0.0]), (0, [0.0] * 16)))
    masses = [8.0, 0.1 * 8.0 + 0.9 * 16]
    assert paper.moments.history(np.array([0])).mean[0] == pytest.approx(masses[0] / sum(masses))
    assert paper.moments.history(np.array([0])).mass[0] == pytest.approx(sum(masses))


def test_a_difference_counts_by_how_sure_it_is() -> None:
    first = portable("paper", (0, [1.0] * 4), (1, [1.0]), (2, [0.5]))
    second = portable("paper", (0, [0.0] * 4), (0, [0.0] * 40), (1, [0.0]))
    rows = differences(first, second)
    assert [row.cluster for row in rows] == [0, 1, 2]
    assert rows[0].score == pytest.approx(1.0 * np.sqrt(8.0))
    assert rows[2].score == 0.0  # only one of them has seen it


def test_moments_of_different_clusters_or_kinds_do_not_meet() -> None:
    other = portable("safe", codebook=fit_codebook(blobs(3, 5), 3, 0))
    for meet in (merge, differences):
        with pytest.raises(ValueError, match="of different clusters"):
            meet(portable("safe"), other)
        with pytest.raises(ValueError, match="two kinds"):
            meet(portable("safe"), portable("paper"))


def test_a_run_with_another_encoder_or_kind_of_moments_cannot_begin_with_them() -> None:
    start = WarmStart(CODEBOOK, portable("safe"))
    start.refuse_misfit(MomentsConfig(estimator=BlendConfig()), "mini-1")
    with pytest.raises(ValueError, match=r"mini-1.*mini-2"):
        start.refuse_misfit(MomentsConfig(estimator=BlendConfig()), "mini-2")
    with pytest.raises(ValueError, match="kind decayed"):
        start.refuse_misfit(MomentsConfig(estimator=BlendConfig(variant="paper")), "mini-1")
    with pytest.raises(ValueError, match=r"by embedding.*by is source"):
        start.refuse_misfit(MomentsConfig(estimator=BlendConfig(), clusters=ClusterConfig(by="source")), "")


async def test_a_run_begins_with_anothers_moments_and_makes_room_for_new_prompts(tmp_path: Path) -> None:
    config = MomentsConfig(estimator=BlendConfig(), clusters=ClusterConfig(count=4))
    old = MomentsService(config, tmp_path / "old", seed=0)
    embeddings = np.eye(8, dtype=np.float32)
    prompts = PromptSet(tuple(f"prompt{n}" for n in range(8)), ("sums",) * 8, ("",) * 8, embeddings)

    def some(first: int, last: int) -> PromptSet:
        return PromptSet(
            prompts.prompt_ids[first:last], ("sums",) * (last - first), ("",) * (last - first), embeddings[first:last]
        )

    await old.fit_clusters(some(0, 4))
    for step in range(3):
        await train_on(old, step, group(step, (1.0, 0.0), prompt_id="prompt0"))
    (tmp_path / "snapshot").mkdir()
    await old.snapshot(tmp_path / "snapshot")
    exported = PortableMoments.from_snapshot(tmp_path / "snapshot", config, "tiny", "old")
    assert exported.about.steps == 3 and exported.about.counts.trained == 3
    start = WarmStart(exported.clusters, exported.discounted(0.5))
    new_directory = tmp_path / "new"
    start.place(new_directory)

    new = MomentsService(config, new_directory, seed=1)
    assert await new.fit_clusters(some(2, 6)) > 4
    before, after = (await old.cluster_stats()), (await new.cluster_stats())
    home = int(np.argmax(before["mass"]))
    assert after["mass"][home] == pytest.approx(0.5 * before["mass"][home])
    assert sum(after["seen"]) == 1
    # From the first batch on history speaks.
    await new.remember(some(0, 2))
    first = await train_on(new, 0, group(0, (0.0, 0.0)))
    assert first[0].cluster == home and first[0].weight > 0
    await train_on(new, 1, group(5, (1.0, 0.0)))
    expected = await new.cluster_stats()
    again = MomentsService(config, new_directory, seed=1)
    assert (await again.cluster_stats()) == expected
    for service in (old, new, again):
        await service.close()


async def test_a_run_can_begin_with_a_codebook_alone(tmp_path: Path) -> None:
    WarmStart(CODEBOOK).place(tmp_path)
    service = MomentsService(MomentsConfig(), tmp_path, seed=0)
    assert await service.fit_clusters(np.eye(3, dtype=np.float32)) == 3
    assert service._fitted().fingerprint == CODEBOOK.fingerprint
    await service.close()
