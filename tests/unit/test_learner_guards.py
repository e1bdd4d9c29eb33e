"""What watches over a step: losses that are not finite, memory that runs out, and ranks that hold up the others."""

import json
import multiprocessing
import os
import re
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.utils._python_dispatch import TorchDispatchMode

from learner.adapters import Lora, SosLora
from learner.blame import Whereabouts, holding_up, is_echo
from learner.config import LearnerConfig, MemoryConfig
from learner.errors import OutOfMemoryError
from learner.job import LearnerJob
from learner.optim.optimizers import clip_gradients
from learner.out_of_memory import naming_what_fits_not
from learner.position import collectives_begun
from learner.rank import LearnerRank
from tests.gloo_ranks import OnTwoRanks, on_one_rank
from tests.made_policies import write_tiny
from tests.unit.test_learner_rank import TOTAL_STEPS, config_with, draw_groups, running_rank, split

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def policy_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tiny(tmp_path_factory.mktemp("policy"))


def clipped(rank: int, ranks: int, loss: float) -> tuple[float, list[torch.Tensor], float, list[torch.Tensor], int]:
    """Norm and gradients after our clipping and after torch's, and the collectives of ours."""
    mesh = init_device_mesh("cpu", (ranks,))
    generator = torch.Generator().manual_seed(0)
    whole = [torch.randn(rows, 5, generator=generator) for rows in (1, 7, 8, 9)]

    def parameters() -> list[nn.Parameter]:
        made = [nn.Parameter(distribute_tensor(torch.zeros_like(each), mesh, [Shard(0)])) for each in whole]
        for parameter, gradient in zip(made, whole, strict=True):
            parameter.grad = distribute_tensor(gradient, mesh, [Shard(0)])
        return made

    def gradients(made: list[nn.Parameter]) -> list[torch.Tensor]:
        return [parameter.grad.full_tensor() for parameter in made]  # type: ignore[union-attr]

    ours, theirs = parameters(), parameters()
    before = collectives_begun()
    norm = clip_gradients(ours, 0.5, torch.tensor(loss if rank == ranks - 1 else 0.0))
    begun = collectives_begun() - before
    other = nn.utils.clip_grad_norm_(theirs, 0.5)
    assert isinstance(other, DTensor)
    return float(norm), gradients(ours), float(other.full_tensor()), gradients(theirs), begun


def test_gradients_are_clipped_as_torch_does_and_a_loss_travels_with_their_norm(on_two_ranks: OnTwoRanks) -> None:
    """Bit for bit, in one collective; the loss of the last rank alone spoils it for all."""
    for results in (on_two_ranks(clipped, 1.0), [on_one_rank(clipped, 1.0)]):
        for norm, ours, expected, theirs, begun in results:
            assert norm == expected and begun <= 1
            assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
    for bad in (float("inf"), float("nan")):
        assert all(norm != norm for norm, *_ in on_two_ranks(clipped, bad))


def with_a_bad_loss(rank: int, ranks: int, path: str, inspect: str) -> tuple[dict[str, float], bool]:
    """A step whose loss is infinite on rank 1 alone, and whose gradient is finite everywhere; whether weights changed."""
    config = config_with(world_size=ranks)
    learner = LearnerRank(config, LearnerJob(path, TOTAL_STEPS, inspect_dir=inspect), rank, ranks)
    learner.prepare()
    objective = learner.policy_step.objective

    def spoilt(*arguments: Any) -> Any:
        loss, measured = objective(*arguments)
        return loss + (torch.inf if rank == 1 else 0.0), measured

    spoilt.names = objective.names  # type: ignore[attr-defined]
    spoilt.needs = objective.needs  # type: ignore[attr-defined]
    before = [each.detach().clone() for each in learner.optimizers.parameters]
    learner.policy_step.objective = spoilt  # type: ignore[assignment]
    metrics = learner.step([draw_groups(0)[rank::ranks]], 0)
    changed = any(
        not torch.equal(one, other)
        for one, other in zip(before, learner.optimizers.parameters, strict=True)  # type: ignore[arg-type]
    )
    learner.policy_step.objective = objective
    assert learner.step([draw_groups(0)[rank::ranks]], 1)["updates"] == 1.0
    return metrics, changed


