"""What every advantage estimator keeps to, whatever its formula."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save

from moments_service.config import BlendConfig, MomentsConfig
from moments_service.estimators import ESTIMATORS, Advantages, RememberingEstimator, RewardBatch
from moments_service.messages.counts import Counts
from moments_service.messages.groups import PolicyMove
from moments_service.moments import CommittedRewards
from moments_service.state import MomentsState, SnapshotOrigin

pytestmark = [pytest.mark.contract, pytest.mark.filterwarnings("error::RuntimeWarning")]

CLUSTERS = 4
CONFIGS: dict[str, MomentsConfig] = {name: MomentsConfig.model_validate({"estimator": name}) for name in ESTIMATORS} | {
    f"bv_blend-{blend.variant}-{blend.confidence}": MomentsConfig(estimator=blend)
    for blend in (
        BlendConfig(variant="paper"),
        BlendConfig(variant="eb"),
        BlendConfig(variant="precision", kl_half_life=0.01),
        BlendConfig(variant="safe", confidence="rational"),
        BlendConfig(variant="safe", confidence="linear", prior=(0.0, 0.0)),
    )
}
CONFIGS |= {"pass_at_k-1": MomentsConfig.model_validate({"estimator": {"kind": "pass_at_k", "k": 1}})}
REMEMBERING = ("hierarchical", "spo", "dbb", "ebpo", "spo_pp", "kae", "v05", "ha_dw")
EACH_ITS_OWN = ("krpo", "ha_dw", "rl_zvp")
"""Estimators under which completions of a group have baselines or scales of their own."""
LARGEST_EPSILON = 1e-4

every_estimator = pytest.mark.parametrize("name", CONFIGS)
remembering = pytest.mark.parametrize("name", REMEMBERING)
some_examples = settings(max_examples=25, deadline=None)

reward = st.one_of(
    st.none(), st.sampled_from([0.0, 1.0]), st.integers(-8, 8).map(lambda n: n / 4), st.floats(-3, 3, width=16)
)
group = st.tuples(
    st.lists(st.tuples(reward, st.integers(0, 50)), min_size=1, max_size=8),
    st.sampled_from("abcdé"),
    st.integers(0, CLUSTERS - 1),
)
batches = st.lists(group, min_size=1, max_size=6)
"""Groups of (reward, length), with a prompt and a cluster each."""


@pytest.fixture(autouse=True)
def no_numeric_accidents() -> Iterator[None]:
    """Overflow, 0 / 0 and the like are errors. exp(-large) may well underflow to the 0 that it means."""
    with np.errstate(all="raise", under="ignore"):
        yield


def table(rows: list[list[float | None]], missing: float, extra: int = 0) -> np.ndarray:
    width = max(map(len, rows)) + extra
    return np.array([[missing if x is None else x for x in row] + [missing] * (width - len(row)) for row in rows])


def clusters_of(groups: list) -> np.ndarray:
    return np.array([cluster for _, _, cluster in groups])


def batch_for(state: MomentsState, groups: list, extra_columns: int = 0) -> RewardBatch:
    lengths = [[n for _, n in row] for row, _, _ in groups]
    return RewardBatch(
        rewards=table([[r for r, _ in row] for row, _, _ in groups], np.nan, extra_columns),
        lengths=table(lengths, 0.0, extra_columns),
        prompts=tuple(prompt for _, prompt, _ in groups),
        history=state.history(clusters_of(groups)),
        clusters=clusters_of(groups),
        born=np.array([max(state.last_step - row[0][1] % 2, 0) for row, _, _ in groups], dtype=np.int64),
        surprisals=table([[n / 20 for n in row] for row in lengths], np.nan, extra_columns),
        sizes=np.array([len(row) for row in lengths], dtype=np.int64),
    )


def fold(state: MomentsState, groups: list, move: PolicyMove | None = None) -> None:
    step = state.last_step + 1
    batch = batch_for(state, groups)
    committed = CommittedRewards(
        batch.clusters,
        batch.rewards,
        batch.prompts,
        step + 1,
        move,
        born=batch.born,
        surprisals=batch.surprisals,
    )
    state.fold(step, committed)


def fresh(name: str) -> MomentsState:
    return MomentsState(CONFIGS[name], CLUSTERS)


def random_groups(seed: int, count: int = 6) -> list:
    """Binary rewards, a few missing, prompts that come back; no group without any reward."""
    generator = np.random.default_rng(seed)
    return [
        (
            [(1.0, 3), (0.0, 5)] + [(None if generator.random() < 0.1 else float(generator.random() < 0.4), 4)] * 4,
            "abcdef"[m % 6],
            int(generator.integers(CLUSTERS)),
        )
        for m in range(count)
    ]


def experienced(name: str) -> MomentsState:
    """A state that has seen three batches, one with an unmeasured move."""
    state = fresh(name)
    for seed, move in enumerate((PolicyMove(0.001, 0.01), None, PolicyMove(0.002, 0.02))):
        fold(state, random_groups(seed), move)
    return state


def assert_same(one: Advantages, other: Advantages, **tolerance: float) -> None:
    # A scale near 0 magnifies the rounding of a mean, by one over the epsilon at most.
    tolerance = tolerance or {"rtol": 1e-7, "atol": 1e-6}
    for field in ("values", "baseline", "scale", "weight"):
        np.testing.assert_allclose(getattr(one, field), getattr(other, field), err_msg=field, **tolerance)


@every_estimator
@some_examples
@given(groups=batches, seen=st.booleans())
def test_advantages_are_finite_where_there_is_a_reward_and_nan_elsewhere(name: str, groups: list, seen: bool) -> None:
    state = experienced(name) if seen else fresh(name)
    batch = batch_for(state, groups)
    found = state.estimate(batch)
    assert found.values.shape == batch.rewards.shape
    np.testing.assert_array_equal(np.isnan(found.values), np.isnan(batch.rewards))
    assert np.isfinite(found.values[~np.isnan(batch.rewards)]).all()
    for array in (found.baseline, found.scale, found.weight):
        assert array.shape == (len(groups),) and array.dtype == np.float64 and np.isfinite(array).all()
    assert (found.scale >= 0).all() and ((found.weight >= 0) & (found.weight <= 1)).all()
    assert found.carries_signal().shape == (len(groups),)


@every_estimator
def test_a_batch_without_any_reward_is_no_accident(name: str) -> None:
    """The service asks so for the weight of every cluster."""
    for state in (fresh(name), experienced(name)):
        nothing = np.full((CLUSTERS, 1), np.nan)
        batch = RewardBatch(
            nothing, np.zeros_like(nothing), ("",) * CLUSTERS, state.history(np.arange(CLUSTERS)), np.arange(CLUSTERS)
        )
        assert np.isnan(state.estimate(batch).values).all()
        assert np.isfinite(state.estimate(batch).weight).all()


@every_estimator
@some_examples
@given(groups=batches)
def test_asking_changes_nothing(name: str, groups: list) -> None:
    state = experienced(name)
    before = state.arrays()
    batch = batch_for(state, groups)
    rewards = batch.rewards.copy()
    assert_same(state.estimate(batch), state.estimate(batch), rtol=0, atol=0)
    np.testing.assert_array_equal(batch.rewards, rewards)
    after = state.arrays()
    assert before.keys() == after.keys()
    for key, array in before.items():
        np.testing.assert_array_equal(after[key], array)


def rewards_as_seen(name: str, rewards: np.ndarray) -> np.ndarray:
    """What baseline and scale are about: some estimators clip rewards or make them binary, and say so."""
    kind = CONFIGS[name].estimator.kind
    if kind in ("maxrl", "bnpo"):
        return np.clip(rewards, 0.0, 1.0)
    if kind in ("pass_at_k", "w_reinforce", "bbg"):
        return np.where(np.isnan(rewards), np.nan, (rewards >= 1.0).astype(float))
    return rewards


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in EACH_ITS_OWN])
@some_examples
@given(groups=batches, seen=st.booleans())
def test_baseline_and_scale_explain_the_advantages(name: str, groups: list, seen: bool) -> None:
    state = experienced(name) if seen else fresh(name)
    batch = batch_for(state, groups)
    found = state.estimate(batch)
    explained = ~np.isnan(found.values)
    if CONFIGS[name].estimator.kind == "bv_blend" and CONFIGS[name].blend.variant != "paper":
        explained &= np.abs(found.values) < CONFIGS[name].blend.max_advantage
    if CONFIGS[name].estimator.kind == "pass_at_k":
        # Where pass@k is certain nothing is to be learned, though rewards may differ.
        explained &= found.values != 0
    residual = rewards_as_seen(name, batch.rewards) - found.baseline[:, None]
    gap = np.abs(found.values * found.scale[:, None] - residual)[explained]
    assert (gap <= LARGEST_EPSILON * np.abs(found.values[explained]) + 1e-9).all()


@every_estimator
@some_examples
@given(groups=batches, random=st.randoms())
def test_the_order_of_groups_does_not_matter(name: str, groups: list, random: object) -> None:
    state = experienced(name)
    order = list(range(len(groups)))
    random.shuffle(order)  # type: ignore[attr-defined]
    straight = state.estimate(batch_for(state, groups))
    mixed = state.estimate(batch_for(state, [groups[m] for m in order]))
    picked = Advantages(straight.values[order], straight.baseline[order], straight.scale[order], straight.weight[order])
    width = mixed.values.shape[1]
    assert_same(Advantages(picked.values[:, :width], picked.baseline, picked.scale, picked.weight), mixed)


@every_estimator
@some_examples
@given(groups=batches, extra=st.integers(1, 9))
def test_padding_changes_nothing(name: str, groups: list, extra: int) -> None:
    state = experienced(name)
    plain = state.estimate(batch_for(state, groups))
    wide = state.estimate(batch_for(state, groups, extra))
    width = plain.values.shape[1]
    assert np.isnan(wide.values[:, width:]).all()
    assert_same(plain, Advantages(wide.values[:, :width], wide.baseline, wide.scale, wide.weight))


@every_estimator
def test_a_saved_state_goes_on_as_if_nothing_had_happened(name: str, tmp_path: Path) -> None:
    state, other = experienced(name), fresh(name)
    state.save(
        tmp_path, SnapshotOrigin("codebook", CONFIGS[name].estimator.kind, state.last_step, 0, Counts(groups=18))
    )
    origin = other.load(tmp_path)
    assert (origin.estimator, origin.last_step, origin.counts.groups) == (CONFIGS[name].estimator.kind, 2, 18)
    for seed in (7, 8):
        for one in (state, other):
            fold(one, random_groups(seed), PolicyMove(0.001, 0.03))
        batch = random_groups(9)
        assert_same(state.estimate(batch_for(state, batch)), other.estimate(batch_for(other, batch)), rtol=0, atol=0)


# --- those with a memory ----------------------------------------------------------------------------------------------


def memory(state: MomentsState) -> RememberingEstimator:
    assert isinstance(state.estimator, RememberingEstimator)
    return state.estimator


def test_the_estimators_with_a_memory_are_these() -> None:
    found = {name for name in CONFIGS if isinstance(fresh(name).estimator, RememberingEstimator)}
    assert found == set(REMEMBERING)


@remembering
@some_examples
@given(past=st.lists(batches, max_size=3), groups=batches)
def test_a_memory_survives_as_bytes(name: str, past: list, groups: list) -> None:
    state, other = fresh(name), experienced(name)
    for batch in past:
        fold(state, batch, PolicyMove(0.001, 0.01))
    memory(other).load_state(load(save(memory(state).state())))
    batch = batch_for(state, groups)
    assert_same(memory(state)(batch), memory(other)(batch), rtol=0, atol=0)
    for key, array in memory(state).state().items():
        np.testing.assert_array_equal(memory(other).state()[key], array)


@remembering
def test_a_state_taken_out_stays_as_it_was(name: str) -> None:
    state = experienced(name)
    taken = memory(state).state()
    copies = {key: array.copy() for key, array in taken.items()}
    memory(state).load_state(taken)
    fold(state, random_groups(5))
    for key, array in taken.items():
        np.testing.assert_array_equal(array, copies[key])


@remembering
@some_examples
@given(past=st.lists(batches, min_size=1, max_size=3), groups=batches, random=st.randoms())
def test_what_is_folded_in_does_not_depend_on_the_order_of_groups(
    name: str, past: list, groups: list, random: object
) -> None:
    straight, mixed = fresh(name), fresh(name)
    for batch in past:
        shuffled = list(batch)
        random.shuffle(shuffled)  # type: ignore[attr-defined]
        fold(straight, batch, PolicyMove(0.001, 0.01))
        fold(mixed, shuffled, PolicyMove(0.001, 0.01))
    for key, array in memory(straight).state().items():
        np.testing.assert_allclose(memory(mixed).state()[key], array, rtol=1e-9, atol=1e-9)
    batch = batch_for(straight, groups)
    np.testing.assert_allclose(memory(straight)(batch).baseline, memory(mixed)(batch).baseline, atol=1e-6)


@pytest.mark.parametrize("name", [*REMEMBERING, "bv_blend"])
def test_a_fold_changes_what_comes_next(name: str) -> None:
    state = experienced(name)
    groups = random_groups(11)
    before = state.estimate(batch_for(state, groups))
    fold(state, [([(1.0, 1)] * 8, prompt, cluster) for _, prompt, cluster in groups])
    # The anchor of ha_dw moves by its own deviation, which soon is small.
    least = 1e-4 if name == "ha_dw" else 1e-3
    assert np.nanmax(np.abs(state.estimate(batch_for(state, groups)).values - before.values)) > least


@remembering
def test_a_group_without_rewards_leaves_no_trace_of_its_own(name: str) -> None:
    state = fresh(name)
    fold(state, [([(None, 1)] * 2, "a", 0)], PolicyMove(0.0, 0.0))
    for key, array in memory(fresh(name)).state().items():
        np.testing.assert_array_equal(memory(state).state()[key], array)


@remembering
def test_the_memory_of_another_estimator_is_refused(name: str) -> None:
    stranger = memory(fresh("dbb" if name != "dbb" else "ebpo")).state()
    with pytest.raises(ValueError, match="another estimator"):
        memory(fresh(name)).load_state(stranger)


@every_estimator
def test_the_learner_measures_the_policy_s_move_where_history_fades_by_it(name: str) -> None:
    given = []
    for move in (PolicyMove(0.001, 0.01), PolicyMove(0.1, 1.0)):
        state = fresh(name)
        for seed in range(3):
            fold(state, random_groups(seed), move)
        given.append(state.estimate(batch_for(state, random_groups(3))).values)
    assert np.array_equal(*given, equal_nan=True) is not CONFIGS[name].estimator.fades_by_move
