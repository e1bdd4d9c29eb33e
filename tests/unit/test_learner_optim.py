"""Optimisers, their groups and schedules against their formulas in float64 numpy; Muon also over two ranks."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from learner.config import LearnerConfig
from learner.optim import AdamW, AnySchedule, Constant, Cosine, GroupConfig, Linear, Muon, Wsd
from learner.optim.optimizers import Optimizers, state_tensors
from learner.optim.orthogonal import COEFFICIENTS, ITERATIONS, orthogonalise
from learner.optim.parameter_groups import ParameterGroup, parameter_groups
from tests.gloo_ranks import OnTwoRanks, on_one_rank

pytestmark = pytest.mark.unit


def test_schedules_are_their_closed_forms() -> None:
    total, warm = 44, 4
    forms = {
        Constant(warmup_steps=warm): lambda p: 1.0,
        Linear(warmup_steps=warm, final_share=0.2): lambda p: 1.0 - 0.8 * p,
        Cosine(warmup_steps=warm, final_share=0.1): lambda p: 0.1 + 0.9 * math.cos(math.pi * p / 2) ** 2,
        Wsd(warmup_steps=warm, final_share=0.0, decay_share=0.25): lambda p: 1.0 if p <= 0.75 else 4 * (1.0 - p),
    }
    for schedule, form in forms.items():
        assert [schedule.share(i, total) for i in range(warm)] == [0.25, 0.5, 0.75, 1.0]
        for updates in range(warm, total + 1):
            assert schedule.share(updates, total) == pytest.approx(form((updates - warm) / (total - warm)))
        assert schedule.share(10 * total, total) == schedule.share(total, total)
        assert type(schedule)().share(0, 1) == 1.0, "without a warm-up the first step is whole"


def one_parameter(values: list[float], options: AdamW, schedule: AnySchedule) -> tuple[nn.Parameter, Optimizers]:
    model = nn.Module()
    model.weight = nn.Parameter(torch.tensor(values))
    return model.weight, Optimizers(model, dict(model.named_parameters()), options, schedule, 5)


def test_optimizer_matches_adamw_written_out() -> None:
    schedule = Cosine(warmup_steps=2)
    options = AdamW(lr=0.1, weight_decay=0.01, betas=(0.8, 0.9), max_grad_norm=0.5)
    parameter, optimizers = one_parameter([[1.0, -2.0]], options, schedule)  # type: ignore[list-item]
    x, m, v = np.array([[1.0, -2.0]]), np.zeros(2), np.zeros(2)
    for k in range(5):
        gradient = np.array([[3.0, 4.0]]) * (k + 1)
        parameter.grad = torch.tensor(gradient, dtype=torch.float32)
        update = optimizers.step()
        gradient = gradient * min(1.0, 0.5 / (5.0 * (k + 1)))
        lr = 0.1 * schedule.share(k, 5)
        assert update.grad_norm == pytest.approx(5.0 * (k + 1)) and update.lr == lr and not update.skipped
        m, v = 0.8 * m + 0.2 * gradient, 0.9 * v + 0.1 * gradient**2
        x = x - lr * 0.01 * x
        x = x - lr * (m / (1 - 0.8 ** (k + 1))) / (np.sqrt(v / (1 - 0.9 ** (k + 1))) + 1e-8)
        np.testing.assert_allclose(parameter.detach().numpy(), x, rtol=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_changes_nothing(bad: float) -> None:
    parameter, optimizers = one_parameter([1.0], AdamW(), Cosine())
    parameter.grad = torch.tensor([1.0])
    optimizers.step()
    weight = parameter.item()
    state = {name: value.clone() for name, value in state_tensors(optimizers.state()).items()}
    parameter.grad = torch.tensor([bad])
    assert optimizers.step().skipped
    assert parameter.item() == weight and optimizers.updates == 1 and parameter.grad is None
    assert set(state) == {"step.weight", "exp_avg.weight", "exp_avg_sq.weight"}
    assert all(torch.equal(state[name], value) for name, value in state_tensors(optimizers.state()).items())


class Sgd(AdamW):
    def build(self, groups: Sequence[ParameterGroup]) -> tuple[torch.optim.Optimizer, ...]:
        each = [parameter for group in groups for parameter in group.parameters]
        return tuple(torch.optim.SGD([parameter], lr=self.lr, momentum=0.9) for parameter in each)


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        (Sgd(lr=0.1), {"momentum_buffer.weight", "momentum_buffer.bias"}),
        (Muon(lr=0.1), {"momentum.weight", "exp_avg.bias", "exp_avg_sq.bias", "step.bias"}),
    ],
)
def test_the_state_of_every_optimiser_travels_by_name(options: AdamW, kept: set[str]) -> None:
    """Nothing in the state's way knows AdamW."""

    def made() -> tuple[nn.Linear, Optimizers]:
        model = nn.Linear(2, 1)
        return model, Optimizers(model, dict(model.named_parameters()), options, Cosine(), 5)

    model, optimizers = made()
    model(torch.ones(1, 2)).sum().backward()
    optimizers.step()
    saved = {name: value.clone() for name, value in state_tensors(optimizers.state()).items()}
    assert set(saved) == kept
    _, other = made()
    other.updates = optimizers.updates
    state = other.state()
    for name, tensor in state_tensors(state).items():
        tensor.copy_(saved[name])
    other.restore(state)
    assert all(torch.equal(saved[name], value) for name, value in state_tensors(other.state()).items())


