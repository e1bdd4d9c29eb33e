"""The reward pool with its real processes: what misbehaves is an error of its own completion, and never a reward."""

import asyncio
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from actors.config import RewardsConfig
from actors.prompts.prompt import Prompt
from actors.rewards import process, supervisor
from actors.rewards.pool import RewardPool, RewardPoolClosedError, UnloadableVerifierError
from actors.rewards.process import VerifierProcess, pid_namespace_allowed
from actors.rewards.protocol import Attempt, Verdict
from actors.rewards.thread import RewardThread

pytestmark = pytest.mark.unit

OBEY = "hostile_verifiers:obey"
LATER = "hostile_verifiers:obey_later"


@pytest.fixture
async def pool(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RewardPool]:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    pool = RewardPool(RewardsConfig(timeout_s=60.0))
    yield pool
    await pool.close()


def prompt(verifier: str = OBEY, answer: str = "4") -> Prompt:
    return Prompt(prompt_id="p", source="s", text="2 + 2", answer=answer, verifier=verifier)


async def judge(pool: RewardPool, asked: Prompt, completions: list[str]) -> list[Verdict]:
    return await pool.judge(asked, [Attempt(text, index) for index, text in enumerate(completions)])


def below(pool: RewardPool) -> list[psutil.Process]:
    """Of the pool's one verifier: its supervisor, who gets the orphans, and the verifier itself."""
    (busy,) = pool._processes
    line = [psutil.Process(busy.process._process.pid)]
    while len(line) < 3:
        # What it started may be given to who gets the orphans, too; it was there before.
        line.append(min(line[-1].children(), key=lambda child: (child.create_time(), child.pid)))
    return line


def in_namespace(other: psutil.Process) -> bool:
    return not Path(f"/proc/{other.pid}/ns/pid").samefile("/proc/self/ns/pid")


class Trace:
    """A named pipe; whoever is asked to holds it open as long as it lives. No id: the same one means others elsewhere."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path, self._waiting = path, select.poll()
        self._handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        self._waiting.register(self._handle, 0)  # for its hanging up, which it does after somebody had held it

    def lives(self) -> bool:
        return not self._waiting.poll(0)

    def ends(self) -> bool:
        """Within a minute: a kill is delivered after the call that sends it returns."""
        return bool(self._waiting.poll(60_000))


@pytest.fixture
def trace(tmp_path: Path) -> Trace:
    return Trace(tmp_path / "trace")


@pytest.fixture(params=[True, False], ids=["namespace", "none"])
def namespace(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Where it is not allowed, nothing else may be asked of the kernel."""
    monkeypatch.setattr(process, "pid_namespace_allowed", lambda: request.param and pid_namespace_allowed())
    return bool(request.param)


async def test_rewards_come_back_in_order(pool: RewardPool) -> None:
    scores = await judge(pool, prompt("numeric"), ["4", "5", "it is 4.", ""])
    assert scores == [Verdict(1.0, None), Verdict(0.0, None), Verdict(1.0, None), Verdict(0.0, None)]
    assert await judge(pool, prompt("numeric"), []) == []


@pytest.mark.parametrize(
    ("completion", "reason"),
    [
        ("raise no luck", "verifier raised RuntimeError: no luck"),
        ("return nan", "verifier returned nan"),
        ("return inf", "verifier returned inf"),
        ("return text", "verifier returned str, not a number"),
        ("return none", "verifier returned NoneType, not a number"),
        ("parts {}", "verifier raised ValueError: a reward of 0 parts; there may be 1 to 16"),
        (
            'parts {"right": "1"}',
            "verifier raised ValueError: 'right': '1' is no part of a reward; a name of up to 40 characters and a number is",
        ),
        ('parts {"right": NaN}', "verifier returned nan"),
        ("exit 0", "verifier ended its process with exit code 0"),
        ("sys.exit 3", "verifier raised SystemExit: 3"),
        ("segfault", "verifier was killed by SIGSEGV"),
    ],
)
async def test_only_the_misbehaving_completion_is_an_error(pool: RewardPool, completion: str, reason: str) -> None:
    scores = await judge(pool, prompt(), ["0.25", completion, "1"])
    assert scores == [Verdict(0.25, None), Verdict(None, reason), Verdict(1.0, None)]


