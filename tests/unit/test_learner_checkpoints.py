"""Checkpoints of the learner: any number of ranks reads what any other wrote, and a kill leaves the old one or the new one whole."""

import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

from deploy.rundir.layout import RunDirectory
from learner.checkpoint import Captured
from learner.config import LearnerConfig
from learner.errors import CheckpointError
from learner.rank import LearnerRank
from learner.shard_files import Piece, PieceFiles
from moments_service.durable import verify_directory, write_json
from tests.unit.test_learner_rank import (
    TOTAL_STEPS,
    LearnerJob,
    config_with,
    draw_groups,
    make_policy,
    running_rank,
    weights_of,
)

pytestmark = pytest.mark.unit
CONFIG = config_with(lr=1e-2, microbatch_tokens=40)

Plan = list[tuple[str, object]]
"""What a rank does one after the other: `load PATH`, `save PATH`, `step NUMBER`."""


def follow(rank: LearnerRank, world_size: int, plan: Plan) -> None:
    for what, argument in plan:
        if what == "step":
            assert isinstance(argument, int)
            rank.step([draw_groups(argument)[rank.rank :: world_size]], argument)
        else:
            getattr(rank, what)(argument)


def one_of_two(path: str, store: str, number: int, plan: Plan) -> None:
    torch.set_num_threads(1)
    rank = LearnerRank(
        LearnerConfig(**CONFIG.model_dump() | {"world_size": 2}), LearnerJob(path, TOTAL_STEPS), number, 2
    )
    rank._store = dist.FileStore(store, 2)
    try:
        rank.setup("127.0.0.1", 0, timeout_s=300.0)
        follow(rank, 2, plan)
    finally:
        rank.close()


def by_one(path: str, plan: Plan) -> None:
    with running_rank(path, CONFIG) as rank:
        follow(rank, 1, plan)


def contents(checkpoint: Path) -> dict[str, torch.Tensor]:
    with PieceFiles(checkpoint) as files:
        return {name: files.read(name) for name in files.shapes}


def assert_same(one: Path, other: Path, but: frozenset[str] = frozenset()) -> None:
    first, second = contents(one), contents(other)
    assert first.keys() == second.keys()
    assert any(name.startswith("optimizer.exp_avg_sq.") for name in first)
    different = {name for name in first if not torch.equal(first[name], second[name])}
    assert different == but


RankProcesses = tuple[ProcessPoolExecutor, ProcessPoolExecutor]


def by_two(processes: RankProcesses, path: str, store: Path, plan: Plan) -> None:
    calls = [process.submit(one_of_two, path, str(store), number, plan) for number, process in enumerate(processes)]
    for call in calls:
        call.result(timeout=300)


def test_two_ranks_that_resume_equal_two_that_went_on(tmp_path: Path, rank_processes: RankProcesses) -> None:
    """Bit for bit."""
    path = make_policy(tmp_path / "policy")
    first: Plan = [("step", 0), ("save", tmp_path / "half"), ("step", 1), ("save", tmp_path / "unbroken")]
    again: Plan = [("load", tmp_path / "half"), ("step", 1), ("save", tmp_path / "resumed")]
    by_two(rank_processes, path, tmp_path / "first", first)
    by_two(rank_processes, path, tmp_path / "again", again)
    assert_same(tmp_path / "unbroken", tmp_path / "resumed")


def test_one_rank_two_ranks_and_one_again(tmp_path: Path, rank_processes: RankProcesses) -> None:
    """Weights, optimiser and counters, bit for bit."""
    path = make_policy(tmp_path / "policy")
    by_one(path, [("step", 0), ("step", 1), ("save", tmp_path / "a")])
    between: Plan = [("load", tmp_path / "a"), ("save", tmp_path / "b"), ("step", 2), ("save", tmp_path / "c")]
    by_two(rank_processes, path, tmp_path / "store", between)
    by_one(path, [("load", tmp_path / "c"), ("save", tmp_path / "d")])
    assert sorted(file.name for file in (tmp_path / "b").iterdir()) == [
        f"rank-0000{number}-of-00002.safetensors" for number in range(2)
    ]
    assert_same(tmp_path / "a", tmp_path / "b", frozenset({"files"}))
    assert_same(tmp_path / "c", tmp_path / "d", frozenset({"files"}))
    lost = tmp_path / "lost"
    shutil.copytree(tmp_path / "c", lost)
    (lost / "rank-00001-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lost: 1 of its 2 files are there; go on from another checkpoint"):
        by_one(path, [("load", lost)])


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_policy(tmp_path_factory.mktemp("policy"))


