"""The dashboard under people who want everybody else shut out: a real server, real sockets, small limits."""

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from deploy.dashboard.answers import Answers, BusyError
from deploy.dashboard.connections import Limits
from deploy.dashboard.serve import Access, create_server, listen
from deploy.rundir.layout import RunDirectory
from tests.made_runs import MadeRun

pytestmark = pytest.mark.unit

SMALL = Limits(connections=12, of_a_client=12, header_s=1.0, keep_alive_s=1, body_s=1.0, send_s=1.0, streams=3,
               streams_of_a_client=3)  # fmt: skip
TOKEN = "a-token-for-this-test-only"
GET = b"GET /api/runs HTTP/1.1\r\nhost: localhost\r\n"
WAIT_S = 20.0


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    run = RunDirectory.create(tmp_path, "run", "steps: 5\n")
    run.append_metrics({"step": 0, "seconds": 1.0})
    return tmp_path


Address = tuple[str, int]


@asynccontextmanager
async def serving(runs: Path, limits: Limits = SMALL, token: str | None = None) -> AsyncIterator[Address]:
    bound = listen("127.0.0.1", 0)
    server = create_server(runs, Access("127.0.0.1", token, new_token=False), limits)
    serves = asyncio.create_task(server.serve(sockets=[bound]))
    try:
        yield bound.getsockname()
    finally:
        server.should_exit = True
        await serves
        bound.close()


async def connected(address: Address, send: bytes = b"") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection(*address)
    writer.write(send)
    await writer.drain()
    return reader, writer


async def rest(reader: asyncio.StreamReader) -> bytes:
    """What comes until the other side closes."""
    try:
        return await asyncio.wait_for(reader.read(), WAIT_S)
    except ConnectionResetError:
        return b""


async def answered(address: Address, path: str = "/api/runs", **options: Any) -> httpx.Response:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{address[1]}", timeout=WAIT_S) as client:
        return await client.get(path, **options)


@pytest.mark.parametrize(
    "said", [b"", b"GET / HT", GET, GET + b"x: y\r\n", GET + b"content-length: 9\r\n\r\nabc"],
    ids=["nothing", "half a line", "half a head", "more of it", "half a body"],
)  # fmt: skip
async def test_who_only_occupies_makes_room_for_who_asks_and_is_closed(runs: Path, said: bytes) -> None:
    async with serving(runs) as address:
        idle = [await connected(address, said) for _ in range(5 * SMALL.connections)]
        for _ in range(3):
            assert (await answered(address)).status_code == 200, "shut out"
        for reader, writer in idle:
            await rest(reader)
            writer.close()


async def test_a_request_that_comes_drop_by_drop_ends_in_time(runs: Path) -> None:
    async with serving(runs) as address:
        reader, writer = await connected(address, GET)

        async def drip() -> None:
            while True:
                writer.write(b"x")
                await asyncio.sleep(0.1)

        dripping = asyncio.create_task(drip())
        began = time.monotonic()
        said = await rest(reader)
        dripping.cancel()
        assert b"408" in said and b"retry-after" in said and time.monotonic() - began < WAIT_S


async def test_a_head_without_end_is_refused(runs: Path) -> None:
    async with serving(runs) as address:
        reader, _ = await connected(address, GET + b"x: " + b"y" * 2 * SMALL.header_bytes)
        assert b" 400 " in await rest(reader)


async def test_a_form_that_does_not_come_ends_in_time(runs: Path) -> None:
    head = b"POST /login HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\nabc"
    async with serving(runs, token=TOKEN) as address:
        reader, _ = await connected(address, head)
        assert b" 408 " in await rest(reader)


async def test_when_all_are_being_answered_the_next_is_told_when_to_come(runs: Path) -> None:
    limits = Limits(connections=3, of_a_client=3, streams=3, streams_of_a_client=3, header_s=5.0)
    async with serving(runs, limits) as address:
        follow = b"GET /api/events?name=%b HTTP/1.1\r\nhost: localhost\r\n\r\n" % run_name(runs)
        streams = [await connected(address, follow) for _ in range(3)]
        for reader, _ in streams:
            assert b"200" in await asyncio.wait_for(reader.readline(), WAIT_S)
        refused = await answered(address)
        assert refused.status_code == 503 and int(refused.headers["retry-after"]) > 0
        streams[0][1].close()
        await asyncio.wait_for(until(lambda: answers_with(address, 200)), WAIT_S)
        for _, writer in streams:
            writer.close()