@pytest.mark.parametrize("completion", ["hang", "regex"])
async def test_a_hanging_verifier_is_killed_and_the_others_are_scored(
    monkeypatch: pytest.MonkeyPatch, completion: str
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    pool = RewardPool(RewardsConfig(timeout_s=2.0))
    scores = await judge(pool, prompt(), ["0.25", completion, "1"])
    await pool.close()
    assert scores == [Verdict(0.25, None), Verdict(None, "verifier timed out after 2 s"), Verdict(1.0, None)]


async def test_a_reward_may_have_parts(pool: RewardPool) -> None:
    scores = await judge(pool, prompt(), ['parts {"right": 1, "format": 0.25}', "0.5"])
    assert scores == [Verdict(1.25, None, {"right": 1.0, "format": 0.25}), Verdict(0.5, None)]


async def test_reasons_are_short(pool: RewardPool) -> None:
    (score,) = await judge(pool, prompt(), ["raise " + "x" * 10_000])
    assert score.error is not None and len(score.error) < 250


async def test_booleans_are_numbers_and_prints_are_harmless(pool: RewardPool) -> None:
    assert await judge(pool, prompt(), ["return true", "print"]) == [Verdict(1.0, None), Verdict(0.5, None)]


async def test_groups_scored_at_once_do_not_mix(pool: RewardPool) -> None:
    groups = [[f"{i}", "exit 1" if i % 5 == 0 else f"{i + 0.5}"] for i in range(20)]
    for i, scores in enumerate(await asyncio.gather(*(judge(pool, prompt(), group) for group in groups))):
        assert scores[0] == Verdict(float(i), None)
        assert scores[1].reward == (None if i % 5 == 0 else i + 0.5)


async def test_a_cancelled_caller_leaves_the_pipe_in_step(pool: RewardPool) -> None:
    await pool.start([OBEY])
    cancelled = asyncio.create_task(judge(pool, prompt(), ["7", "7"]))
    await asyncio.sleep(0)
    cancelled.cancel()
    assert await judge(pool, prompt(), ["1", "2"]) == [Verdict(1.0, None), Verdict(2.0, None)]


@pytest.mark.parametrize(
    ("verifier", "reason"),
    [("numerik", "did you mean `numeric`"), ("no_such_module:f", "No module named 'no_such_module'")],
)
async def test_a_verifier_that_cannot_be_loaded_is_an_error(pool: RewardPool, verifier: str, reason: str) -> None:
    scores = await judge(pool, prompt(verifier), ["4", "4"])
    assert [score.reward for score in scores] == [None, None]
    assert all(score.error is not None and reason in score.error for score in scores)
    with pytest.raises(UnloadableVerifierError, match=f"verifier `{verifier}` does not start"):
        await pool.start([verifier])


@pytest.mark.usefixtures("namespace")
@pytest.mark.parametrize(("killed", "started"), [(0, "hold"), (1, "daemon"), (2, "daemon")])
async def test_a_child_that_died_between_requests_is_replaced(
    pool: RewardPool, trace: Trace, killed: int, started: str
) -> None:
    """Also where it was its supervisor, or who gets the orphans."""
    await judge(pool, prompt(), [f"{started} {trace.path}"])
    line = below(pool)
    line[killed].kill()
    await asyncio.to_thread(line[-1].wait, 60)
    assert await asyncio.to_thread(trace.ends)
    assert await judge(pool, prompt(), ["1"]) == [Verdict(1.0, None)]


@pytest.mark.usefixtures("namespace")
@pytest.mark.parametrize("started", ["spawn", "daemon"])
@pytest.mark.parametrize(
    ("then", "error"),
    [
        ("exit 1", "ended its process with exit code 1"),
        ("segfault", "was killed by SIGSEGV"),
        ("hang", "timed out after 2 s"),
    ],
)
async def test_what_a_verifier_started_dies_with_it(
    monkeypatch: pytest.MonkeyPatch, trace: Trace, started: str, then: str, error: str
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    pool = RewardPool(RewardsConfig(timeout_s=2.0 if then == "hang" else 60.0))
    await pool.start([OBEY])
    assert await judge(pool, prompt(), [f"{started} {trace.path}"]) == [Verdict(1.0)]
    assert trace.lives()
    assert await judge(pool, prompt(), [then]) == [Verdict(None, f"verifier {error}")]
    assert await asyncio.to_thread(trace.ends)
    await pool.close()


@pytest.mark.usefixtures("namespace")
@pytest.mark.parametrize("started", ["hold", "spawn", "daemon"])
async def test_close_leaves_nothing_running(pool: RewardPool, trace: Trace, started: str) -> None:
    assert await judge(pool, prompt(), [f"{started} {trace.path}"]) == [Verdict(1.0)]
    assert trace.lives()
    await pool.close()
    await pool.close()
    assert trace.ends()
    with pytest.raises(RewardPoolClosedError):
        await judge(pool, prompt(), ["1"])


async def test_a_verifier_finds_itself_by_its_id(pool: RewardPool, namespace: bool) -> None:
    """In a namespace its id is small, and /proc is of the namespace, too."""
    assert await judge(pool, prompt(), ["look"]) == [Verdict(1.0)]
    assert [in_namespace(each) for each in below(pool)] == [False, *[namespace and pid_namespace_allowed()] * 2]


async def test_close_ends_a_request_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    pool = RewardPool(RewardsConfig(timeout_s=600))
    await pool.start([OBEY])
    request = asyncio.create_task(judge(pool, prompt(), ["hang"]))
    await asyncio.sleep(0)
    await pool.close()
    with pytest.raises(RewardPoolClosedError):
        await request


async def test_close_ends_a_request_that_its_process_does_not_take(pool: RewardPool, tmp_path: Path) -> None:
    """The process is busy for ever, and the pipe to it is full."""
    await pool.start([LATER])
    busy = asyncio.create_task(judge(pool, prompt(LATER), [f"touch {tmp_path / 'begun'}", "hang"]))
    while not (tmp_path / "begun").exists():  # noqa: ASYNC110 - another process makes it, and nothing tells us
        await asyncio.sleep(0.001)
    large = asyncio.create_task(judge(pool, prompt(LATER), ["x" * 50_000_000]))
    for _ in range(10):
        await asyncio.sleep(0)
    await asyncio.wait_for(pool.close(), timeout=60)
    for request in (busy, large):
        with pytest.raises(RewardPoolClosedError):
            await request


async def test_a_request_that_no_process_takes_has_a_deadline(pool: RewardPool, tmp_path: Path) -> None:
    asked = VerifierProcess(timeout_s=600.0, start_timeout_s=60.0)
    assert await asked.load(LATER) is None
    busy = asyncio.create_task(asked.judge(prompt(LATER), [Attempt(f"touch {tmp_path / 'begun'}"), Attempt("hang")]))
    while not (tmp_path / "begun").exists():  # noqa: ASYNC110 - another process makes it, and nothing tells us
        await asyncio.sleep(0.001)
    asked._start_timeout_s = 0.1
    assert await asked.judge(prompt(LATER), [Attempt("x" * 50_000_000)]) == ({}, "did not take its request in 0.1 s")
    assert (await busy)[1] == "did not take its request in 0.1 s"
    await asked.kill()


@pytest.mark.parametrize("started", ["hold", "spawn", "daemon"])
@pytest.mark.parametrize("allowed", [True, False])
def test_nothing_outlives_the_actor(trace: Trace, started: str, allowed: bool) -> None:
    """It is killed outright."""
    code = f"""
import asyncio, os
from actors.prompts.prompt import Prompt
from actors.config import RewardsConfig
from actors.rewards import process, supervisor
from actors.rewards.pool import RewardPool
from actors.rewards.protocol import Attempt

process.pid_namespace_allowed = {"process.pid_namespace_allowed" if allowed else "lambda: False"}

async def main():
    pool = RewardPool(RewardsConfig(timeout_s=600))
    prompt = Prompt("p", "s", "?", None, {OBEY!r})
    assert (await pool.judge(prompt, [Attempt("{started} {trace.path}")]))[0].reward == 1.0
    os.kill(os.getpid(), 9)

asyncio.run(main())
"""
    path = os.pathsep.join([str(Path(__file__).parent), *(entry for entry in sys.path if entry)])
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, capture_output=True, timeout=60, text=True
    )
    assert (done.returncode, done.stderr) == (-signal.SIGKILL, "")
    assert trace.ends()


async def test_a_slow_verifier_does_not_hold_up_groups_of_another(pool: RewardPool, tmp_path: Path) -> None:
    """The slow one is at work, and has more to do, until the others are done: it waits for what is written after them."""
    slow, gate = prompt("hostile_verifiers:read_pipe"), tmp_path / "gate"
    os.mkfifo(gate)
    await pool.start([slow.verifier, OBEY])
    slow_groups = [asyncio.create_task(judge(pool, slow, [str(gate)])) for _ in range(3)]
    far_end = await asyncio.to_thread(gate.open, "w")  # returns once a verifier reads
    for number in range(5):
        assert await judge(pool, prompt(), [str(number)]) == [Verdict(float(number))]
    assert not any(group.done() for group in slow_groups)
    for _ in slow_groups:
        far_end.write("0.5")
        await asyncio.to_thread(far_end.close)
        done, waiting = await asyncio.wait(slow_groups, return_when=asyncio.FIRST_COMPLETED)
        assert all(group.result() == [Verdict(0.5)] for group in done)
        slow_groups = list(waiting)
        if slow_groups:
            far_end = await asyncio.to_thread(gate.open, "w")


async def test_a_slow_group_does_not_hold_up_others_of_its_verifier(pool: RewardPool, tmp_path: Path) -> None:
    slow, gate, other = prompt("hostile_verifiers:read_pipe"), tmp_path / "gate", tmp_path / "other"
    os.mkfifo(gate)
    other.write_text("1")
    held_up = asyncio.create_task(judge(pool, slow, [str(gate)]))
    far_end = await asyncio.to_thread(gate.open, "w")
    assert await judge(pool, slow, [str(other)]) == [Verdict(1.0)]
    assert not held_up.done()
    far_end.write("0")
    await asyncio.to_thread(far_end.close)
    assert await held_up == [Verdict(0.0)]


async def test_async_verifiers_of_several_groups_wait_at_once_in_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    pool = RewardPool(RewardsConfig(timeout_s=60.0, processes=1))
    later = prompt(LATER)
    await pool.start([LATER])
    groups = await asyncio.gather(*(judge(pool, later, ["meet 6 there", "meet 6 there"]) for _ in range(3)))
    assert groups == [[Verdict(1.0), Verdict(1.0)]] * 3
    await pool.close()


async def test_an_async_verifier_that_takes_too_long_costs_nobody_else_anything(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    pool = RewardPool(RewardsConfig(timeout_s=1.0, processes=1))
    late, well = await asyncio.gather(*(judge(pool, prompt(LATER), texts) for texts in (["wait", "1"], ["0.5"])))
    assert late == [Verdict(None, "verifier timed out after 1 s"), Verdict(1.0)] and well == [Verdict(0.5)]
    await pool.close()


@pytest.mark.parametrize(
    ("completion", "error"),
    [("exit 3", "verifier ended its process with exit code 3"), ("segfault", "verifier was killed by SIGSEGV")],
)
async def test_an_async_verifier_that_dies_costs_only_its_own_completion(
    pool: RewardPool, completion: str, error: str
) -> None:
    """They were judged together, so nobody knows whose fault it was before each was judged alone."""
    await pool.start([LATER])
    first, second = await asyncio.gather(
        judge(pool, prompt(LATER), ["0.25", completion, "1"]), judge(pool, prompt(LATER), ["0.75", "meet 1 here"])
    )
    assert first == [Verdict(0.25), Verdict(None, error), Verdict(1.0)]
    assert second == [Verdict(0.75), Verdict(1.0)]


@pytest.mark.parametrize("verifier", [LATER, "hostile_verifiers:Ranked"])
async def test_a_death_is_not_blamed_on_who_shared_the_process(pool: RewardPool, tmp_path: Path, verifier: str) -> None:
    await pool.start([verifier])
    innocent = asyncio.create_task(judge(pool, prompt(verifier), [f"wait_in_the_first_life {tmp_path / 'begun'}"]))
    while not (tmp_path / "begun").exists():  # noqa: ASYNC110 - another process makes it, and nothing tells us
        await asyncio.sleep(0.001)
    (guilty,) = await judge(pool, prompt(verifier), ["exit" if "Ranked" in verifier else "exit 3"])
    assert guilty == Verdict(None, "verifier ended its process with exit code 3")
    assert await innocent == [Verdict(1.0, note=None if verifier == LATER else innocent.result()[0].note)]


async def test_a_verifier_may_judge_whole_groups(pool: RewardPool) -> None:
    ranked = prompt("hostile_verifiers:Ranked")
    verdicts = await judge(pool, ranked, ["a", "abc", "ab"])
    assert [(verdict.reward, str(verdict.note).strip()) for verdict in verdicts] == [
        (0, "1 of 3"),
        (1, "3 of 3"),
        (0, "2 of 3"),
    ]
    for text, error in (
        ("raise", "verifier raised RuntimeError: no luck"),
        ("exit", "verifier ended its process with exit code 3"),
        ("short", "verifier returned 0 verdicts of 2 attempts"),
    ):
        assert await judge(pool, ranked, ["a", text]) == [Verdict(None, error)] * 2
    assert [verdict.reward for verdict in await judge(pool, ranked, ["a", "bb"])] == [0, 1]


@pytest.mark.parametrize(
    ("forged", "error"),
    [
        ('{"request": "NONCE", "place": 9, "reward": 1, "error": null, "parts": null, "seconds": 0, "note": null}', "attempt 9"),
        ('{"request": "NONCE", "place": 0, "reward": NaN, "error": null, "parts": null, "seconds": 0, "note": null}', "cannot be"),
        ('{"request": "NONCE", "place": 0, "reward": null, "error": null, "parts": null, "seconds": 0, "note": null}', "cannot be"),
        ('{"request": "NONCE", "place": 0, "reward": "1", "error": null, "parts": null, "seconds": 0, "note": null}', "cannot be"),
        ('{"request": "NONCE", "place": [0], "reward": 1, "error": null, "parts": null, "seconds": 0}', "cannot be"),
        ('{"request": "NONCE", "place": 0, "reward": 1, "error": null, "parts": null, "seconds": -1, "note": null}', "cannot be"),
        ('{"request": "NONCE", "place": 0, "reward": 1, "error": null, "parts": {"a": "1"}, "seconds": 0, "note": null}', "cannot be"),
        ('{"request": "NONCE", "error": null}', "attempt -1"),
        ('{"request": 1, "place": 0, "reward": 1, "error": null, "parts": null, "seconds": 0, "note": null}', "nobody asked"),
        ('{"request": "0123456789abcdef", "error": null}', "nobody asked"),
        ("[1, 2]", "cannot be"),
        ("no json", "cannot be"),
        ("x" * 70_000, "answer of 70000 bytes"),
    ],
)  # fmt: skip
async def test_an_answer_that_no_verifier_of_ours_gives_is_an_error(pool: RewardPool, forged: str, error: str) -> None:
    verifier = "hostile_verifiers:forge"
    await pool.start([verifier])
    (verdict,) = await judge(pool, prompt(verifier), [forged])
    assert verdict.reward is None and error in str(verdict.error)
    assert await judge(pool, prompt(), ["1"]) == [Verdict(1.0)]


@pytest.mark.parametrize("verifier", [OBEY, LATER])
@pytest.mark.parametrize("how", ["python", "raw"])
async def test_a_verifier_that_forks_and_returns_twice_is_answered_for_once(
    pool: RewardPool, verifier: str, how: str
) -> None:
    asked = ["0.25", f"fork {how}", "1", f"fork {how}", "0"]
    for _ in range(3):
        scores = await judge(pool, prompt(verifier), asked)
        assert [score.reward for score in scores] == [0.25, 0.5, 1.0, 0.5, 0.0], scores


async def test_answers_of_functions_come_in_order(pool: RewardPool) -> None:
    """Whoever has the nonce, too, cannot answer for a completion that is not due."""
    ahead = '{"request": "NONCE", "place": 2, "reward": 1, "error": null, "parts": null, "seconds": 0, "note": null}'
    verdicts = await judge(pool, prompt("hostile_verifiers:forge"), [ahead] * 3)
    assert all(verdict.reward is None and "attempt 2" in str(verdict.error) for verdict in verdicts)


@pytest.mark.parametrize("verifier", [OBEY, LATER])
@pytest.mark.parametrize(
    ("completion", "error"),
    [("keyboard", "KeyboardInterrupt: "), ("cancelled", "CancelledError: "), ("generator", "GeneratorExit: ")],
)
async def test_what_ends_a_verifier_is_said_as_it_is(
    pool: RewardPool, verifier: str, completion: str, error: str
) -> None:
    scores = await judge(pool, prompt(verifier), ["0.25", f"stop {completion}", "1"])
    assert scores == [Verdict(0.25), Verdict(None, f"verifier raised {error}"), Verdict(1.0)]


async def test_stderr_is_kept_with_the_error_and_bounded(pool: RewardPool, capfd: pytest.CaptureFixture[str]) -> None:
    assert await judge(pool, prompt(), ["write 5000000 1"]) == [Verdict(1.0)]
    (raised,) = await judge(pool, prompt(), ["write 0 raise no luck"])
    died, after = await judge(pool, prompt(), ["write 5000000 exit 3", "raise no luck"])
    assert raised.error == "verifier raised RuntimeError: no luck; its stderr ends: the last line"
    assert died.error is not None and len(died.error) < 350
    assert died.error.startswith("verifier ended its process with exit code 3; its stderr (5000013 bytes, the rest is ")
    assert died.error.endswith("xxxthe last line")
    assert after.error == "verifier raised RuntimeError: no luck"
    assert capfd.readouterr() == ("", "")


async def test_secrets_are_taken_out_of_errors_before_they_are_cut(
    pool: RewardPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_API_KEY", secret := "correct horse battery staple")
    (error,) = await judge(pool, prompt(), ["raise " + "x" * 160 + secret])
    assert error.error is not None and "correct" not in error.error and "[redacted" in error.error


@pytest.mark.parametrize(
    ("limits", "completion", "error"),
    [
        ({"memory_gib": 2}, f"allocate {3 * 2**30}", "MemoryError"),
        ({"open_files": 64}, "open 100", "Too many open files"),
        ({"file_gib": 0.5}, f"fill {2**30} PATH", "File too large"),
        # Of which each has less than half.
        (
            {"memory_gib": 0.6},
            f"herd 4 {180 * 2**20}",
            "all that it started, more than rewards.limits.memory_gib = 0.6,",
        ),
    ],
)
async def test_what_goes_beyond_its_limits_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, limits: dict[str, float], completion: str, error: str
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    pool = RewardPool(RewardsConfig.model_validate({"limits": limits, "timeout_s": 60}))
    asked = completion.replace("PATH", str(tmp_path / "file"))
    first, second = await judge(pool, prompt(), [asked, "1"])
    await pool.close()
    assert error in str(first.error) and second == Verdict(1.0)


def test_memory_of_a_verifiers_processes_is_added_up_and_what_they_share_counts_once() -> None:
    script = f"""
import os, sys
held = bytearray(b"x") * {64 * 2**20}
def left():
    if not os.fork():
        own = bytearray(b"x") * {32 * 2**20}
        os.write(1, b".")
        sys.stdin.read()
        os._exit(0)
for _ in range(3):
    left()
sys.stdin.read()
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert parent.stdout is not None and parent.stdout.read(3) == b"..."
        resident = supervisor.memory_below(os.getpid(), enough=2**40)
        together = supervisor.memory_below(os.getpid())
    finally:
        parent.communicate()
    once, copies = 64 + 3 * 32, 4 * 64 + 3 * 32
    assert once * 2**20 < together < (once + 60) * 2**20 < copies * 2**20 < resident


async def test_a_pool_in_a_loop_of_its_own_judges_and_ends_twice() -> None:
    rewards = RewardThread(RewardsConfig())
    await rewards.start(["exact"])
    asked = Prompt("p", "sums", "1+1=", "2", "exact")
    judged = await asyncio.gather(*(rewards.judge(asked, [Attempt("2", 0), Attempt("3", 1)]) for _ in range(5)))
    assert judged == [[Verdict(1.0, None), Verdict(0.0, None)]] * 5
    await rewards.close()
    await rewards.close()
    assert "rewards" not in {thread.name for thread in threading.enumerate()}