def test_steps_do_not_change_what_was_captured_and_torch_reads_the_files(policy: str, tmp_path: Path) -> None:
    with running_rank(policy, CONFIG) as rank:
        rank.step([draw_groups(0)], 0)
        weights = weights_of(rank)
        rank.capture()
        rank.step([draw_groups(1)], 1)
        rank.write(tmp_path / "checkpoint")
        assert any(not torch.equal(weights[name], value) for name, value in weights_of(rank).items())
        found = {f"policy.{name}": torch.zeros_like(value) for name, value in weights.items()}
        dcp.load(found, storage_reader=HuggingFaceStorageReader(str(tmp_path / "checkpoint")))
        assert all(torch.equal(found[f"policy.{name}"], value) for name, value in weights.items())
        with pytest.raises(RuntimeError, match="nothing was captured"):
            rank.write(tmp_path / "again")


def test_a_checkpoint_of_something_else_is_refused_by_name(policy: str, tmp_path: Path) -> None:
    part = config_with(trainable=r"layers\.2\.")
    with running_rank(policy, part) as rank:
        rank.step([draw_groups(0)], 0)
        rank.save(tmp_path / "part")
    said = r"part does not fit: it has no optimizer\.\S+ \(and \d+ more\); resume with the policy, learner\.trainable"
    with pytest.raises(CheckpointError, match=said), running_rank(policy, CONFIG) as rank:
        rank.load(tmp_path / "part")
    (file,) = (tmp_path / "part").iterdir()
    file.write_bytes(file.read_bytes()[:1000])
    with (
        pytest.raises(CheckpointError, match=r"rank-00000-of-00001\.safetensors is damaged"),
        running_rank(policy, part) as rank,
    ):
        rank.load(tmp_path / "part")


def captured(value: float) -> Captured:
    """About 400 kB."""
    pieces = {f"policy.{i}": Piece(torch.full((100, 100), value), (0, 0)) for i in range(10)}
    return Captured(pieces | {"files": Piece(torch.tensor(1), ())}, 0, 1)


def write_checkpoint(run: RunDirectory, step: int) -> None:
    """As the driver and a rank do it."""
    partial = run.begin_checkpoint(step)
    captured(float(step)).write(partial / "learner")
    write_json(partial / "run.json", {"step": step})
    run.finish_checkpoint(partial, step, keep=1)


def die_at_event(number: int) -> None:
    """Be killed before the `number`-th file is opened, renamed, removed or made from now on."""
    left = number

    def count(event: str, _: object) -> None:
        nonlocal left
        if event in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree"):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def die_at_byte(number: int) -> None:
    """Be killed by the write that would make a file longer."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (number, number))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def killed_while_writing(run: RunDirectory, step: int, die: Callable[[], None]) -> bool:
    """Write in a process that `die` was called in; whether it was killed."""
    if (process := os.fork()) == 0:
        try:
            die()
            write_checkpoint(run, step)
        finally:
            os._exit(0)
    _, status = os.waitpid(process, 0)
    return os.WIFSIGNALED(status)


def kills() -> Iterator[Callable[[], None]]:
    yield from (partial(die_at_byte, number) for number in (1, 100_000, 300_000))
    yield from (partial(die_at_event, number) for number in range(1, 200))


def test_a_kill_at_any_moment_leaves_the_old_checkpoint_or_the_new_one_whole(tmp_path: Path) -> None:
    found = []
    for number, die in enumerate(kills()):
        run = RunDirectory.create(tmp_path, f"run{number}", "")
        write_checkpoint(run, 1)
        killed = killed_while_writing(run, 2, die)
        run.sweep()
        steps = run.checkpoint_steps()
        for step in steps:
            verify_directory(run.checkpoint(step))
            assert contents(run.checkpoint(step) / "learner")["policy.3"].unique().tolist() == [float(step)]
        # Between the new one's name and the end of the old one both stand.
        assert steps in ([1], [2], [1, 2])
        found.append(steps)
        if not killed:
            break
    assert not killed and found[0] == found[1] == found[2] == found[3] == [1] and [1, 2] in found and found[-1] == [2]


def test_a_disk_that_is_full_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(
            CheckpointError, match=r"rank-00000-of-00001\.safetensors cannot be written \(.*File too large"
        ):
            captured(1.0).write(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    real = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: real._replace(free=300_000))
    with pytest.raises(
        CheckpointError, match=r"it takes 0\.00 GB and 0\.00 GB are free there; free some, lower checkpoint\.keep"
    ):
        captured(1.0).write(tmp_path)
