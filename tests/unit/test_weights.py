"""The block of bytes in which weights travel: every dtype and shape comes back as it was, and damage is noticed."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from actors.weights.block import ALIGNMENT, open_tensors, pack, verify
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
        offer = replace(offer, manifest=(replace(first, checksum="0" * 64), *others))
    with pytest.raises(WeightError, match="policy version 4 are" if damage == "length" else "sha256 of matrix"):
        verify(replace(offer, address=blob))
