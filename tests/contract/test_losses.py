"""What every policy loss keeps to, whatever its formula, and every aggregation with it."""

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from deploy.config.recipe import ConfigError, load_recipe
from learner.aggregations import AggregationKind, AnyAggregation, Totals
from learner.losses import AnyLoss, LossInputs, LossKind
from tests.conftest import ROOT
from tests.contract.loss_oracles import ORACLES, aggregation_weights, whole_sequence

pytestmark = pytest.mark.contract

LOSS: TypeAdapter = TypeAdapter(AnyLoss)
AGGREGATION: TypeAdapter = TypeAdapter(AnyAggregation)
KINDS = [kind.model_fields["kind"].default for kind in get_args(LossKind)]
CONFIGS: dict[str, Any] = {kind: LOSS.validate_python(kind) for kind in KINDS} | {
    f"{options['kind']}-{number}": LOSS.validate_python(options)
    for number, options in enumerate(
        [
            {"kind": "ppo_clip", "clip_low": 0.1, "clip_high": 0.5},
            {"kind": "ppo_clip", "dual_clip": 1.3},
            {"kind": "gspo", "clip_low": 0.1, "clip_high": 0.2},
            {"kind": "luspo", "clip_low": 0.1, "clip_high": 0.2},
            {"kind": "cispo", "clip_low": 0.2, "clip_high": 0.28},
            {"kind": "gmpo", "clip_low": 0.1, "clip_high": 0.2},
            {"kind": "sapo", "temperature_positive": 2.0, "temperature_negative": 0.5},
            {"kind": "dispo", "positive_low": 0.5, "positive_high": 0.1, "negative_low": 0.3, "negative_high": 0.4},
            {"kind": "r2vpo", "penalty": 2.0},
            {
                "kind": "vespo",
                "power_positive": 1.0,
                "decay_positive": 0.5,
                "power_negative": 0.0,
                "decay_negative": 1.0,
            },
        ]
    )
}
AGGREGATIONS: dict[str, Any] = {
    kind.model_fields["kind"].default: AGGREGATION.validate_python(
        {"kind": kind.model_fields["kind"].default} | ({"length": 9} if "length" in kind.model_fields else {})
    )
    for kind in get_args(AggregationKind)
}
COLD_START = ROOT / "deploy" / "recipes" / "cold_start.yaml"
SEQUENCE_LEVEL = ("gspo", "luspo", "gmpo")
LEFT_WITHOUT_ADVANTAGE = ("r2vpo",)
"""Losses that hold the policy also where nothing is to be learned."""

every_loss = pytest.mark.parametrize("name", CONFIGS)
every_aggregation = pytest.mark.parametrize("how", AGGREGATIONS)
some_examples = settings(max_examples=15, deadline=None)


def drawn(seed: int, lengths: tuple[int, ...] = (5, 1, 7, 2, 4), spread: float = 0.3) -> LossInputs:
    """Tokens of some samples in float64; odd samples lie in group 1, even ones in group 0."""
    rng = np.random.default_rng(seed)
    sample = np.repeat(np.arange(len(lengths)), lengths)
    size = len(sample)
    old = -rng.exponential(size=size)
    return LossInputs(
        logprobs=torch.from_numpy(old + spread * rng.normal(size=size)),
        entropy=torch.zeros(size, dtype=torch.float64),
        old=torch.from_numpy(old),
        reference=None,
        rollout=torch.from_numpy(old),
        advantages=torch.from_numpy(rng.normal(size=len(lengths))[sample]),
        mask=torch.ones(size, dtype=torch.bool),
        lag=torch.zeros(size, dtype=torch.int64),
        sample=torch.from_numpy(sample),
        group=torch.from_numpy(sample % 2),
        samples=len(lengths),
        groups=min(2, len(lengths)),
    )


