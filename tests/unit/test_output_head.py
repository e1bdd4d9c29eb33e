"""The output head in chunks against float64 autograd of the plain form, what it holds, and what it leaves out."""

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import torch

from learner.model.logits import LogitTransform
from learner.model.logprobs import chunk_shape, token_logprobs

pytestmark = pytest.mark.unit
TOKENS, HIDDEN, VOCABULARY = 37, 16, 101


def draw(dtype: torch.dtype = torch.float32, with_bias: bool = False) -> dict[str, torch.Tensor | None]:
    generator = torch.Generator().manual_seed(1)
    made: dict[str, torch.Tensor | None] = {
        "hidden": torch.randn(TOKENS, HIDDEN, generator=generator).to(dtype).requires_grad_(),
        "weight": torch.randn(VOCABULARY, HIDDEN, generator=generator).to(dtype).requires_grad_(),
        "bias": torch.randn(VOCABULARY, generator=generator).to(dtype).requires_grad_() if with_bias else None,
        "targets": torch.randint(0, VOCABULARY, (TOKENS,), generator=generator),
        "temperatures": 0.5 + torch.rand(TOKENS, generator=generator),
    }
    return made


def plain(
    made: dict[str, torch.Tensor | None], transform: LogitTransform | None
) -> tuple[list[torch.Tensor | None], torch.Tensor, torch.Tensor]:
    """(leaves, log-probs, entropies) of the plain form in float64."""
    leaves = [
        None if (each := made[name]) is None else each.detach().double().requires_grad_()
        for name in ("hidden", "weight", "bias")
    ]
    hidden, weight, bias = leaves
    targets, temperatures = made["targets"], made["temperatures"]
    assert hidden is not None and weight is not None and targets is not None and temperatures is not None
    logits = hidden @ weight.T
    logits = logits if bias is None else logits + bias
    logits = (logits if transform is None else transform(logits)) / temperatures.double()[:, None]
    logs = logits.log_softmax(dim=1)
    return leaves, logs.gather(1, targets[:, None])[:, 0], -(logs.exp() * logs).sum(dim=1)


def apart(found: torch.Tensor, expected: torch.Tensor) -> float:
    found, expected = found.detach().double(), expected.detach()
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("elements", [1, 300, 10**6])
@pytest.mark.parametrize("transform", [None, LogitTransform(scale=0.3), LogitTransform(scale=2.0, cap=5.0)])
def test_values_and_gradients_are_those_of_the_plain_form(elements: int, transform: LogitTransform | None) -> None:
    mix = torch.linspace(-1, 1, TOKENS)
    for with_bias, entropy_grad in product((False, True), repeat=2):
        made = draw(with_bias=with_bias)
        logprobs, entropy = token_logprobs(*made.values(), elements, entropy_grad, transform)  # type: ignore[arg-type]
        leaves, expected, expected_entropy = plain(made, transform)
        assert apart(logprobs.detach(), expected) < 1e-6 and apart(entropy.detach(), expected_entropy) < 1e-6
        share = 0.7 if entropy_grad else 0.0
        (mix * logprobs + share * mix.square() * entropy).sum().backward()
        (mix * expected + share * mix.square() * expected_entropy).sum().backward()
        for name, leaf in zip(("hidden", "weight", "bias"), leaves, strict=True):
            if leaf is not None:
                assert apart(made[name].grad, leaf.grad) < 1e-6, name  # type: ignore[arg-type, union-attr]


@pytest.mark.parametrize("elements", [300, 10**6])
def test_bfloat16_products_are_not_rounded(elements: int) -> None:
    """bfloat16 rounds logits of 16 by up to .06; the head's are sums in float32 of bfloat16 inputs."""
    made = draw(torch.bfloat16)
    logprobs, entropy = token_logprobs(*made.values(), elements, False)  # type: ignore[arg-type]
    leaves, expected, expected_entropy = plain(made, None)
    assert logprobs.dtype == entropy.dtype == torch.float32
    assert apart(logprobs.detach(), expected) < 1e-6 and apart(entropy, expected_entropy) < 1e-6
    logprobs.sum().backward()
    expected.sum().backward()
    for name, leaf in zip(("hidden", "weight"), leaves, strict=False):
        gradient = made[name].grad  # type: ignore[union-attr]
        assert gradient is not None and gradient.dtype == torch.bfloat16
        assert apart(gradient, leaf.grad) < 2**-8, name  # type: ignore[arg-type, union-attr]