async def test_streams_are_few_and_the_page_is_answered_beside_them(runs: Path) -> None:
    name = run_name(runs).decode()
    async with serving(runs) as address:
        follow = f"GET /api/events?name={name} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode()
        streams = [await connected(address, follow) for _ in range(8)]
        statuses = [(await asyncio.wait_for(reader.readline(), WAIT_S)).split()[1] for reader, _ in streams]
        assert sorted(statuses) == [b"200"] * 3 + [b"503"] * 5
        again = await answered(address, f"/api/events?name={name}")
        assert (
            again.status_code == 503
            and again.headers["retry-after"]
            and "ask for the run itself" in again.json()["problem"]
        )
        assert again.headers["x-frame-options"] == "DENY"
        for path in ("/", "/api/runs", f"/api/run?name={name}"):
            assert (await answered(address, path)).status_code == 200
        for _, writer in streams:
            writer.close()

        async def one_more() -> bool:
            reader, writer = await connected(address, follow)
            status = (await asyncio.wait_for(reader.readline(), WAIT_S)).split()[1]
            writer.close()
            return status == b"200"

        await asyncio.wait_for(until(one_more), WAIT_S)


async def test_who_reads_nothing_is_let_go(tmp_path: Path) -> None:
    run = await MadeRun(tmp_path, "long", steps=3, groups=4, texts={0: "x" * 10_000_000}).start()
    await (await run.steps(1)).close()
    group = run.group_ids[0]
    async with serving(tmp_path) as address:
        deaf = socket.socket()
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect(address)
        ask = f"GET /api/group/text?name=long&id={group}&completion=0 HTTP/1.1\r\nhost: localhost\r\n\r\n".encode()
        deaf.sendall(ask * 500)
        deaf.settimeout(WAIT_S)
        deadline = time.monotonic() + WAIT_S
        while peers(address) and time.monotonic() < deadline:  # noqa: ASYNC110 - the other side has no event for it
            await asyncio.sleep(0.1)
        assert not peers(address), "a connection that reads nothing is still there"
        deaf.close()


def peers(address: Address) -> int:
    """Connections to the server that are open at this end of the machine, from its side."""
    local = f"0100007F:{address[1]:04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[1] == local and row[3] == "01" for row in rows)


def run_name(runs: Path) -> bytes:
    return next(path.name for path in runs.iterdir() if not path.is_symlink()).encode()


async def answers_with(address: Address, status: int) -> bool:
    return (await answered(address)).status_code == status


async def until(holds: Callable[[], Any]) -> None:
    while not await holds():  # noqa: ASYNC110 - it is asked over HTTP
        await asyncio.sleep(0.05)


def test_an_answer_is_worked_out_once_while_its_files_are_the_same() -> None:
    answers, made = Answers(at_once=2, wait_s=5.0), []

    def make() -> int:
        made.append(1)
        return len(made)

    assert [answers.get("a", stamp, make) for stamp in (1, 1, 2, 2)] == [b"1", b"1", b"2", b"2"]
    assert answers.get("b", 1, make) == b"3"


def test_of_many_who_ask_the_same_one_works() -> None:
    answers, made, found = Answers(at_once=2, wait_s=10.0), [], []
    go = threading.Event()

    def make() -> str:
        made.append(1)
        go.wait(10.0)
        return "x"

    threads = [threading.Thread(target=lambda: found.append(answers.get("a", 1, make))) for _ in range(8)]
    for thread in threads:
        thread.start()
    go.set()
    for thread in threads:
        thread.join()
    assert found == [b'"x"'] * 8 and len(made) == 1


def test_when_all_work_the_next_is_told_so_and_an_error_is_not_kept() -> None:
    answers, began, go = Answers(at_once=1, wait_s=0.05), threading.Event(), threading.Event()

    def slow() -> str:
        began.set()
        go.wait(10.0)
        return "slow"

    thread = threading.Thread(target=lambda: answers.get("slow", 1, slow))
    thread.start()
    began.wait(10.0)
    with pytest.raises(BusyError, match="what others asked"):
        answers.get("other", 1, lambda: 1)
    with pytest.raises(BusyError, match="still being worked out"):
        answers.get("slow", 1, slow)
    go.set()
    thread.join()
    assert answers.get("slow", 1, lambda: "again") == b'"slow"'
    with pytest.raises(ZeroDivisionError):
        answers.get("other", 1, lambda: 1 / 0)
    assert answers.get("other", 1, lambda: 2) == b"2"


def test_what_is_kept_is_bounded() -> None:
    answers = Answers(at_once=1, wait_s=1.0, most_bytes=1000)
    for number in range(100):
        answers.get(number, 1, lambda: "x" * 98)
    kept = [number for number in range(99, -1, -1) if answers.get(number, 1, lambda: "y") != b'"y"']
    assert kept == list(range(99, 89, -1)), "the ten that were asked for last"