def picked(inputs: LossInputs, chosen: np.ndarray) -> LossInputs:
    """The tokens at `chosen`, in that order, with samples and groups counted anew, as a microbatch has them."""
    rows = {
        name: getattr(inputs, name)[chosen]
        for name in ("logprobs", "entropy", "old", "rollout", "advantages", "mask", "lag")
    }
    samples, sample = np.unique(inputs.sample[chosen].numpy(), return_inverse=True)
    groups, group = np.unique(inputs.group[chosen].numpy(), return_inverse=True)
    return replace(
        inputs,
        **rows,
        sample=torch.from_numpy(sample),
        group=torch.from_numpy(group),
        samples=len(samples),
        groups=len(groups),
        head_move=None if inputs.head_move is None else inputs.head_move[:, chosen],
    )


def losses_of(name: str, inputs: LossInputs, logprobs: torch.Tensor) -> torch.Tensor:
    found, _ = CONFIGS[name](replace(inputs, logprobs=logprobs))
    return found


def gradient_of(name: str, inputs: LossInputs, weights: torch.Tensor) -> np.ndarray:
    logprobs = inputs.logprobs.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((weights * losses_of(name, inputs, logprobs)).sum(), logprobs)
    return gradient.numpy()


def oracle(name: str, inputs: LossInputs, x: np.ndarray) -> np.ndarray:
    loss = CONFIGS[name]
    arguments = (inputs.logprobs.numpy(), inputs.old.numpy(), inputs.advantages.numpy(), inputs.sample.numpy())
    return ORACLES[loss.kind](x, *arguments, loss.model_dump())


def central_differences(function: Callable[[np.ndarray], float], x: np.ndarray, h: float = 1e-6) -> np.ndarray:
    gradient = np.zeros_like(x)
    for i in range(x.size):
        step = np.zeros_like(x)
        step[i] = h
        gradient[i] = (function(x + step) - function(x - step)) / (2 * h)
    return gradient


def test_every_loss_and_every_aggregation_of_the_registry_has_an_oracle() -> None:
    assert set(ORACLES) == set(KINDS)
    assert {options.kind for options in CONFIGS.values()} == set(KINDS)


@every_loss
@pytest.mark.parametrize("spread", [0.002, 0.3, 1.5, 30.0])
def test_it_is_what_its_formula_says(name: str, spread: float) -> None:
    """Near 1 sample-level clips work, far from it all limits do."""
    for seed in range(3):
        inputs = drawn(seed, spread=spread)
        found = losses_of(name, inputs, inputs.logprobs)
        assert found.shape == inputs.logprobs.shape
        np.testing.assert_allclose(found.numpy(), oracle(name, inputs, inputs.logprobs.numpy()), rtol=1e-9, atol=1e-12)


@every_loss
@pytest.mark.parametrize("spread", [0.002, 0.3, 1.5])
def test_its_gradient_is_that_of_differences(name: str, spread: float) -> None:
    inputs = drawn(11, spread=spread)
    weights = np.random.default_rng(0).random(len(inputs.old))
    expected = central_differences(lambda x: float(weights @ oracle(name, inputs, x)), inputs.logprobs.numpy())
    found = gradient_of(name, inputs, torch.from_numpy(weights))
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", [name for name in CONFIGS if CONFIGS[name].kind in SEQUENCE_LEVEL])
@pytest.mark.parametrize("spread", [0.002, 0.2])
def test_a_sequence_s_loss_is_the_paper_s_under_a_mean_over_its_tokens(name: str, spread: float) -> None:
    """Also its gradient, though each token holds only its own part of it."""
    inputs = drawn(5, spread=spread)
    loss = CONFIGS[name]
    fixed = (inputs.old.numpy(), inputs.advantages.numpy(), inputs.sample.numpy(), loss.model_dump())
    lengths = np.bincount(inputs.sample.numpy())
    weights = torch.from_numpy(1.0 / (lengths * len(lengths)))[inputs.sample]
    x = inputs.logprobs.numpy()
    value = float((weights * losses_of(name, inputs, inputs.logprobs)).sum())
    assert value == pytest.approx(whole_sequence(loss.kind, x, *fixed), rel=1e-12)
    expected = central_differences(lambda at: whole_sequence(loss.kind, at, *fixed), x)
    np.testing.assert_allclose(gradient_of(name, inputs, weights), expected, atol=1e-8)


