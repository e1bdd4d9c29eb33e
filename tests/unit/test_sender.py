"""How an actor's groups travel to the moments service. The service is a fake that answers when the test says so."""

import asyncio
from typing import Any

import pytest

from actors.rollout.sender import GroupSender
from moments_service.messages.groups import ScoredGroup, Transcript
from moments_service.messages.table import GroupTable

pytestmark = pytest.mark.unit


class SlowService:
    """Takes calls, and acknowledges or refuses each when it is told to."""

    def __init__(self) -> None:
        self.submit_table = self
        self.calls: list[tuple[GroupTable, list[Any], list[Any]]] = []
        self.answers: list[asyncio.Future[None]] = []

    def remote(self, table: GroupTable, payloads: list[Any], transcripts: list[Any]) -> asyncio.Future[None]:
        self.calls.append((table, payloads, transcripts))
        self.answers.append(asyncio.get_running_loop().create_future())
        return self.answers[-1]


def group(number: int) -> ScoredGroup:
    return ScoredGroup(
        group_id=f"g{number}",
        prompt_id=f"p{number}",
        source="sums",
        sequence=number,
        rewards=(1.0,) * (number + 1),
        errors=(None,) * (number + 1),
        lengths=(3,) * (number + 1),
        truncated=(False,) * (number + 1),
        policy_versions=(0, 0),
    )


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_groups_that_wait_for_a_call_travel_together_in_the_next() -> None:
    service = SlowService()
    sender = GroupSender(service)
    text = Transcript("1+1=", ("2",))
    first = asyncio.create_task(sender.submit(group(0), "tokens of g0", text))
    await settle()
    others = [asyncio.create_task(sender.submit(group(number), None, None)) for number in (1, 2)]
    await settle()
    assert len(service.calls) == 1 and not first.done()

    service.answers[0].set_result(None)
    await settle()
    assert first.done() and not any(other.done() for other in others)
    table, payloads, transcripts = service.calls[1]
    assert table.group_ids == ("g1", "g2") and table.sizes.tolist() == [2, 3]
    assert payloads == [None, None] and transcripts == [None, None]
    assert service.calls[0][1:] == (["tokens of g0"], [text])
    service.answers[1].set_result(None)
    await asyncio.gather(first, *others)

    last = asyncio.create_task(sender.submit(group(3), None, None))
    await settle()
    assert len(service.calls) == 3
    service.answers[2].set_result(None)
    await last


async def test_a_call_that_fails_reaches_whoever_waits_for_it_and_nobody_else() -> None:
    service = SlowService()
    sender = GroupSender(service)
    refused = asyncio.create_task(sender.submit(group(0), None, None))
    await settle()
    given_up, accepted = (asyncio.create_task(sender.submit(group(number), None, None)) for number in (1, 2))
    await settle()
    given_up.cancel()
    service.answers[0].set_exception(RuntimeError("the disk is full"))
    await settle()
    with pytest.raises(RuntimeError, match="the disk is full"):
        await refused
    # Who gave up does not keep a group from being taken in.
    assert service.calls[1][0].group_ids == ("g1", "g2")
    service.answers[1].set_result(None)
    await accepted
