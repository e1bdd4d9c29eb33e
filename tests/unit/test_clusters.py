"""Clusters of every kind: how they are fitted, that assignments never change, how they grow, split and retire."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moments_service.clusters import Codebook, LabelClusters, PromptSet, choose_count, fit_codebook, load_clusters
from moments_service.clusters.adapting import adapted
from moments_service.clusters.codebook import CodebookDraft
from moments_service.clusters.encoder import EncoderNotFoundError, PromptEncoder
from moments_service.clusters.labels import fit_labels
from moments_service.clusters.versions import LOG_FILE, ClusterVersions
from moments_service.config import BlendConfig, ClusterConfig, MomentsConfig
from moments_service.messages.groups import ScoredGroup
from moments_service.messages.table import GroupTable
from moments_service.moments import CommittedRewards

pytestmark = pytest.mark.unit


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def blobs(clusters: int, each: int, seed: int = 0, dimension: int = 16, first: int = 0) -> np.ndarray:
    """Tight clusters around unit axes `first`, `first + 1`, …; rows of one cluster stand together."""
    generator = np.random.default_rng(seed)
    centers = np.eye(dimension)[first : first + clusters]
    return unit(np.repeat(centers, each, axis=0) + 0.05 * generator.normal(size=(clusters * each, dimension)))


def group(**changes: Any) -> ScoredGroup:
    fields: dict[str, Any] = {
        "group_id": "p:0:0:0", "prompt_id": "p", "source": "sums", "sequence": 0, "rewards": (1.0,), "errors": (None,),
        "lengths": (1,), "truncated": (False,), "policy_versions": (0, 0),
    }  # fmt: skip
    return ScoredGroup(**(fields | changes))


# --- fitting ---------------------------------------------------------------------------------------------------------


def test_separate_blobs_become_separate_clusters() -> None:
    codebook = fit_codebook(blobs(4, 50), clusters=4, seed=0)
    assigned = codebook.nearest(blobs(4, 50, seed=1)).reshape(4, 50)
    assert (assigned == assigned[:, :1]).all()
    assert len(set(assigned[:, 0])) == 4
    np.testing.assert_allclose(np.linalg.norm(codebook.centroids, axis=1), 1.0, rtol=1e-5)


def test_the_same_seed_gives_the_same_codebook_and_it_survives_the_disk(tmp_path: Path) -> None:
    points = blobs(4, 50)
    first, second = fit_codebook(points, 6, seed=3), fit_codebook(points, 6, seed=3)
    assert first.fingerprint == second.fingerprint
    first.save(tmp_path / "codebook.safetensors")
    again = load_clusters(tmp_path / "codebook.safetensors")
    assert isinstance(again, Codebook) and again.fingerprint == first.fingerprint
    assert again.novelty == first.novelty
    np.testing.assert_array_equal(again.known, first.known)


def test_there_are_never_more_clusters_than_distinct_prompts() -> None:
    assert len(fit_codebook(np.repeat(np.eye(3, dtype=np.float32), 5, axis=0), clusters=16, seed=0)) == 3


@pytest.mark.parametrize("true", [1, 2, 4, 8, 12, 16, 32])
def test_the_number_of_clusters_is_found_in_the_data(true: int) -> None:
    points = blobs(true, max(512 // true, 32), dimension=64)
    assert true <= choose_count(points, seed=0).count <= 2 * true


def test_noise_has_one_cluster_and_a_handful_of_prompts_too() -> None:
    noise = unit(np.random.default_rng(0).normal(size=(600, 64)))
    assert choose_count(noise, seed=0).count == 1
    assert choose_count(blobs(3, 1), seed=0).count == 1


def test_an_unlucky_fit_in_between_does_not_make_the_next_doubling_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    from moments_service.clusters import fitting

    points = blobs(8, 64, dimension=32)
    honest = choose_count(points, seed=0)
    spoiled = 2 * honest.count
    plain = fitting.spherical_kmeans

    def unlucky(points: np.ndarray, clusters: int, *rest: Any) -> np.ndarray:
        # As bad as half as many centroids.
        return plain(points, clusters // 4 if clusters == spoiled else clusters, *rest)

    monkeypatch.setattr(fitting, "spherical_kmeans", unlucky)
    assert choose_count(points, seed=0).count == honest.count


def test_there_are_at_least_eight_prompts_a_cluster_on_average() -> None:
    assert max(choose_count(blobs(16, 4), seed=0).cosines) <= 64 // 8


# --- assignment ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clusters", [64, 1500])
def test_an_assignment_depends_on_nothing_but_the_version(clusters: int, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    codebook = Codebook(unit(generator.normal(size=(clusters, 48))))
    assert bool(len(codebook.cells)) == (clusters > 1024)
    points = unit(generator.normal(size=(700, 48)))
    expected = codebook.nearest(points)
    codebook.save(tmp_path / "codebook.safetensors")
    again = Codebook.load(tmp_path / "codebook.safetensors")
    order = generator.permutation(len(points))
    for size in (1, 7, 32, 700):
        parts = [again.nearest(points[order[start : start + size]]) for start in range(0, len(points), size)]
        np.testing.assert_array_equal(np.concatenate(parts), expected[order])


def test_the_nearest_centroid_is_found_by_whole_numbers() -> None:
    generator = np.random.default_rng(1)
    centroids, points = unit(generator.normal(size=(300, 32))), unit(generator.normal(size=(500, 32)))
    on_grid = [np.rint(vectors.astype(np.float64) * 2000).astype(np.int64) for vectors in (points, centroids)]
    np.testing.assert_array_equal(Codebook(centroids).nearest(points), (on_grid[0] @ on_grid[1].T).argmax(axis=1))


def test_the_cells_of_a_large_codebook_lose_next_to_nothing() -> None:
    generator = np.random.default_rng(2)
    topics = unit(generator.normal(size=(60, 32)))
    centroids = unit(topics[generator.integers(60, size=3000)] + 0.1 * generator.normal(size=(3000, 32)))
    points = unit(centroids[generator.integers(3000, size=2000)] + 0.05 * generator.normal(size=(2000, 32)))
    codebook = Codebook(centroids)
    best = (points @ centroids.T).max(axis=1)
    found = codebook.cosines(points, codebook.nearest(points))
    assert (best - found < 1e-3).mean() > 0.99


def test_prompts_are_looked_up_and_unknown_ones_refused_until_told() -> None:
    points = blobs(4, 20)
    prompts = PromptSet(tuple(map(str, range(80))), ("s",) * 80, ("",) * 80, points)
    codebook = fit_codebook(prompts, 4, seed=0)
    expected = codebook.remember(prompts)
    known = [group(prompt_id=str(row)) for row in range(80)]
    np.testing.assert_array_equal(codebook.assign(GroupTable.of(known)), expected)
    mixed = GroupTable.of([known[5], group(prompt_id="new"), known[7]])
    with pytest.raises(ValueError, match=r"its prompt new is unknown; call remember\(PromptSet\)"):
        codebook.assign(mixed)
    codebook.remember(PromptSet(("new",), ("s",), ("",), points[70:71]))
    np.testing.assert_array_equal(codebook.assign(mixed), expected[[5, 70, 7]])


def test_a_damaged_codebook_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "codebook.safetensors"
    fit_codebook(blobs(4, 10), 4, seed=0).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:])
    damaged = [path]
    (tmp_path / "text").write_text("not a codebook")
    damaged.append(tmp_path / "text")
    for each in damaged:
        with pytest.raises(ValueError, match=r"damaged|cannot be read"):
            load_clusters(each)


# --- life ------------------------------------------------------------------------------------------------------------


def test_unseen_prompts_get_clusters_and_old_centroids_stay_bit_for_bit() -> None:
    codebook = fit_codebook(blobs(4, 50), 4, seed=0)
    old = codebook.nearest(blobs(4, 50))
    new = blobs(3, 50, first=8)
    change = codebook.grown(PromptSet.of_embeddings(np.concatenate([blobs(4, 50), new])))
    assert change is not None and isinstance(change.clusters, Codebook)
    grown = change.clusters
    assert (len(grown), grown.version, grown.parent) == (8, 1, codebook.fingerprint)
    assert grown.centroids[:4].tobytes() == codebook.centroids.tobytes()
    np.testing.assert_array_equal(grown.nearest(blobs(4, 50)), old)
    assert set(grown.nearest(new)) <= set(range(4, 8))
    assert change.transfers == ()
    # The prompts it has grown for, the outermost of the first fit included, are no news any more.
    assert grown.grown(PromptSet.of_embeddings(np.concatenate([blobs(4, 50), new]))) is None


def test_the_prompts_of_the_fit_never_grow_a_codebook() -> None:
    prompts = PromptSet.of_embeddings(blobs(4, 50))
    assert fit_codebook(prompts, 4, seed=0).grown(prompts) is None


def test_a_split_puts_two_children_in_the_place_of_their_parent() -> None:
    points = np.concatenate([blobs(2, 30), blobs(1, 10, first=5), blobs(1, 20, first=6)])
    codebook = Codebook(unit(np.array([np.eye(16)[0], np.eye(16)[1], np.eye(16)[5] + np.eye(16)[6]])))
    assigned = codebook.nearest(points)
    draft = CodebookDraft(codebook)
    assert draft.split(2, points[assigned == 2], smallest=8)
    change = draft.finish()
    assert change is not None
    after = change.clusters.assign_prompts(PromptSet.of_embeddings(points))
    np.testing.assert_array_equal(after[assigned < 2], assigned[assigned < 2])
    assert sorted(np.bincount(after, minlength=5)[2:].tolist()) == [0, 10, 20]
    assert [move.source for move in change.transfers] == [2, 2]
    first = change.transfers[0]
    assert first.share == pytest.approx(np.bincount(after)[first.target] / 30)
    # Groups still under way for the parent count for the larger child.
    assert np.bincount(after)[change.clusters.heirs[2]] == 20


def test_what_does_not_fall_in_two_large_enough_parts_is_not_split() -> None:
    codebook = fit_codebook(blobs(2, 30), 2, seed=0)
    draft = CodebookDraft(codebook)
    assert not draft.split(0, np.repeat(blobs(1, 1), 40, axis=0))
    assert not draft.split(0, np.concatenate([blobs(1, 30), blobs(1, 3, first=9)]), smallest=8)
    assert draft.finish() is None


def test_a_retired_cluster_is_never_assigned_again_and_its_heirs_follow(tmp_path: Path) -> None:
    centroids = unit(np.array([[1, 0, 0], [0.9, 0.3, 0], [0.8, 0.5, 0], [0, 0, 1]], dtype=np.float64))
    draft = CodebookDraft(Codebook(centroids))
    assert draft.retire(0) == 1
    assert draft.retire(1) == 2
    change = draft.finish()
    assert change is not None
    change.clusters.save(tmp_path / "next.safetensors")
    after = load_clusters(tmp_path / "next.safetensors")
    assert after.heirs.tolist() == [2, 2, 2, 3]
    assert set(after.assign_prompts(PromptSet.of_embeddings(centroids))) == {2, 3}
    with pytest.raises(ValueError, match="retired"):
        draft.retire(0)


counts = st.lists(
    st.tuples(st.integers(0, 4), st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=5)), max_size=8
)
moves = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6), st.floats(0.01, 1.0)), max_size=6)


@settings(max_examples=60, deadline=None)
@given(counts, moves, st.sampled_from(["safe", "paper"]))
def test_a_change_loses_nothing(batch: list, transfers: list, variant: str) -> None:
    moments = MomentsConfig(estimator=BlendConfig(variant=variant)).create_moments(5)  # type: ignore[arg-type]
    for step, (cluster, rewards) in enumerate(batch):
        moments.fold(CommittedRewards(np.array([cluster]), np.array([rewards]), ("p",), policy_version=step))
    before = moments.state()
    now = before.get("policy_version", 0)
    fade = 0.95 ** (now - before["version"]) if variant == "safe" else None
    moments.grow(7)
    for source, target, share in transfers:
        if source != target:
            moments.transfer(source, target, share)
    after = moments.state()
    if fade is None:
        assert after["mass"].sum() == pytest.approx(before["mass"].sum())
        for name in ("mean", "second_moment"):
            weighed = [(state[name] * state["mass"]).sum() for state in (before, after)]
            assert weighed[1] == pytest.approx(weighed[0], abs=1e-9)
        return
    late = 0.95 ** (now - after["version"])
    for name in ("count", "total", "squares", "groups", "group_means", "within", "squared_weights"):
        assert (late * after[name]).sum() == pytest.approx((fade * before[name]).sum(), abs=1e-9)


def test_clusters_of_unlike_prompts_split_and_dead_ones_retire() -> None:
    easy, hard = blobs(1, 20), unit(blobs(1, 20, first=1) + 0.9 * np.eye(16, dtype=np.float32)[0])
    prompts = PromptSet.of_embeddings(np.concatenate([easy, hard, blobs(1, 20, first=5)]))
    codebook = Codebook(unit(np.array([np.eye(16)[0] + 0.3 * np.eye(16)[1], np.eye(16)[5], np.eye(16)[9]])))
    assert codebook.assign_prompts(prompts).tolist() == [0] * 40 + [1] * 20
    moments = MomentsConfig(estimator=BlendConfig()).create_moments(3)
    assert (
        adapted(codebook, MomentsConfig(estimator=BlendConfig()).create_moments(3), prompts) is not None
    )  # 2 has neither prompts nor mass
    rewards = np.array([[1.0] * 4] * 20 + [[0.0] * 4] * 20 + [[0.0] * 4] * 20)
    moments.fold(CommittedRewards(np.array([0] * 40 + [1] * 20), rewards, ("p",) * 60, 1))
    change = adapted(codebook, moments, prompts)
    assert change is not None
    after = change.clusters
    assert len(after) == 5 and after.heirs[2] != 2 and after.heirs[0] in (3, 4) and after.heirs[1] == 1
    assert sorted(np.bincount(after.assign_prompts(prompts), minlength=5).tolist()) == [0, 0, 20, 20, 20]
    moments.grow(5)
    for move in change.transfers:
        moments.transfer(move.source, move.target, move.share)
    history = moments.history(np.arange(5))
    np.testing.assert_allclose(history.mass[[0, 3, 4]], [0, 80, 80], atol=1e-9)
    assert not history.seen[0]


# --- labels ----------------------------------------------------------------------------------------------------------

PROMPTS = PromptSet(("a", "b", "c"), ("sums", "gcd", "sums"), ("1", "2", "2"))


@pytest.mark.parametrize(("by", "expected"), [("source", [0, 1, 0]), ("difficulty", [0, 1, 1]), ("prompt", [0, 1, 2])])
def test_labels_make_clusters_without_embeddings(by: str, expected: list[int], tmp_path: Path) -> None:
    clusters = fit_labels(PROMPTS, by)
    clusters.save(tmp_path / "labels.safetensors")
    again = load_clusters(tmp_path / "labels.safetensors")
    assert again.fingerprint == clusters.fingerprint and again.by == by
    groups = [
        group(prompt_id=p, source=s, difficulty=d)
        for p, s, d in zip(PROMPTS.prompt_ids, PROMPTS.sources, PROMPTS.difficulties, strict=True)
    ]
    assert again.assign(GroupTable.of(groups)).tolist() == again.assign_prompts(PROMPTS).tolist() == expected


def test_a_table_of_labels_grows_and_keeps_its_ids() -> None:
    clusters = fit_labels(PROMPTS, "source")
    assert clusters.grown(PROMPTS) is None
    change = clusters.grown(PromptSet(("d", "e"), ("lcm", "gcd"), ("", "")))
    assert change is not None and isinstance(change.clusters, LabelClusters)
    assert change.clusters.labels == ("sums", "gcd", "lcm")
    assert change.clusters.parent == clusters.fingerprint
    with pytest.raises(ValueError, match="no cluster for source 'lcm'"):
        clusters.assign(GroupTable.of([group(source="lcm")]))


def test_a_prompt_without_a_difficulty_is_refused() -> None:
    with pytest.raises(ValueError, match="has no difficulty"):
        fit_labels(PromptSet(("a",), ("sums",), ("",)), "difficulty")


# --- versions --------------------------------------------------------------------------------------------------------


def test_every_version_is_kept_and_half_a_line_never_happened(tmp_path: Path) -> None:
    versions = ClusterVersions(tmp_path, incarnation=0)
    first = fit_codebook(blobs(4, 20), 4, seed=0)
    change = first.grown(PromptSet.of_embeddings(blobs(2, 20, first=7)))
    assert change is not None
    versions.record(first, -1)
    versions.record(change.clusters, 5, change.transfers)
    (tmp_path / LOG_FILE).write_bytes((tmp_path / LOG_FILE).read_bytes() + b'{"incarnation": 0, "aft')
    resumed = ClusterVersions(tmp_path, incarnation=1)
    assert resumed.records() == []
    resumed.record(first, 3)
    assert [(r.incarnation, r.after_step, r.version) for r in resumed.all_records()] == [
        (0, -1, "codebook-000.safetensors"),
        (0, 5, "codebook-001.safetensors"),
        (1, 3, "codebook-000.safetensors"),
    ]
    assert resumed.last_incarnation() == 1
    assert resumed.in_force() == tmp_path / "codebook-000.safetensors"
    assert load_clusters(tmp_path / "codebook-001.safetensors").fingerprint == change.clusters.fingerprint


# --- encoder ---------------------------------------------------------------------------------------------------------


def test_minilm_puts_alike_questions_together_and_embeds_each_text_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = PromptEncoder(ClusterConfig(cache_dir=str(tmp_path)))
    sums = [f"What is {a} + {b}?" for a, b in ((2, 3), (9, 4), (7, 7))]
    legs = [f"How many legs do {n} dogs have?" for n in (1, 2, 3)]
    embedded = encoder.encode([*sums, *legs, sums[0]])
    np.testing.assert_allclose(np.linalg.norm(embedded, axis=1), 1.0, rtol=1e-5)
    np.testing.assert_array_equal(embedded[0], embedded[-1])
    clusters = fit_codebook(embedded, 2, seed=0).nearest(embedded)
    assert len(set(clusters[:3])) == len(set(clusters[3:6])) == 1 and clusters[0] != clusters[3]

    def refuse(texts: list[str]) -> np.ndarray:
        raise AssertionError(f"embedded again: {texts}")

    monkeypatch.setattr(encoder, "_embed", refuse)
    np.testing.assert_array_equal(encoder.encode([*sums, *legs, sums[0]]), embedded)


def test_an_absent_encoder_is_named(tmp_path: Path) -> None:
    with pytest.raises(EncoderNotFoundError, match="not a sentence-transformers directory"):
        PromptEncoder(ClusterConfig(encoder=str(tmp_path)))