@every_loss
def test_on_policy_its_gradient_is_the_policy_gradient(name: str) -> None:
    """Whatever bounds it: at a ratio of 1 nothing is clipped, weighed or penalised. LUSPO counts each sample's length."""
    inputs = drawn(3)
    inputs = replace(inputs, logprobs=inputs.old.clone())
    expected = -inputs.advantages.numpy()
    if CONFIGS[name].kind == "luspo":
        expected = expected * np.bincount(inputs.sample.numpy())[inputs.sample.numpy()]
    found = gradient_of(name, inputs, torch.ones_like(inputs.old))
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@every_loss
def test_without_an_advantage_nothing_is_learned(name: str) -> None:
    inputs = drawn(4)
    inputs = replace(inputs, advantages=torch.zeros_like(inputs.advantages))
    found = losses_of(name, inputs, inputs.logprobs)
    gradient = gradient_of(name, inputs, torch.ones_like(inputs.old))
    if CONFIGS[name].kind in LEFT_WITHOUT_ADVANTAGE:
        assert bool((found > 0).all())
        assert bool((gradient * (inputs.logprobs - inputs.old).numpy() > 0).all()), "towards a ratio of 1"
    else:
        assert not found.any() and not gradient.any()


@every_loss
def test_a_sample_of_one_token_is_a_token(name: str) -> None:
    inputs = drawn(6, lengths=(1,))
    np.testing.assert_allclose(
        losses_of(name, inputs, inputs.logprobs).numpy(), oracle(name, inputs, inputs.logprobs.numpy())
    )


@every_loss
def test_tokens_outside_the_mask_are_as_if_they_were_not_there(name: str) -> None:
    inputs = drawn(8)
    mask = torch.from_numpy(np.random.default_rng(1).random(len(inputs.old)) < 0.6)
    wild = inputs.logprobs.where(mask, inputs.logprobs + 7.0)
    kept = np.flatnonzero(mask.numpy())
    found = losses_of(name, replace(inputs, mask=mask), wild)[mask]
    alone = picked(inputs, kept)
    np.testing.assert_allclose(found.numpy(), losses_of(name, alone, alone.logprobs).numpy(), rtol=1e-12)


@every_loss
def test_an_empty_mask_is_no_accident(name: str) -> None:
    """A rank that has run out of tokens still takes part: weight 0 times anything finite is nothing."""
    inputs = replace(drawn(9), mask=torch.zeros(19, dtype=torch.bool))
    losses, measured = CONFIGS[name](inputs)
    assert bool(torch.isfinite(losses).all())
    assert not gradient_of(name, inputs, torch.zeros_like(inputs.old)).any()
    assert all(bool(torch.isfinite(values).all()) for values in (measured.means | measured.maxima).values())


@every_loss
@pytest.mark.parametrize("far", [100.0, -100.0, 1e4])
def test_a_log_ratio_far_off_is_a_number_and_so_is_its_gradient(name: str, far: float) -> None:
    """exp(100) overflows float32, and infinity times an advantage of 0 is no number."""
    inputs = drawn(10)
    floats = {key: getattr(inputs, key).float() for key in ("entropy", "old", "rollout", "advantages")}
    inputs = replace(inputs, **floats, logprobs=inputs.old.float() + far)
    inputs.advantages[:5] = 0.0
    losses, measured = CONFIGS[name](inputs)
    assert losses.dtype == torch.float32 and bool(torch.isfinite(losses).all())
    assert np.isfinite(gradient_of(name, inputs, torch.ones(len(inputs.old)))).all()
    assert all(bool(torch.isfinite(values).all()) for values in (measured.means | measured.maxima).values())


