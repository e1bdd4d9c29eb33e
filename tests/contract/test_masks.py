"""What every mask keeps to, with any loss, and what each chooses."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from deploy.config.recipe import ConfigError, load_recipe
from learner.batching.packed import PackedBatch
from learner.config import LearnerConfig
from learner.losses import LossInputs
from learner.losses.objective import Objective
from learner.masks import STATISTICS, AnyMask, Masked, MaskKind
from learner.masks.clip_cov import draws
from learner.masks.statistics import with_statistics
from tests.contract.test_losses import (
    COLD_START,
    KINDS,
    SEQUENCE_LEVEL,
    central_differences,
    drawn,
    partitions,
    picked,
    some_examples,
)
from tests.gloo_ranks import OnTwoRanks, on_one_rank
from tests.unit.test_learner_loss import batch_of

pytestmark = pytest.mark.contract

MASK: TypeAdapter = TypeAdapter(AnyMask)
MASKS: dict[str, Any] = {
    options["kind"]: MASK.validate_python(options)
    for options in (
        {"kind": "clip_cov", "share": 0.2, "low": 0.05, "high": 3.0},
        {"kind": "kl_cov", "share": 0.2, "penalty": 0.7},
        {"kind": "opsm", "threshold": 0.05},
        {"kind": "capo", "fisher": 0.02, "hessian": 0.05},
    )
}
every_mask = pytest.mark.parametrize("name", MASKS)
LENGTHS = (9, 1, 14, 6, 11)


def tokens(seed: int, lengths: tuple[int, ...] = LENGTHS) -> LossInputs:
    """Samples that engine and policy see differently, some more than others."""
    inputs = drawn(seed, lengths)
    rng = np.random.default_rng(seed + 100)
    apart = rng.normal(size=len(lengths))[inputs.sample.numpy()] * 0.2 + 0.05 * rng.normal(size=len(inputs.old))
    moved = np.stack([0.1 * rng.normal(size=len(apart)), 0.02 * rng.random(len(apart))])
    return replace(inputs, rollout=inputs.old + torch.from_numpy(apart), head_move=torch.from_numpy(moved))


def statistics_of(name: str, inputs: LossInputs) -> torch.Tensor:
    kept = inputs.mask.numpy()
    return torch.from_numpy(MASKS[name].statistics(inputs.advantages.numpy()[kept], inputs.rollout.numpy()[kept]))


def masked(name: str, inputs: LossInputs) -> Masked:
    found = MASKS[name](inputs, statistics_of(name, inputs))
    assert isinstance(found, Masked)
    return found


def chosen(part: Masked) -> np.ndarray:
    (share,) = (values for name, values in part.measured.means.items() if name.endswith("_share"))
    return share.numpy() > 0


def test_every_mask_of_the_registry_is_tried() -> None:
    assert set(MASKS) == {kind.model_fields["kind"].default for kind in get_args(MaskKind)}


@every_mask
def test_what_it_chooses_it_leaves_out_or_holds(name: str) -> None:
    found = masked(name, tokens(4))
    out = chosen(found)
    assert 0 < out.sum() < len(out)
    weights = found.weights.numpy()
    np.testing.assert_array_equal(weights, np.ones(len(out)) if name == "kl_cov" else np.where(out, 0.0, 1.0))
    assert not found.weights.requires_grad and (found.penalties is None) == (name != "kl_cov")


def covariances(inputs: LossInputs) -> np.ndarray:
    """Written from the formula: means of the update before it, log-probs of now."""
    mean_advantage, mean_logprob = inputs.advantages.numpy().mean(), inputs.rollout.numpy().mean()
    return (inputs.advantages.numpy() - mean_advantage) * (inputs.logprobs.numpy() - mean_logprob)


def test_clip_cov_leaves_out_random_tokens_between_its_bounds() -> None:
    """As many as are wanted, on average."""
    mask, wanted, found = MASKS["clip_cov"], 0, 0
    for seed in range(40):
        inputs = tokens(seed)
        inputs = replace(inputs, logprobs=inputs.rollout)
        each, out = covariances(inputs), chosen(masked("clip_cov", inputs))
        between = (each > mask.low) & (each < mask.high)
        assert not (out & ~between).any()
        wanted += min(int(mask.share * len(out)), between.sum())
        found += out.sum()
    assert 0.75 * wanted < found < 1.25 * wanted and wanted > 150


def test_clip_cov_leaves_out_all_between_its_bounds_where_more_are_wanted() -> None:
    inputs = replace(tokens(3), logprobs=tokens(3).rollout)
    mask = MASKS["clip_cov"].model_copy(update={"share": 1.0})
    out = chosen(mask(inputs, torch.from_numpy(mask.statistics(inputs.advantages.numpy(), inputs.rollout.numpy()))))
    each = covariances(inputs)
    np.testing.assert_array_equal(out, (each > mask.low) & (each < mask.high))


def test_kl_cov_holds_the_tokens_of_the_largest_covariance() -> None:
    inputs = replace(tokens(1), logprobs=tokens(1).rollout)
    out = chosen(masked("kl_cov", inputs))
    largest = np.argsort(-covariances(inputs))[: int(0.2 * len(out))]
    assert set(np.flatnonzero(out)) == set(largest)


def test_kl_cov_s_penalty_has_the_gradient_of_differences() -> None:
    inputs = tokens(2)
    row = statistics_of("kl_cov", inputs)
    x = inputs.logprobs.clone().requires_grad_()
    penalties = MASKS["kl_cov"](replace(inputs, logprobs=x), row).penalties
    assert penalties is not None
    (gradient,) = torch.autograd.grad(penalties.sum(), x)
    held = chosen(masked("kl_cov", inputs))

    def oracle(at: np.ndarray) -> float:
        return float(sum(0.7 * abs(at[i] - inputs.old[i].item()) for i in np.flatnonzero(held)))

    assert penalties.sum().item() == pytest.approx(oracle(inputs.logprobs.numpy()), rel=1e-12)
    np.testing.assert_allclose(gradient, central_differences(oracle, inputs.logprobs.numpy()), atol=1e-8)
    same = MASKS["kl_cov"](replace(inputs, logprobs=inputs.old), row).penalties
    assert same is not None and not same.any(), "nothing to hold at a ratio of 1"


def test_opsm_leaves_out_bad_samples_that_the_policy_has_left() -> None:
    inputs = tokens(4)
    expected = []
    for t, number in enumerate(inputs.sample.tolist()):
        of = inputs.sample.numpy() == number
        distance = float((inputs.rollout.numpy() - inputs.logprobs.numpy())[of].mean())
        expected.append(bool(inputs.advantages[t] < 0 and distance > 0.05))
    assert 0 < sum(expected) < len(expected)
    np.testing.assert_array_equal(chosen(masked("opsm", inputs)), expected)


def test_capo_leaves_out_tokens_that_the_next_step_would_move_too_far() -> None:
    inputs = tokens(4)
    assert inputs.head_move is not None
    expected = []
    for advantage, first, variance in zip(inputs.advantages.tolist(), *inputs.head_move.tolist(), strict=True):
        fisher, hessian = first**2, advantage * first + 0.5 * advantage * (first**2 - variance)
        expected.append((fisher, abs(hessian), fisher >= 0.02 or abs(hessian) >= 0.05))
    found = masked("capo", inputs)
    measured = found.measured.means | found.measured.maxima
    np.testing.assert_allclose(measured["capo_fisher"], [each[0] for each in expected], rtol=1e-12)
    np.testing.assert_allclose(measured["capo_hessian"], [each[1] for each in expected], rtol=1e-12)
    np.testing.assert_array_equal(chosen(found), [each[2] for each in expected])
    assert {each[2] for each in expected if each[0] < 0.02} == {True, False}, "both limits work"
    before_the_first_step = MASKS["capo"](replace(inputs, head_move=None), torch.zeros(STATISTICS))
    assert not chosen(before_the_first_step).any()


@every_mask
def test_an_empty_mask_and_a_single_token_are_no_accident(name: str) -> None:
    nothing = replace(tokens(5), mask=torch.zeros(sum(LENGTHS), dtype=torch.bool))
    one = tokens(6, lengths=(1,))
    unasked = MASKS[name](nothing, torch.zeros(STATISTICS, dtype=torch.float64))
    for part in (masked(name, nothing), unasked, masked(name, one)):
        values = [part.weights, *part.measured.means.values(), *([] if part.penalties is None else [part.penalties])]
        assert all(bool(torch.isfinite(value).all()) for value in values)


@every_mask
@given(seed=st.integers(0, 99), microbatches=partitions, order=st.randoms())
@some_examples
def test_what_it_chooses_does_not_depend_on_how_a_batch_is_cut(
    name: str, seed: int, microbatches: list[int], order: Any
) -> None:
    inputs = tokens(seed)
    shuffled = list(range(len(inputs.old)))
    order.shuffle(shuffled)
    row = statistics_of(name, inputs)
    assert torch.equal(row, statistics_of(name, picked(inputs, np.array(shuffled)))), "to the last bit"
    whole = chosen(MASKS[name](inputs, row))
    for number in set(microbatches):
        part = np.flatnonzero(np.array(microbatches)[inputs.sample.numpy()] == number)
        np.testing.assert_array_equal(chosen(MASKS[name](picked(inputs, part), row)), whole[part])


@pytest.mark.parametrize("loss", KINDS)
@every_mask
def test_with_any_loss_a_token_that_is_left_out_moves_nothing(loss: str, name: str) -> None:
    """Not even by the ratio of its sample."""
    inputs = tokens(4)
    wide = {"clip_low": 0.9, "clip_high": 9.0} if loss in SEQUENCE_LEVEL else {}
    plain = LearnerConfig.model_validate({"loss": {"kind": loss} | wide})
    config = plain.model_copy(update={"masks": (MASKS[name],)})
    gradients = []
    for each in (config, plain):
        x = inputs.logprobs.clone().requires_grad_()
        rows = statistics_of(name, inputs)[None] if each.masks else None
        loss_of_batch, _ = Objective(each)(as_batch(inputs, rows), x, torch.zeros_like(x), inputs.head_move)
        gradients.append(torch.autograd.grad(loss_of_batch, x)[0].numpy())
    out = chosen(masked(name, inputs))
    np.testing.assert_array_equal(gradients[0][~out], gradients[1][~out])
    if name == "kl_cov":
        assert (gradients[0][out] != gradients[1][out]).all()
    else:
        assert not gradients[0][out].any() and gradients[1][out].any()


def as_batch(inputs: LossInputs, statistics: torch.Tensor | None) -> PackedBatch:
    arrays = (inputs.old, None, inputs.rollout, inputs.advantages, torch.ones_like(inputs.old), inputs.sample)
    batch = batch_of(*(None if each is None else each.numpy() for each in arrays))  # type: ignore[arg-type]
    return replace(batch, mask_statistics=statistics)


def test_draws_are_uniform_and_of_the_token_alone() -> None:
    logprobs = torch.from_numpy(-np.random.default_rng(0).exponential(size=20_000))
    found = draws(logprobs)
    assert bool((found >= 0).all()) and bool((found < 1).all())
    counts = np.histogram(found.numpy(), bins=20, range=(0, 1))[0]
    assert abs(counts - 1000).max() < 5 * math.sqrt(1000)
    assert torch.equal(draws(logprobs[5:9]), found[5:9])
    assert abs(np.corrcoef(found.numpy(), logprobs.numpy())[0, 1]) < 0.03


# --- over microbatches and ranks ----------------------------------------------------------------------------------------


def plan_of(samples: Sequence[int]) -> list[PackedBatch]:
    """A microbatch of each of these samples, and one outside the mask."""
    inputs = tokens(8)
    parts = [picked(inputs, np.flatnonzero(inputs.sample.numpy() == number)) for number in samples]
    return [as_batch(part, None) for part in parts] + [
        replace(as_batch(picked(inputs, np.arange(1)), None), mask=torch.zeros(1, dtype=torch.bool))
    ]


def statistics_on_rank(rank: int, ranks: int, split: list[list[int]]) -> list[torch.Tensor]:
    found = with_statistics(plan_of(split[rank]), list(MASKS.values()))
    return [batch.mask_statistics for batch in found if batch.mask_statistics is not None]


def test_statistics_are_those_of_the_update_over_all_microbatches_and_ranks(on_two_ranks: OnTwoRanks) -> None:
    """With uneven ranks, and with one that has nothing."""
    inputs = replace(tokens(8), rollout=tokens(8).old)  # old log-probs are known here, and stand before the sampler's
    expected = torch.stack([statistics_of(name, inputs) for name in MASKS])
    alone = on_one_rank(statistics_on_rank, [[0, 1, 2, 3, 4]])
    uneven = on_two_ranks(statistics_on_rank, [[0, 3, 4, 2], [1]])
    lonely = on_two_ranks(statistics_on_rank, [[], [3, 2, 1, 0, 4]])
    assert len(alone) == 6 and len(uneven[1]) == 2 and len(lonely[0]) == 1
    for found in (*alone, *uneven[0], *uneven[1], *lonely[0], *lonely[1]):
        assert torch.equal(found, expected)


def test_nothing_is_gathered_where_no_mask_asks() -> None:
    """Without a process group a collective would raise."""
    (batch, _) = with_statistics(plan_of([0]), [MASKS["opsm"]])
    assert batch.mask_statistics is None
    assert with_statistics([], list(MASKS.values())) == []


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ("[opsn]", "learner.masks.0: no such kind (value 'opsn'); did you mean opsm?"),
        ("[{kind: opsm, treshold: 1}]", "learner.masks.0.treshold: unknown key (value 1); did you mean threshold?"),
        ("[{kind: clip_cov, shar: 1}]", "learner.masks.0.shar: unknown key (value 1); did you mean share?"),
        ("[{kind: capo, fsher: 1}]", "learner.masks.0.fsher: unknown key (value 1); did you mean fisher?"),
        ("[{kind: kl_cov, penlty: 1}]", "learner.masks.0.penlty: unknown key (value 1); did you mean penalty?"),
        ("[opsm, kl_cov, opsm]", "masks: opsm stands there twice; one of each kind is enough"),
    ],
)
def test_what_is_no_mask_is_refused_with_the_nearest(masks: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe(COLD_START, [f"learner.masks={masks}"])
    assert message in str(caught.value)
