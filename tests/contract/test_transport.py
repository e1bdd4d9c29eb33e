"""What every weight transport keeps to, whatever way it takes."""

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from actors.weights.block import Layout, open_tensors, verify
from actors.weights.object_store import ObjectStoreConfig
from actors.weights.offer import WeightOffer, WeightsReleasedError
from actors.weights.registry import TransportConfig
from actors.weights.shared_memory import SharedMemoryConfig
from actors.weights.transport import TransportKind, fetched
from deploy.config.recipe import models_in

pytestmark = pytest.mark.contract

CASES: dict[str, Callable[[Path], TransportKind]] = {
    "object_store": lambda directory: ObjectStoreConfig(),
    "shared_memory": lambda directory: SharedMemoryConfig(),
}
"""Every kind, in a directory that it may use."""

every_transport = pytest.mark.parametrize("name", CASES)


def tensors_of(version: int) -> dict[str, torch.Tensor]:
    """A policy that no other version is."""
    values = torch.arange(700, dtype=torch.float32) + version
    return {"matrix": values.reshape(7, 100), "half": values.bfloat16()}


def ends(name: str, directory: Path) -> tuple[Any, Any]:
    """The learner's end and a rollout actor's, from options that went to other processes."""
    options = CASES[name](directory)
    return options.create(), pickle.loads(pickle.dumps(options)).create()


def placed(learner: Any, version: int) -> tuple[WeightOffer, Any]:
    """Version `version`, placed; as the learner offers it, with what went through Ray beside it."""
    tensors = tensors_of(version)
    layout = Layout((name, tensor.dtype, tensor.shape) for name, tensor in tensors.items())
    room = learner.room(layout.size)
    offer = layout.write(tensors.items(), room, version)
    return offer, pickle.loads(pickle.dumps(learner.place(room, version, elsewhere=False)))


@every_transport
async def test_the_bytes_arrive_as_they_were(name: str, tmp_path: Path) -> None:
    learner, actor = ends(name, tmp_path)
    offer, place = placed(learner, 1)

    async def arriving() -> Any:
        return place

    found = await fetched(replace(offer, address=arriving()), actor)
    verify(found)
    arrived = open_tensors(offer.manifest, found.address)
    assert arrived.keys() == tensors_of(1).keys()
    assert all(torch.equal(arrived[name], tensor) for name, tensor in tensors_of(1).items())
    assert replace(found, address=None, path=None) == offer
    if found.path is not None:
        assert np.array_equal(np.fromfile(found.path, np.uint8)[: len(found.address)], found.address)


@every_transport
def test_the_version_before_is_kept_for_actors_that_come_back(name: str, tmp_path: Path) -> None:
    learner, actor = ends(name, tmp_path)
    before, now = placed(learner, 4), placed(learner, 5)
    for offer, place in (before, now, before):
        verify(replace(offer, address=actor.open(place)[0]))


@every_transport
def test_older_versions_are_there_or_released_and_what_was_opened_stays(name: str, tmp_path: Path) -> None:
    learner, actor = ends(name, tmp_path)
    first, place = placed(learner, 1)
    opened = replace(first, address=actor.open(place)[0])
    for version in (2, 3, 4):
        placed(learner, version)
    verify(opened)
    try:
        verify(replace(first, address=actor.open(place)[0]))
    except WeightsReleasedError as error:
        assert str(error)


@every_transport
def test_a_run_that_resumes_places_versions_again(name: str, tmp_path: Path) -> None:
    first_life, _ = ends(name, tmp_path)
    for version in (6, 7, 8):
        placed(first_life, version)
    learner, actor = ends(name, tmp_path)
    for version in (6, 7):
        offer, place = placed(learner, version)
        verify(replace(offer, address=actor.open(place)[0]))


def test_every_kind_is_tried() -> None:
    assert {model.model_fields["kind"].default for model in models_in(TransportConfig)} == CASES.keys()