@every_loss
def test_what_it_measures_has_the_same_names_whatever_the_values(name: str) -> None:
    parts = [CONFIGS[name](inputs)[1] for inputs in (drawn(1), drawn(2, lengths=(1,)), drawn(3, spread=9.0))]
    names = [(sorted(part.means), sorted(part.maxima)) for part in parts]
    assert names[0] == names[1] == names[2]
    for values in (parts[0].means | parts[0].maxima).values():
        assert values.shape == (19,) and not values.requires_grad


@every_loss
def test_it_changes_none_of_its_inputs(name: str) -> None:
    inputs = drawn(2)
    before = {key: value.clone() for key in inputs.__slots__ if isinstance(value := getattr(inputs, key), torch.Tensor)}
    gradient_of(name, inputs, torch.ones_like(inputs.old))
    assert all(torch.equal(value, getattr(inputs, key)) for key, value in before.items())


@every_loss
def test_old_log_probs_are_asked_for_where_they_matter(name: str) -> None:
    inputs = drawn(2)
    other = replace(inputs, old=inputs.old + 0.05)
    differs = not torch.equal(*(losses_of(name, each, each.logprobs) for each in (inputs, other)))
    assert CONFIGS[name].needs == ({"old"} if differs else set())


# --- with an aggregation: the loss of a batch -------------------------------------------------------------------------

partitions = st.lists(st.integers(0, 3), min_size=5, max_size=5)
"""For each of five samples or groups, the microbatch or rank that it lies in."""


def whole_batch(seed: int) -> LossInputs:
    """Five groups of uneven size: samples 0..9 with 1 to 6 tokens each."""
    rng = np.random.default_rng(seed)
    lengths = tuple(rng.integers(1, 7, 10).tolist())
    groups = np.sort(np.concatenate([np.arange(5), rng.integers(0, 5, 5)]))
    inputs = drawn(seed, lengths, spread=0.4)
    return replace(inputs, group=torch.from_numpy(groups)[inputs.sample], groups=5)


def totals_of(inputs: LossInputs) -> Totals:
    return Totals(groups=inputs.groups, samples=inputs.samples, tokens=len(inputs.old))


def pieces(inputs: LossInputs, ranks: list[int], microbatches: list[int]) -> list[list[np.ndarray]]:
    """Indices of the tokens of each microbatch of each rank: groups are whole on a rank, samples in a microbatch."""
    rank = np.array(ranks)[inputs.group.numpy()]
    microbatch = np.array(microbatches)[inputs.sample.numpy() % 5]
    return [
        [np.flatnonzero((rank == r) & (microbatch == m)) for m in np.unique(microbatch[rank == r])]
        for r in np.unique(rank)
    ]


@every_aggregation
def test_an_aggregation_is_what_its_formula_says(how: str) -> None:
    inputs = whole_batch(0)
    sample, group = inputs.sample.numpy(), inputs.group.numpy()
    found = AGGREGATIONS[how](sample, group, totals_of(inputs))
    expected = aggregation_weights(how, sample, group, AGGREGATIONS[how].model_dump())
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    if how not in ("seq_mean_token_sum", "seq_mean_token_sum_norm"):
        assert found.sum() == pytest.approx(1.0, rel=1e-12), "a mean"


@every_aggregation
def test_an_aggregation_of_one_token_and_of_none(how: str) -> None:
    one, none = np.zeros(1, np.int64), np.zeros(0, np.int64)
    expected = 1 / 9 if how == "seq_mean_token_sum_norm" else 1.0
    np.testing.assert_array_equal(AGGREGATIONS[how](one, one, Totals(1, 1, 1)), [expected])
    assert AGGREGATIONS[how](none, none, Totals(0, 0, 0)).shape == (0,)


@every_aggregation
@given(seed=st.integers(0, 99), ranks=partitions, order=st.randoms())
@some_examples
def test_weights_do_not_depend_on_ranks_or_order(how: str, seed: int, ranks: list[int], order: Any) -> None:
    inputs = whole_batch(seed)
    sample, group = inputs.sample.numpy(), inputs.group.numpy()
    whole = AGGREGATIONS[how](sample, group, totals_of(inputs))
    for on_rank in np.unique(ranks):
        chosen = np.flatnonzero(np.array(ranks)[group] == on_rank)
        order.shuffle(chosen)
        # Numbers are names: another rank counts its samples and groups from another start.
        found = AGGREGATIONS[how](sample[chosen] + 40, group[chosen] + 7, totals_of(inputs))
        np.testing.assert_allclose(found, whole[chosen], rtol=1e-14)


