"""Products by oneDNN are those by torch, in both directions, whichever of the two this processor would take."""

import pytest
import torch
from torch import nn

from learner.model import products

pytestmark = pytest.mark.unit


@pytest.fixture(params=[True, False], ids=["oneDNN", "torch"], autouse=True)
def by_one_dnn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if request.param and not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(products, "ONE_DNN", request.param)
    return bool(request.param)


@pytest.mark.parametrize(("tokens", "inputs", "outputs"), [(1, 7, 5), (33, 24, 40), (64, 130, 16)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_and_its_gradients(tokens: int, inputs: int, outputs: int, bias: bool) -> None:
    torch.manual_seed(0)
    layer, exact = nn.Linear(inputs, outputs, bias), nn.Linear(inputs, outputs, bias, dtype=torch.float64)
    exact.load_state_dict(layer.state_dict())
    products.speed_up(nn.Sequential(layer))
    given = torch.randn(2, tokens, inputs)
    taken, upstream = given.double().requires_grad_(), torch.randn(2, tokens, outputs)
    given.requires_grad_()
    found, wanted = layer(given), exact(taken)
    found.backward(upstream)
    wanted.backward(upstream.double())
    pairs = [(found, wanted), (given.grad, taken.grad)]
    pairs += [(own.grad, other.grad) for own, other in zip(layer.parameters(), exact.parameters(), strict=True)]
    for own, other in pairs:
        assert own is not None and other is not None
        assert own.dtype is torch.float32
        torch.testing.assert_close(own.double(), other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("rows", "inner", "columns"), [(5, 9, 70), (70, 9, 5), (1, 1, 1)])
def test_products_of_two_matrices(rows: int, inner: int, columns: int) -> None:
    torch.manual_seed(0)
    left, right = torch.randn(rows, inner), torch.randn(inner, columns)
    wanted = left.double() @ right.double()
    torch.testing.assert_close(products.product(left, right).double(), wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(products.product(left, right.T.contiguous().T).double(), wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(products.outer(left.T, right).double(), wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(products.product(left.double(), right.double()), wanted)  # not float32: as it was


def test_what_is_frozen_has_no_gradient_and_other_dtypes_are_torchs() -> None:
    layer = nn.Linear(8, 4)
    layer.weight.requires_grad_(False)
    products.speed_up(layer)
    given = torch.randn(3, 8, requires_grad=True)
    layer(given).sum().backward()
    assert given.grad is not None and layer.weight.grad is None and layer.bias.grad is not None
    half = nn.Linear(8, 4, dtype=torch.bfloat16)
    products.speed_up(half)
    assert half(torch.randn(3, 8, dtype=torch.bfloat16)).dtype is torch.bfloat16


def test_only_linear_layers_are_changed(by_one_dnn: bool) -> None:
    class Other(nn.Linear):
        pass

    model = nn.ModuleDict({"linear": nn.Linear(2, 2), "other": Other(2, 2), "norm": nn.LayerNorm(2)})
    names = list(model.state_dict())
    products.speed_up(model)
    assert {name for name, module in model.items() if "forward" in vars(module)} == (
        {"linear"} if by_one_dnn else set()
    )
    assert list(model.state_dict()) == names
