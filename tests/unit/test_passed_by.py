"""DAPO's filter with the real feed, work buffer and moments: what is trained on, what is history, and what a resume makes of it."""

import json
from pathlib import Path
from typing import Any

import pytest

from actors.prompts.feed import PromptFeed
from deploy.run.work import WorkBuffer
from moments_service.config import ClusterConfig, MomentsConfig
from moments_service.messages.batch import Batch
from moments_service.messages.groups import GroupStatus
from moments_service.seeding import derive_seed
from moments_service.service import MomentsService
from tests.unit.test_feed_and_moments import POOL, prompt_set, sampled, seen

pytestmark = pytest.mark.unit

GROUPS, MOST = 6, 3
CONFIG = MomentsConfig(clusters=ClusterConfig(by="source"))


class Driver:
    """The part of a run that a batch goes through, without engines: groups come back in an order of their own."""

    def __init__(self, service: MomentsService, luck: int) -> None:
        self.service, self.luck = service, luck
        self.feed = PromptFeed(POOL, 3, group_size=4, order="mopps")
        self.work = WorkBuffer(self.feed, GROUPS, max_staleness=0, generation_batches=MOST)
        self.waiting: list[Any] = []
        self.passed = 0

    def pump(self) -> None:
        while (ticket := self.work.next()) is not None:
            self.work.sent(ticket.group_id, 0)
            self.waiting.append(ticket)

    async def sample(self, most: int = 1000) -> None:
        self.work.fill()
        self.pump()
        while self.waiting and most > 0:
            most -= 1
            self.waiting.sort(key=lambda ticket: derive_seed(self.luck, ticket.group_id))
            header = sampled(self.waiting.pop())
            await self.service.submit(header, "payload" if header.status is GroupStatus.SCORED else None)
            if header.uniform and self.work.may_pass(header.group_id):
                await self.service.mark_lost((header.group_id,))
                self.work.pass_by(header.group_id)
                self.passed += 1
            elif header.status is GroupStatus.SCORED:
                self.work.ready(header.group_id)
            else:
                self.work.close(header.group_id)
            self.pump()

    async def step(self, number: int) -> Batch:
        await self.sample()
        batch = await self.service.draw(number, await self.work.take(number))
        await self.service.commit(number, policy_version=number + 1)
        self.feed.learn(await self.service.expected_signal())
        self.work.release(number, number + 1)
        return batch


async def opened(directory: Path, incarnation: int = 0, snapshot: Path | None = None) -> MomentsService:
    service = MomentsService(CONFIG, directory, seed=0, incarnation=incarnation, snapshot=snapshot)
    await service.fit_clusters(prompt_set())
    return service


async def test_k_steps_a_resume_and_k_steps_are_2k_steps(tmp_path: Path) -> None:
    run, snapshot = tmp_path / "run", tmp_path / "snapshot"
    snapshot.mkdir()
    driver, batches, saved = Driver(await opened(run), luck=0), [], {}
    for number in range(12):
        batches.append(await driver.step(number))
        if number == 5:
            await driver.service.snapshot(snapshot)
            await driver.sample(most=9)  # of the next step; some of them are passed by before the feed is saved
            saved = json.loads(json.dumps(driver.feed.state(driver.work.unfinished())))
            assert len(saved["in_flight"]) > GROUPS
    await driver.service.close()

    resumed = Driver(await opened(run, incarnation=1, snapshot=snapshot), luck=7)
    resumed.work.restore(resumed.feed.load_state(saved), version=6)
    resumed.feed.learn(await resumed.service.expected_signal())
    again = [await resumed.step(number) for number in range(6, 12)]
    await resumed.service.close()
    assert [seen(batch) for batch in again] == [seen(batch) for batch in batches[6:]]


async def test_what_is_passed_by_is_history_and_not_trained_on(tmp_path: Path) -> None:
    driver = Driver(await opened(tmp_path), luck=0)
    for number in range(4):
        before = driver.passed
        batch = await driver.step(number)
        outcomes = (await driver.service.expected_signal()).outcomes
        assert outcomes is not None and len(batch.group_ids) == GROUPS
        # The commit took in as many more groups as were passed by, and those have equal rewards.
        assert len(outcomes.prompts) == GROUPS + driver.passed - before
        trained = sum(len(set(row)) == 1 for row in batch.table.rewards.tolist())
        assert outcomes.uniform.sum() == driver.passed - before + trained
    counts = (await driver.service.stats())["counts"]
    await driver.service.close()
    assert counts["trained"] == 4 * GROUPS and counts["lost"] == driver.passed > GROUPS
