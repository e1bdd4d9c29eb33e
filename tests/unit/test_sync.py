"""Push and pull of weights are two events, and what goes wrong in either is raised."""

import asyncio

import pytest

from actors.weights.offer import WeightOffer
from deploy.run.sync import WeightSync

pytestmark = pytest.mark.unit


class Ends:
    """A learner and a fleet that end when the test lets them."""

    def __init__(self) -> None:
        self.may_push, self.may_pull = asyncio.Event(), asyncio.Event()
        self.delivered: list[int] = []
        self.error: Exception | None = None

    async def offer(self, version: int) -> WeightOffer:
        await self.may_push.wait()
        if self.error is not None:
            raise self.error
        return WeightOffer(version, "full", None, (), None)

    async def deliver(self, offer: WeightOffer) -> None:
        await self.may_pull.wait()
        self.delivered.append(offer.version)


@pytest.fixture
def ends() -> Ends:
    return Ends()


@pytest.fixture
def sync(ends: Ends) -> WeightSync:
    return WeightSync(ends, ends)


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_the_learner_may_go_on_before_every_engine_has_its_weights(ends: Ends, sync: WeightSync) -> None:
    sync.start(1)
    pushed, settled = asyncio.create_task(sync.pushed()), asyncio.create_task(sync.settle())
    await settle()
    assert not pushed.done()
    ends.may_push.set()
    await settle()
    assert pushed.done() and not settled.done()
    ends.may_pull.set()
    await settled
    assert ends.delivered == [1]
    sync.start(2)
    await sync.settle()
    assert ends.delivered == [1, 2]


async def test_one_version_is_on_its_way_at_a_time(sync: WeightSync) -> None:
    await sync.pushed()
    await sync.settle()
    sync.start(1)
    with pytest.raises(RuntimeError, match="version 2 cannot be sent"):
        sync.start(2)
    await sync.close()


async def test_what_fails_is_raised_where_it_is_waited_for(ends: Ends, sync: WeightSync) -> None:
    ends.error = RuntimeError("rank 0 died")
    ends.may_push.set()
    sync.start(1)
    with pytest.raises(RuntimeError, match="rank 0 died"):
        await sync.settle()
    await sync.close()


async def test_whoever_stops_waiting_stops_nothing(ends: Ends, sync: WeightSync) -> None:
    sync.start(1)
    waiting = asyncio.create_task(sync.settle())
    await settle()
    waiting.cancel()
    await settle()
    ends.may_push.set()
    ends.may_pull.set()
    await sync.settle()
    assert ends.delivered == [1]
