"""The rollout fleet while actors die and come back: weights, evaluation, who serves. The actors are fakes that never sleep."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, RayActorError, RayTaskError

from actors.prompts.prompt import Prompt, Ticket
from actors.rollout.evaluated import EvaluatedGroup, EvaluationDraw
from actors.weights.offer import WeightOffer, WeightsReleasedError
from deploy.run import fleet as fleet_module
from deploy.run.errors import ServiceDiedError
from deploy.run.fleet import RolloutFleet
from tests.made_evaluations import judged
from tests.unit.test_placement import recipe

pytestmark = pytest.mark.unit

PROMPTS = [Prompt(prompt_id=str(i), source="sums", text=f"{i}", answer="", verifier="exact") for i in range(5)]


class Method:
    """`actor.method.remote(...)`"""

    def __init__(self, call: Any) -> None:
        self.remote = call


class FakeActor:
    """Takes the newest weights in `ready` once it is up; dies when told to."""

    def __init__(self) -> None:
        self.up = asyncio.Event()
        self.up.set()
        self.dead = False
        self.weights: list[object] = []
        self.released: list[object] = []
        self.ready = Method(self._ready)
        self.evaluate = Method(self._evaluate)
        self.live = Method(self._live)
        self.rollout = Method(self._kept_when_dead)
        self.take = Method(self._kept_when_dead)
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.death = asyncio.Event()

    async def _ready(self, update: object) -> int:
        await self.up.wait()
        self.dead = False
        self.weights.append(update)
        if update in self.released:
            raise WeightsReleasedError("gone")
        return 0

    async def _live(self) -> None:
        await self.death.wait()
        raise RayActorError

    async def _kept_when_dead(self, *_: object) -> str:
        if self.dead:  # Ray keeps the call for the next life
            await self.up.wait()
        await self.may_answer.wait()
        return "answer"

    async def _evaluate(self, prompts: list[Prompt], how: EvaluationDraw) -> list[EvaluatedGroup]:
        if self.dead:
            raise RayActorError
        return [judged(*[float(prompt.prompt_id)] * how.samples) for prompt in prompts]

    def die(self) -> None:
        self.dead = True
        self.up.clear()
        self.death.set()
        self.death = asyncio.Event()


def offer(version: int) -> WeightOffer:
    return WeightOffer(version, "full", None, (), None)


@pytest.fixture
def actors(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[FakeActor]]:
    made = [FakeActor(), FakeActor()]

    async def reserve(part: object, timeout_s: float) -> None: ...

    monkeypatch.setattr(fleet_module, "reserve", reserve)
    monkeypatch.setattr(fleet_module, "spawn_rollout_actors", lambda *_, **__: made)
    monkeypatch.setattr(RolloutFleet, "nodes", lambda self: ["10.0.0.1"] * 2)
    yield made


@pytest.fixture
async def fleet(actors: list[FakeActor]) -> RolloutFleet:
    fleet = RolloutFleet(recipe(rollout__actors=2, rollout__update_timeout_s=0.05, start_timeout_s=0.01), [])
    await fleet.start()
    return fleet


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_death_between_two_calls_is_noticed(fleet: RolloutFleet, actors: list[FakeActor]) -> None:
    died: list[int] = []
    fleet.on_death = died.append
    await settle()
    actors[1].die()
    await settle()
    assert died == [1]


async def test_a_call_that_ray_keeps_for_the_next_life_of_an_actor_is_taken_back(
    fleet: RolloutFleet, actors: list[FakeActor], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken_back: list[object] = []
    monkeypatch.setattr(fleet_module.ray, "cancel", taken_back.append)
    ticket = Ticket("0:0:0:0", PROMPTS[0], group_size=2, sequence=0)
    assert await fleet.rollout(1, ticket, None) == "answer"
    await settle()
    actors[1].die()
    sampling = asyncio.create_task(fleet.rollout(1, ticket, None))
    await settle()
    with pytest.raises(RayActorError, match="rollout actor 1 died before it answered"):
        await sampling
    assert len(taken_back) == 1 and not fleet.serving(1)
    actors[1].up.set()
    await fleet.revive(1)
    assert await fleet.rollout(1, ticket, None) == "answer"


async def test_an_actor_that_comes_back_while_weights_are_on_their_way_waits_for_them(
    fleet: RolloutFleet, actors: list[FakeActor]
) -> None:
    actors[0].may_answer.clear()
    fleet.suspend(1)
    delivering = asyncio.create_task(fleet.deliver(offer(1)))
    await settle()
    returning = asyncio.create_task(fleet.revive(1))
    await settle()
    assert not fleet.serving(1)
    actors[0].may_answer.set()
    await asyncio.gather(delivering, returning)
    assert fleet.serving(1) and actors[1].weights[-1] == offer(1)


async def test_an_actor_that_comes_back_too_late_for_its_weights_takes_newer_ones(
    fleet: RolloutFleet, actors: list[FakeActor]
) -> None:
    await fleet.deliver(offer(1))
    actors[1].die()
    fleet.suspend(1)
    returning = asyncio.create_task(fleet.revive(1))
    await settle()
    for version in (2, 3):
        await fleet.deliver(offer(version))
    actors[1].released = [offer(1), offer(2)]
    actors[1].up.set()
    await returning
    assert fleet.serving(1) and actors[1].weights[-2:] == [offer(1), offer(3)]


async def test_newest_weights_that_are_gone_end_the_run(fleet: RolloutFleet, actors: list[FakeActor]) -> None:
    await fleet.deliver(offer(1))
    fleet.suspend(1)
    actors[1].released = [offer(1)]
    with pytest.raises(WeightsReleasedError):
        await fleet.revive(1)


async def test_whoever_dies_over_new_weights_is_told_of_and_the_others_have_them(
    fleet: RolloutFleet, actors: list[FakeActor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet_module.ray, "cancel", lambda call: None)
    died: list[int] = []
    fleet.on_death = died.append
    await settle()
    actors[0].die()
    await fleet.deliver(offer(3))
    assert 0 in died and 1 not in died and fleet.latest_offer == offer(3)


async def test_whoever_hangs_over_new_weights_is_ended_and_the_run_goes_on(
    fleet: RolloutFleet, actors: list[FakeActor], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    killed: list[object] = []
    monkeypatch.setattr(fleet_module.ray, "kill", lambda actor, no_restart: killed.append(actor))
    monkeypatch.setattr(fleet_module.ray, "cancel", lambda call: None)
    actors[1].may_answer.clear()
    await fleet.deliver(offer(2))
    assert killed == [actors[1]] and fleet.serving(0) and not fleet.serving(1)
    assert "rollout actor 1 does not answer in 0.05 s (rollout.update_timeout_s)" in caplog.text


async def test_an_actor_that_is_doubted_gets_nothing_until_it_answers(
    fleet: RolloutFleet, actors: list[FakeActor]
) -> None:
    actors[0].up.clear()
    assert fleet.doubt(0) and not fleet.doubt(0)
    asking = asyncio.create_task(fleet.answers(0))
    await settle()
    assert [fleet.pick(), fleet.pick()] == [1, 1]
    actors[0].up.set()
    assert await asking
    assert fleet.pick() == 0


async def test_an_evaluation_gives_the_share_of_a_dead_actor_to_the_others(
    fleet: RolloutFleet, actors: list[FakeActor]
) -> None:
    actors[1].die()
    samples = recipe().evaluation.samples
    assert [one.rewards for one in await fleet.evaluate(PROMPTS)] == [(float(i),) * samples for i in range(5)]
    assert not fleet.serving(1)


async def test_an_evaluation_waits_where_nobody_serves(fleet: RolloutFleet, actors: list[FakeActor]) -> None:
    for actor in actors:
        actor.die()
    evaluating = asyncio.create_task(fleet.evaluate(PROMPTS))
    await settle()
    assert not evaluating.done()
    actors[0].up.set()
    await fleet.revive(0)
    assert len(await evaluating) == 5


async def test_a_missing_actor_is_waited_for_while_others_serve_and_ends_the_run_when_none_does(
    fleet: RolloutFleet, actors: list[FakeActor], caplog: pytest.LogCaptureFixture
) -> None:
    actors[1].die()
    fleet.suspend(1)
    returning = asyncio.create_task(fleet.revive(1))
    while "goes on without it" not in caplog.text:  # noqa: ASYNC110 - the log is all that tells
        await asyncio.sleep(0.001)
    assert "rollout actor 1 died; going on with 1 of 2" in caplog.text
    fleet.suspend(0)
    with pytest.raises(
        TimeoutError, match="no rollout actor serves, and rollout actor 1 did not start its engine again"
    ):
        await returning


async def test_an_actor_that_hangs_in_an_evaluation_is_killed_and_the_others_take_over(
    fleet: RolloutFleet, actors: list[FakeActor], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    killed: list[object] = []
    monkeypatch.setattr(fleet_module.ray, "kill", lambda actor, no_restart: killed.append(actor))
    monkeypatch.setattr(fleet_module.ray, "cancel", lambda call: None)
    stopped = asyncio.Event()
    actors[1].up.clear()  # nor does it say that it is alive
    actors[1].evaluate = Method(lambda *_: stopped.wait())
    rewards = await fleet.evaluate(PROMPTS)
    assert [one.rewards[0] for one in rewards] == [float(prompt.prompt_id) for prompt in PROMPTS]
    assert killed == [actors[1]] and not fleet.serving(1)
    assert "does not answer in 0.05 s (rollout.update_timeout_s) when it is asked whether it is alive" in caplog.text


async def test_an_actor_that_evaluates_for_long_and_says_that_it_lives_is_left_alone(
    fleet: RolloutFleet, actors: list[FakeActor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet_module.ray, "kill", lambda *_, **__: pytest.fail("it was alive"))
    asked = asyncio.Event()

    async def ready(update: object) -> int:
        actors[1].weights.append(update)
        if len(actors[1].weights) > 3:
            asked.set()
        return 0

    async def evaluate(prompts: list[Prompt], how: EvaluationDraw) -> list[EvaluatedGroup]:
        await asked.wait()
        return [judged(*[1.0] * how.samples) for _ in prompts]

    actors[1].ready, actors[1].evaluate = Method(ready), Method(evaluate)
    assert len(await fleet.evaluate(PROMPTS)) == len(PROMPTS) and fleet.serving(1)


async def test_an_actor_s_own_timeout_is_neither_a_hang_nor_a_late_start(
    fleet: RolloutFleet, actors: list[FakeActor], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ready(update: object) -> int:
        raise TimeoutError("the file system did not answer")

    monkeypatch.setattr(fleet_module.ray, "kill", lambda *_, **__: pytest.fail("it answered"))
    actors[1].ready = Method(ready)
    with pytest.raises(TimeoutError, match="the file system did not answer"):
        await fleet.answers(1)
    fleet.suspend(1)
    with pytest.raises(TimeoutError, match="the file system did not answer"):
        await fleet.start()


async def test_an_actor_that_tells_of_the_death_of_the_moments_service_lives(
    fleet: RolloutFleet, actors: list[FakeActor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray gives an error that was raised in an actor the type of its cause as well."""
    monkeypatch.setattr(fleet_module.ray, "cancel", lambda call: None)
    told = RayTaskError("rollout", "where it was raised", ActorDiedError()).as_instanceof_cause()
    assert isinstance(told, RayActorError)

    async def tell(*_: object) -> None:
        raise told

    actors[0].rollout = Method(tell)
    with pytest.raises(ServiceDiedError, match="the moments service died"):
        await fleet.rollout(0, Ticket("0:0:0:0", PROMPTS[0], 2, 0), None)
    assert fleet.serving(0)