class TwoLayers(nn.Module):
    """Uneven shapes, so that two ranks hold shards of two sizes, one of which may be empty."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 6)
        self.up = nn.Linear(6, 9)
        self.experts = nn.Parameter(torch.empty(3, 4, 9))
        self.one_row = nn.Linear(4, 1, bias=False)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 5, bias=False)
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)

    def get_output_embeddings(self) -> nn.Module:
        return self.head


def test_groups_are_by_what_parameters_are_and_by_the_first_pattern_that_matches() -> None:
    model = TwoLayers()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    options = AdamW(lr=1e-3, groups=(GroupConfig(match=r"^up\.", lr=5e-3), GroupConfig(match="bias|head", lr=7e-3)))
    found = {
        (group.lr, group.decays, group.hidden): [names[id(each)] for each in group.parameters]
        for group in parameter_groups(model, dict(model.named_parameters()), options.lr, options.groups)
    }
    assert found == {
        (1e-3, True, False): ["embed.weight"],
        (5e-3, True, True): ["up.weight"],
        (5e-3, False, False): ["up.bias"],
        (1e-3, True, True): ["experts", "one_row.weight"],
        (1e-3, False, False): ["norm.weight"],
        (7e-3, False, False): ["norm.bias"],
        (7e-3, True, False): ["head.weight"],
    }


def test_groups_that_take_nothing_are_refused_with_what_is_near() -> None:
    model = TwoLayers()
    trained = dict(model.named_parameters())
    of_nothing = [GroupConfig(match="expert_weights", lr=1.0)]
    with pytest.raises(ValueError, match=r"groups\.0\.match: 'expert_weights' matches no trained parameter.*'experts'"):
        parameter_groups(model, trained, 1.0, of_nothing)
    too_late = [GroupConfig(match="bias", lr=1.0), GroupConfig(match=r"up\.bias", lr=2.0)]
    with pytest.raises(ValueError, match=r"groups\.1\.match: 'up.*' matches only parameters that entries before"):
        parameter_groups(model, trained, 1.0, too_late)
    with pytest.raises(ValueError, match=r"not a regular expression"):
        LearnerConfig.model_validate({"optimizer": {"groups": [{"match": "up(", "lr": 1.0}]}})


def test_norms_and_biases_are_not_decayed_and_groups_step_at_their_own_rate() -> None:
    model = TwoLayers()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    options = AdamW(lr=0.01, weight_decay=0.5, groups=(GroupConfig(match="head", lr=0.1),))
    optimizers = Optimizers(model, dict(model.named_parameters()), options, Constant(), 5)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    assert optimizers.step().lr == 0.01
    for name, parameter in model.named_parameters():
        rate = 0.1 if "head" in name else 0.01
        kept = 1.0 - rate * 0.5 * (parameter.ndim > 1)
        torch.testing.assert_close(parameter.detach(), before[name] * kept)


def numpy_newton_schulz(matrix: np.ndarray) -> np.ndarray:
    a, b, c = COEFFICIENTS
    x = matrix / np.linalg.norm(matrix)
    for _ in range(ITERATIONS):
        x = a * x + b * (x @ x.T) @ x + c * (x @ x.T) @ (x @ x.T) @ x
    return x


def test_a_matrix_is_orthogonalised_as_the_formula_says() -> None:
    rng = np.random.default_rng(0)
    for shape in ((4, 7), (7, 4), (5, 5), (1, 6)):
        matrix = rng.normal(size=shape)
        found = orthogonalise(torch.from_numpy(matrix)).numpy()
        np.testing.assert_allclose(found, numpy_newton_schulz(matrix), rtol=1e-10, atol=1e-12)
        u, _, vt = np.linalg.svd(matrix, full_matrices=False)
        values = np.diag(u.T @ found @ vt.T)
        assert ((values > 0.65) & (values < 1.25)).all(), "Muon's iterations bring singular values near 1, not to it"
    stack = rng.normal(size=(3, 4, 7))
    each = [orthogonalise(torch.from_numpy(matrix)).numpy() for matrix in stack]
    np.testing.assert_allclose(orthogonalise(torch.from_numpy(stack)).numpy(), each, rtol=1e-12)
    assert not orthogonalise(torch.zeros(3, 4)).any()


def gradients_of(model: nn.Module, step: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(parameter.shape, generator=generator) for parameter in model.parameters()]


MUON = Muon(lr=0.02, weight_decay=0.1, momentum=0.9, max_grad_norm=1e9)


def test_muon_is_its_formula_written_out() -> None:
    model = TwoLayers()
    optimizers = Optimizers(model, dict(model.named_parameters()), MUON, Constant(), 5)
    x, m = model.up.weight.detach().double().numpy(), np.zeros((9, 6))
    for step in range(3):
        gradients = gradients_of(model, step)
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter.grad = gradient
        place = [id(parameter) for parameter in model.parameters()].index(id(model.up.weight))
        g = gradients[place].double().numpy()
        optimizers.step()
        m = 0.9 * m + 0.1 * g
        update = 0.2 * np.sqrt(9) * numpy_newton_schulz(0.1 * g + 0.9 * m)
        x = (1 - 0.02 * 0.1) * x - 0.02 * update
        assert np.sqrt((update**2).mean()) == pytest.approx(0.2, rel=0.3), "on AdamW's scale"
        np.testing.assert_allclose(model.up.weight.detach().numpy(), x, rtol=1e-5, atol=1e-6)


def train_sharded(rank: int, ranks: int) -> dict[str, np.ndarray]:
    """Three steps of Muon on a model that FSDP2 shards, with a checkpoint's worth of state in between."""
    model = TwoLayers()
    fully_shard(model, mesh=init_device_mesh("cpu", (ranks,)))
    optimizers = Optimizers(model, dict(model.named_parameters()), MUON, Constant(), 5)
    whole = TwoLayers()
    for step in range(3):
        for parameter, gradient in zip(model.parameters(), gradients_of(whole, step), strict=True):
            assert isinstance(parameter, DTensor)
            parameter.grad = torch.distributed.tensor.distribute_tensor(
                gradient, parameter.device_mesh, parameter.placements
            )
        optimizers.step()
    state = state_tensors(optimizers.state())
    return {
        name: (value.full_tensor() if isinstance(value, DTensor) else value).detach().numpy().copy()
        for name, value in [*model.named_parameters(), *state.items()]
    }


def test_muon_over_two_ranks_is_muon_on_one(on_two_ranks: OnTwoRanks) -> None:
    """Matrices are orthogonalised whole; torch's own Muon is off by a quarter of a step here."""
    alone = on_one_rank(train_sharded)
    first, second = on_two_ranks(train_sharded)
    assert set(alone) >= {"up.weight", "momentum.up.weight", "momentum.experts", "exp_avg.embed.weight"}
    for name, value in alone.items():
        np.testing.assert_array_equal(first[name], second[name])
        np.testing.assert_allclose(first[name], value, rtol=1e-6, atol=1e-6)