def test_logits_far_apart_stay_numbers() -> None:
    hidden = torch.tensor([[1e4], [-1e4], [0.0]], requires_grad=True)
    weight = torch.tensor([[1.0], [-1.0], [0.5], [0.0]], requires_grad=True)
    for elements in (1, 100):
        logprobs, entropy = token_logprobs(hidden, weight, None, torch.tensor([0, 1, 2]), torch.ones(3), elements, True)
        np.testing.assert_allclose(logprobs.detach(), [0.0, 0.0, -np.log(4)], atol=1e-6)
        np.testing.assert_allclose(entropy.detach(), [0.0, 0.0, np.log(4)], atol=1e-6)
        (logprobs + entropy).sum().backward()
    assert bool(torch.isfinite(hidden.grad).all()) and bool(torch.isfinite(weight.grad).all())  # type: ignore[arg-type]


def test_a_second_backward_pass_gives_the_first_one_s_gradient() -> None:
    """Where all logits are one chunk they are kept, and must be as they were."""
    made = draw()
    logprobs, _ = token_logprobs(*made.values(), 10**6, False)  # type: ignore[arg-type]
    first, second = (torch.autograd.grad(logprobs.sum(), made["hidden"], retain_graph=True)[0] for _ in range(2))  # type: ignore[arg-type]
    assert torch.equal(first, second)


def test_a_frozen_head_gets_no_gradient() -> None:
    made = draw()
    made["weight"] = made["weight"].detach()  # type: ignore[union-attr]
    token_logprobs(*made.values(), 300, False)[0].sum().backward()  # type: ignore[arg-type]
    assert made["weight"].grad is None and made["hidden"].grad is not None  # type: ignore[union-attr]


@pytest.mark.parametrize("size", [(1, 1), (7, 64), (5000, 64), (16384, 151936), (100, 151936), (10**6, 3)])
def test_a_chunk_holds_no_more_than_it_may_and_is_worth_a_product(size: tuple[int, int]) -> None:
    for elements in (2**10, 2**22, 2**25):
        rows, columns = chunk_shape(*size, elements)
        assert 1 <= rows <= size[0] and 1 <= columns <= size[1] and rows * columns <= elements
        assert rows * columns >= min(size[0] * size[1], elements) // 2, "chunks are not needlessly small"
        assert (rows, columns) == size or min(rows, columns) >= min(*size, int(elements**0.5) // 2)


class LargestTensor(torch.utils._python_dispatch.TorchDispatchMode):
    """Remembers the most elements that any operation returned, by dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.largest: dict[torch.dtype, int] = {}

    def __torch_dispatch__(self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, tuple) else (result,):
            if isinstance(each, torch.Tensor):
                self.largest[each.dtype] = max(self.largest.get(each.dtype, 0), each.numel())
        return result


def test_nothing_as_large_as_all_logits_or_a_float32_weight_is_ever_made() -> None:
    """A vocabulary that dwarfs all else: what is made in float32 stays under the chunk or [tokens, hidden]."""
    vocabulary, elements = 4096, 2048
    hidden = torch.randn(64, 32).bfloat16().requires_grad_()
    weight = torch.randn(vocabulary, 32).bfloat16().requires_grad_()
    with LargestTensor() as seen:
        logprobs, entropy = token_logprobs(
            hidden, weight, None, torch.zeros(64, dtype=torch.int64), torch.ones(64), elements, True
        )
        (logprobs + entropy).sum().backward()
    assert seen.largest[torch.float32] <= max(elements, hidden.numel())
    assert seen.largest[torch.bfloat16] == weight.numel(), "its gradient, in its own dtype"