def test_a_loss_that_is_not_finite_on_one_rank_skips_the_update_on_all(
    policy_path: str, tmp_path: Path, on_two_ranks: OnTwoRanks
) -> None:
    for rank, (metrics, changed) in enumerate(on_two_ranks(with_a_bad_loss, policy_path, str(tmp_path))):
        assert metrics["skipped"] == 1.0 and metrics["updates"] == metrics["loss"] == 0.0 and not changed
        kept = tmp_path / f"rank-{rank}" / f"step-000000-update-0-rank-{rank}"
        about = json.loads((kept / "about.json").read_text())
        assert about["gradient_norm"] == "nan" and (about["loss_of_this_rank"] == "inf") == (rank == 1)
        assert (kept / "batch.safetensors").exists()


def fills_memory_on_the_cpu() -> None:
    torch.empty(2**60)


def fills_python_s_memory() -> None:
    bytearray(2**62)


def fills_a_gpu() -> None:
    raise torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.10 GiB of which 12.31 GiB is free."
    )


@pytest.mark.parametrize(
    ("fill", "said"),
    [
        (
            fills_memory_on_the_cpu,
            r"\((can't allocate|not enough) memory: you tried to allocate 4611686018427387904 bytes.*\)",
        ),
        (fills_python_s_memory, r"\(MemoryError\)"),
        (fills_a_gpu, r"\(CUDA out of memory. Tried to allocate 20.00 GiB\)"),
    ],
)
def test_memory_that_runs_out_names_the_microbatch_and_the_keys(
    policy_path: str, fill: Callable[[], None], said: str
) -> None:
    with running_rank(policy_path, config_with(microbatch_tokens=30)) as rank:
        forward, calls = rank.policy.forward, []

        def failing(*arguments: Any) -> Any:
            calls.append(arguments)
            if len(calls) == 2:
                fill()
            return forward(*arguments)

        rank.policy.forward = failing  # type: ignore[method-assign]
        with pytest.raises(OutOfMemoryError) as error:
            rank.step([draw_groups(0)], 4)
        batch = calls[1][0]
    (found,) = str(error.value).splitlines()
    size = f"has {len(batch.input_ids)} tokens \\(shared ones once\\) of {batch.samples} samples"
    keys = r"lower learner\.microbatch_tokens \(30\), or set learner\.memory\.activation_checkpointing: layer"
    place = r"out of memory at update 1 of 1 of step 4, microbatch 2 of \d+, which "
    pattern = f"{place}{size} {said}: {keys}, or raise learner\\.world_size \\(1\\)"
    assert re.fullmatch(pattern, found), found


def test_other_errors_stay_what_they_are_and_the_optimiser_names_its_own_key() -> None:
    config = LearnerConfig(gpus=1, memory=MemoryConfig(activation_checkpointing="layer"))
    with pytest.raises(RuntimeError, match=r"^shapes differ$") as error, naming_what_fits_not(config, "update 1"):
        raise RuntimeError("shapes differ")
    assert not isinstance(error.value, OutOfMemoryError)
    with (
        pytest.raises(
            OutOfMemoryError, match=r"^out of memory at the step \(CUDA.*\): set learner\.memory\.offload_optimizer"
        ),
        naming_what_fits_not(config, "all"),
        naming_what_fits_not(config, "the step"),
    ):
        fills_a_gpu()


def at(collectives: int, doing: str = "") -> Whereabouts:
    return Whereabouts(doing, "", collectives)


@pytest.mark.parametrize(
    ("answers", "blamed"),
    [
        ({0: at(8), 1: at(7), 2: at(8)}, (1,)),
        ({0: at(7), 1: at(8), 2: at(7)}, (0, 2)),
        ({0: at(8), 1: None}, (1,)),
        ({0: at(8), 1: at(8)}, (0, 1)),
        ({3: at(1)}, (3,)),
    ],
)
def test_the_rank_that_is_behind_is_the_one_that_the_others_wait_for(
    answers: dict[int, Whereabouts | None], blamed: tuple[int, ...]
) -> None:
    assert holding_up(answers) == blamed