def loss_and_gradient(name: str, inputs: LossInputs, weights: np.ndarray) -> tuple[float, np.ndarray]:
    at = torch.from_numpy(weights)
    return float((at * losses_of(name, inputs, inputs.logprobs)).sum()), gradient_of(name, inputs, at)


def hold_to_any_cut(name: str, how: str, seed: int, ranks: list[int], microbatches: list[int]) -> None:
    inputs, totals = whole_batch(seed), totals_of(whole_batch(seed))
    weigh = AGGREGATIONS[how]
    whole = loss_and_gradient(name, inputs, weigh(inputs.sample.numpy(), inputs.group.numpy(), totals))
    loss, gradient = 0.0, np.zeros(len(inputs.old))
    for parts in pieces(inputs, ranks, microbatches):
        on_rank = np.concatenate(parts)
        weights = weigh(inputs.sample.numpy()[on_rank], inputs.group.numpy()[on_rank], totals)
        for part, of_part in zip(parts, np.split(weights, np.cumsum(list(map(len, parts)))[:-1]), strict=True):
            value, gradient[part] = loss_and_gradient(name, picked(inputs, part), of_part)
            loss += value
    assert loss == pytest.approx(whole[0], rel=1e-11, abs=1e-12)
    np.testing.assert_allclose(gradient, whole[1], rtol=1e-11, atol=1e-13)


@every_loss
@given(seed=st.integers(0, 99), ranks=partitions, microbatches=partitions, how=st.sampled_from(sorted(AGGREGATIONS)))
@some_examples
def test_loss_and_gradient_do_not_depend_on_how_a_batch_is_cut(
    name: str, seed: int, ranks: list[int], microbatches: list[int], how: str
) -> None:
    """Into microbatches or over ranks, with uneven groups and with fewer groups than ranks."""
    hold_to_any_cut(name, how, seed, ranks, microbatches)


@pytest.mark.parametrize(("name", "how"), list(product(KINDS, AGGREGATIONS)))
def test_every_loss_goes_with_every_aggregation(name: str, how: str) -> None:
    hold_to_any_cut(name, how, 1, [0, 1, 2, 0, 1], [0, 1, 0, 1, 2])


ADDED = [*get_args(LossKind), *get_args(AggregationKind)]


@pytest.mark.parametrize("kind", ADDED, ids=lambda kind: kind.model_fields["kind"].default)
def test_an_option_that_is_none_is_refused_with_the_nearest(kind: Any) -> None:
    section = "loss" if kind in get_args(LossKind) else "aggregation"
    name = kind.model_fields["kind"].default
    options = [option for option in kind.model_fields if option != "kind"]
    nearest = f"did you mean {options[0]}?" if options else "known: kind"
    wrong = f"{options[0]}x" if options else "clip_low"
    with pytest.raises(ConfigError) as caught:
        load_recipe(COLD_START, [f"learner.{section}={{kind: {name}, {wrong}: 1}}"])
    assert f"learner.{section}.{wrong}: unknown key (value 1); {nearest}" in str(caught.value)


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("learner.loss=gsp0", "learner.loss: no such kind (value 'gsp0'); did you mean gspo?"),
        (
            "learner.aggregation=token_maen",
            "learner.aggregation: no such kind (value 'token_maen'); did you mean token_mean?",
        ),
        ("learner.kl={coef: 0.1, estimator: k4}", "learner.kl.estimator: Input should be 'k1', 'k2', 'k3' or 'k3_k2'"),
    ],
)
def test_a_kind_that_is_none_is_refused_with_the_nearest(override: str, nearest: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe(COLD_START, [override])
    assert nearest in str(caught.value)
