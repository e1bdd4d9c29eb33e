"""The block of bytes in which weights travel: every dtype and shape comes back as it was, and damage is noticed."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from actors.weights.block import ALIGNMENT, Layout, open_tensors, pack, verify
from actors.weights.offer import WeightError

pytestmark = pytest.mark.unit


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "matrix": torch.randn(5, 7, generator=generator),
        "transposed": torch.randn(3, 4, generator=generator).T,
        "half": torch.randn(9, generator=generator).bfloat16(),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "trained": torch.nn.Parameter(torch.ones(2)),
    }


def test_tensors_come_back_as_they_were() -> None:
    given = tensors()
    offer, blob = pack(given.items(), version=4)
    assert (offer.version, offer.kind, offer.base_version, offer.address) == (4, "full", None, None)
    assert blob.dtype == np.uint8 and len(blob) % ALIGNMENT == 0
    verify(replace(offer, address=blob))
    found = open_tensors(offer.manifest, blob)
    assert list(found) == list(given)
    for name, tensor in given.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape
        assert torch.equal(found[name], tensor.detach())


def test_a_block_is_opened_without_a_copy() -> None:
    offer, blob = pack(tensors().items(), version=1)
    found = open_tensors(offer.manifest, blob)
    blob[:] = 0
    assert not found["matrix"].any()


@pytest.mark.parametrize("damage", ["byte", "length", "checksum"])
def test_damage_is_noticed_and_named(damage: str) -> None:
    offer, blob = pack(tensors().items(), version=4)
    if damage == "byte":
        blob[3] ^= 1
    if damage == "length":
        blob = blob[:-ALIGNMENT]
    if damage == "checksum":
        first, *others = offer.manifest
        offer = replace(offer, manifest=(replace(first, checksum="0" * 16), *others))
    with pytest.raises(WeightError, match="policy version 4 are" if damage == "length" else "the checksum of matrix"):
        verify(replace(offer, address=blob))


def layout_of(given: dict[str, torch.Tensor]) -> Layout:
    return Layout((name, tensor.dtype, tensor.shape) for name, tensor in given.items())


def test_a_version_is_written_over_the_one_before_and_a_reader_of_half_of_it_is_told() -> None:
    given = tensors()
    layout = layout_of(given)
    room = np.empty(layout.size, np.uint8)
    old = layout.write(given.items(), room, version=4)
    verify(replace(old, address=room))

    def half_way() -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in given.items():
            yield name, tensor.detach() + 1
            with pytest.raises(WeightError, match="policy version 4 arrived damaged"):
                verify(replace(old, address=room))

    new = layout.write(half_way(), room, version=5)
    verify(replace(new, address=room))
    assert all(torch.equal(tensor, given[name] + 1) for name, tensor in open_tensors(new.manifest, room).items())


def test_values_become_the_layout_s_dtype_as_torch_rounds_them() -> None:
    value = torch.randn(50, generator=torch.Generator().manual_seed(1))
    layout = Layout([("w", torch.bfloat16, (50,))])
    room = np.empty(layout.size, np.uint8)
    offer = layout.write([("w", value)], room, version=1)
    assert torch.equal(open_tensors(offer.manifest, room)["w"], value.bfloat16())


@pytest.mark.parametrize(
    "others", [{"other": torch.ones(2)}, {"w": torch.ones(3)}, {}, {"w": torch.ones(2), "x": torch.ones(1)}]
)
def test_other_tensors_than_the_layout_s_are_refused(others: dict[str, torch.Tensor]) -> None:
    layout = Layout([("w", torch.float32, (2,))])
    with pytest.raises(ValueError, match=r"belongs|shorter|longer"):
        layout.write(others.items(), np.empty(layout.size, np.uint8), version=1)
