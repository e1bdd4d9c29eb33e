"""`bvblend eval` with a real engine and real verifier processes: a directory, a run's checkpoint, a benchmark's file."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.config.recipe import load_recipe
from deploy.evaluation.result import read_result
from deploy.run.launch import read_pool
from deploy.run.prompt_lengths import fitting
from tests.conftest import ROOT, Command, settings
from tests.hub import POLICY

pytestmark = pytest.mark.integration

COLD_START = ROOT / "deploy" / "recipes" / "cold_start.yaml"
HERE = settings(rollout__engine="transformers")


def test_a_directory_is_evaluated_alike_each_time_and_on_a_benchmark_s_file(
    bvblend: Callable[..., Command], tmp_path: Path
) -> None:
    common = ("eval", POLICY, "--recipe", COLD_START, *HERE, "--samples", 4)
    for name in ("a", "b"):
        command = bvblend(*common, "--limit", 12, "--out", tmp_path / f"{name}.json")
        assert command.wait(120) == 0, command.output()
        assert "pass@4" in command.output() and "tokens, half of them" in command.output()
    one, again = (read_result(tmp_path / f"{name}.json") for name in ("a", "b"))
    assert one == again and len(one.prompts) == 12 and one.unscored() == 0
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    compared = bvblend("eval", "--compare", tmp_path / "a.json", tmp_path / "b.json")
    powered = bvblend("eval", tmp_path / "a.json", "--power", 0.1)
    assert compared.wait(60) == 0 and "+0.000 to +0.000" in compared.output(), compared.output()
    assert powered.wait(60) == 0 and "prompts that show a difference of 0.1" in powered.output()

    lines = [{"problem": f"{a} + {a} = ", "answer": str(2 * a)} for a in range(4)]
    (tmp_path / "bench.jsonl").write_text("\n".join(map(json.dumps, lines)))
    command = bvblend(
        *common, "--data", tmp_path / "bench.jsonl", "--verifier", "numeric", "--out", tmp_path / "c.json"
    )
    assert command.wait(120) == 0, command.output()
    assert {prompt.source for prompt in read_result(tmp_path / "c.json").prompts} == {"bench"}


def test_prompts_that_a_run_would_leave_out_are_not_asked(bvblend: Callable[..., Command], tmp_path: Path) -> None:
    few = settings(prompts__max_tokens=20, prompts__too_long="skip")
    common = ("eval", POLICY, "--recipe", COLD_START, *HERE, *few, "--samples", 1, "--max-tokens", 2)
    command = bvblend(*common, "--out", tmp_path / "short.json")
    assert command.wait(120) == 0, command.output()
    assert "prompts of more than prompts.max_tokens (20) are left out" in command.output()
    config = load_recipe(COLD_START, [each for each in few if "=" in each])
    pool = read_pool(config)
    short = {prompt.prompt_id for prompt in fitting(config, pool).held_out}
    assert {prompt.prompt_id for prompt in read_result(tmp_path / "short.json").prompts} == short
    assert 0 < len(short) < len(pool.held_out)


@pytest.mark.long
def test_every_policy_of_a_run_is_evaluated_by_its_step(bvblend: Callable[..., Command], tmp_path: Path) -> None:
    small = settings(steps=2, batch_groups=4, group_size=2, checkpoint__every=1, runs_dir=tmp_path)
    run = bvblend(
        "train", COLD_START, *HERE, *small, *settings(evaluation__train_prompts=4, learner__optimizer__lr=0.05)
    )
    assert run.wait(300) == 0, run.output()
    results = {}
    for step in (0, 1, 2, None):
        out = tmp_path / f"{step}.json"
        which = () if step is None else ("--step", step)
        command = bvblend("eval", tmp_path / "latest", *which, "--limit", 12, "--out", out)
        assert command.wait(120) == 0, command.output()
        results[step] = read_result(out)
    assert results[None].prompts == results[2].prompts
    assert [results[step].step for step in (0, 1, 2, None)] == [0, 1, 2, 2]
    left = bvblend("eval", tmp_path / "latest", "--step", 1, "--limit", 4)
    assert left.wait(120) == 0, left.output()
    ((found,),) = [list((tmp_path / "latest" / "evaluated").glob("*.json"))]
    assert read_result(found).step == 1 and found.with_suffix(".png").is_file()
    assert all(prompt.cluster is not None for prompt in results[1].prompts)
    assert results[0].policy.endswith("before training") and results[1].policy.endswith("after 1 steps")
    missing = bvblend("eval", tmp_path / "latest", "--step", 7)
    assert missing.wait(60) == 2 and "no policy after 7 steps is kept; --step takes 0, 1, 2" in missing.output()