def hanging(rank: int, ranks: int, path: str, meeting: str) -> tuple[Whereabouts, dict[str, float]]:
    """A step in which rank 1 hangs within a layer until both have been asked where they are; where this one was, and its metrics."""
    learner = LearnerRank(
        config_with(world_size=ranks, microbatch_tokens=20), LearnerJob(path, TOTAL_STEPS), rank, ranks
    )
    learner.prepare()
    stands, asked = Path(meeting) / "stands", Path(meeting) / "asked"
    found: list[Whereabouts] = []

    def ask() -> None:
        """On rank 0 once it waits for a collective that rank 1 has not begun."""
        while not stands.exists() or (rank == 0 and learner.position.ask().collectives <= int(stands.read_text())):
            time.sleep(0.01)
        while rank == 1 and not asked.exists():
            time.sleep(0.01)
        found.append(learner.position.ask())
        asked.touch()

    calls = iter(range(100))

    def hang(*_: Any) -> None:
        if rank == 1 and next(calls) == 1:
            partial = stands.with_suffix(".partial")
            partial.write_text(str(collectives_begun()))
            partial.rename(stands)
            while not found:
                time.sleep(0.01)

    learner.policy.layers[1].register_forward_pre_hook(hang)
    asking = threading.Thread(target=ask)
    asking.start()
    metrics = learner.step([draw_groups(0)[rank::ranks]], 3)
    asking.join()
    return found[0], metrics


def test_a_rank_that_hangs_between_two_collectives_is_told_from_those_that_wait(
    policy_path: str, tmp_path: Path, on_two_ranks: OnTwoRanks
) -> None:
    waits, hangs = (answer for answer, _ in on_two_ranks(hanging, policy_path, str(tmp_path)))
    assert holding_up({0: waits, 1: hangs}) == (1,)
    assert waits.collectives == hangs.collectives + 1
    assert hangs.doing.startswith("update 1 of 1 of step 3, microbatch 2 of ")
    assert hangs.line.startswith("tests/unit/test_learner_guards.py:")


def with_one_that_dies(store: str, rank: int) -> str:
    """What rank 0 is told when rank 1 is killed in the middle."""
    dist.init_process_group(
        "gloo", store=dist.FileStore(store, 2), rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    tensor = torch.ones(3)
    dist.all_reduce(tensor)
    if rank == 1:
        os._exit(9)
    try:
        dist.all_reduce(tensor)
    except RuntimeError as error:
        return str(error)
    return "nothing"


@pytest.mark.long
def test_what_is_heard_of_a_rank_that_was_killed_is_an_echo(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        told = pool.apply_async(with_one_that_dies, (str(tmp_path / "store"), 0))
        killed = context.Process(target=with_one_that_dies, args=(str(tmp_path / "store"), 1))
        killed.start()
        killed.join(60)
        assert killed.exitcode == 9
        assert is_echo(told.get(60))
    assert not is_echo("shapes differ") and not is_echo("out of memory at update 1")


def test_the_regulariser_of_an_adapter_has_a_metric_of_its_own(policy_path: str) -> None:
    with running_rank(
        policy_path, config_with(adapter=SosLora(rank=4, experts_count=2, overlap=10.0), lr=1e-2)
    ) as rank:
        found = [rank.step([draw_groups(step)], step) for step in range(3)]
        assert rank.policy.adapter is not None
        expected = float(rank.policy.adapter.add_penalty())  # type: ignore[arg-type]
        (next_step,) = [rank.step([draw_groups(3)], 3)]
    assert found[0]["adapter_penalty"] == pytest.approx(0.0, abs=1e-8) and found[2]["adapter_penalty"] > 1e-8
    assert next_step["adapter_penalty"] == pytest.approx(expected)
    with running_rank(policy_path, config_with(adapter=Lora(rank=2))) as rank:
        assert "adapter_penalty" not in rank.step([draw_groups(0)], 0)


class Reads(TorchDispatchMode):
    """Counts numbers that the host takes out of tensors one by one: on a GPU each waits for all that is queued."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_a_step_reads_what_it_measured_once_and_at_its_end(policy_path: str) -> None:
    config = config_with(updates_per_batch=2, microbatch_tokens=20)
    with running_rank(policy_path, config, measure_move=True) as rank:
        rank.step(split(draw_groups(0), 2), 0)
        with Reads() as reads:
            metrics = rank.step(split(draw_groups(1), 2), 1)
    assert metrics["microbatches"] > 2 and metrics["move_kl"] > 0
    assert reads.count == 1, "the loss, when it is on the host already"
