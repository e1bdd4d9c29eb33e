"""A run that was resumed is the run that was never interrupted, bit for bit; with real Ray and a real FSDP learner."""

import json
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

from actors.prompts.renderer import load_tokenizer, prompt_ids
from deploy.rundir.find import load_run_config
from deploy.rundir.groups import RunGroups
from deploy.rundir.layout import RunDirectory
from deploy.rundir.owner import OWNER_FILES
from deploy.rundir.samples import SampleFilter, find_samples
from deploy.rundir.token_file import tokens_of
from moments_service.ledger import LedgerReader
from tests.conftest import ROOT, Command, brief_evaluations, settings

pytestmark = pytest.mark.integration

COLD_START = ROOT / "deploy" / "recipes" / "cold_start.yaml"
START_S = 300.0
SMALL = [*settings(batch_groups=4, group_size=2, checkpoint__every=2), *brief_evaluations()]


def rows(run: Path) -> list[dict[str, float]]:
    """metrics.jsonl without what depends on the clock."""
    timed = {"seconds", "phases", "tokens_per_s", "incarnation", "verifier/seconds", "verifier/waited"}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in timed and not k.endswith("_s")} for row in lines]


def files(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "how",
    [
        [],
        pytest.param(settings(prompts__order="signal", group_size=4, max_group_size=8), marks=pytest.mark.long),
        pytest.param(settings(prompts__order="mopps", prompts__filter="dapo"), marks=pytest.mark.long),
        pytest.param(
            settings(
                prompts__sources=[
                    {"kind": "reasoning_gym", "limit": 20, "held_out": 4, "weight": weight} | source
                    for weight, source in (
                        (1, {"name": "bits", "task": "count_bits", "params": {"min_n": 1, "max_n": 1023}}),
                        (2, {"name": "gcd", "task": "gcd", "params": {"min_value": 1, "max_value": 30}}),
                        (3, {"name": "lcm", "task": "lcm", "params": {"min_value": 1, "max_value": 30}}),
                    )
                ],
                prompts__curriculum={
                    "kind": "pass_rate",
                    "levels": [["bits", "gcd"], ["lcm"]],
                    "advance_at": 0.01,
                    "window": 6,
                    "review": 0.25,
                },
                moments__clusters__count=4,
            ),
            marks=pytest.mark.long,
        ),
        pytest.param(settings(prompts__max_tokens=24, prompts__too_long="skip"), marks=pytest.mark.long),
        pytest.param(
            settings(
                shaping="[{kind: laser_d, every: 1}, unlikeliness]",
                group_size=4,
                sampling__max_tokens=3,
                learner__mask_truncated="true",
            ),
            marks=pytest.mark.long,
        ),
    ],
    ids=[
        "as shipped",
        "sampled by what the moments know",
        "sampled by how groups came out, equal rewards passed by",
        "sources by weight, levels by what was right",
        "prompts that are too long left out",
        "shaped by what was remembered and seen, truncated completions left out",
    ],
)
def test_a_resumed_run_equals_an_unbroken_one_bit_for_bit(
    bvblend: Callable[..., Command], tmp_path: Path, how: list[str]
) -> None:
    mirror = tmp_path / "mirror"
    short = settings(rollout__engine="transformers", steps=4, runs_dir=tmp_path, mirror=mirror.as_uri())
    short += settings(transcripts__tokens_every=2)
    straight = bvblend("train", COLD_START, *SMALL, *short, *how)
    assert straight.wait(START_S) == 0, straight.output()
    run = (tmp_path / "latest").resolve()
    again = tmp_path / "again"
    # The copy that the mirror made is as good as the run itself.
    assert files(mirror / run.name) == {name: text for name, text in files(run).items() if name not in OWNER_FILES}
    shutil.copytree(mirror / run.name, again)
    shutil.rmtree(again / "policy")
    resumed = bvblend("train", "--resume", again, "--from-step", 2)
    assert resumed.wait(START_S) == 0, resumed.output()
    # What the straight run saved after that is no part of this one, and stays.
    assert {path.name for path in (again / "checkpoints").iterdir()} == {"step-000002", "step-000004", "left-000004-1"}
    assert (again / "moments" / "left-final-1").is_dir()
    assert json.loads((again / "summary.json").read_text())["steps"] == 4

    expected = load_file(run / "policy" / "model.safetensors")
    found = load_file(again / "policy" / "model.safetensors")
    assert {name: tensor.tobytes() for name, tensor in found.items()} == {
        name: tensor.tobytes() for name, tensor in expected.items()
    }
    assert rows(again)[-2:] == rows(run)[-2:]
    # What the resumed run did again stands under its own start, with the same values.
    kept, kept_again = (load_file(path / "tokens" / "step-000002.safetensors") for path in (run, again))
    assert kept.keys() == kept_again.keys() and len(kept["learner"]) > 0
    assert all(kept[name].tobytes() == kept_again[name].tobytes() for name in kept)
    with closing(LedgerReader(again / "moments")) as ledger:
        before, after = (ledger.folded((number, 2, 3), "cluster, rewards", "advantages") for number in (0, 1))
    assert before == after and len([row for row in after if row[-1] is not None]) == 8


def test_values_of_tokens_are_those_of_a_plain_model(bvblend: Callable[..., Command], tmp_path: Path) -> None:
    """Of the policy before the first step, which is the one that the run starts with."""
    short = settings(rollout__engine="transformers", steps=1, runs_dir=tmp_path, transcripts__tokens_groups=3)
    trained = bvblend("train", COLD_START, *SMALL, *short)
    assert trained.wait(START_S) == 0, trained.output()
    run = RunDirectory(tmp_path / "latest")
    config = load_run_config(run)
    model = AutoModelForCausalLM.from_pretrained(config.policy, dtype=torch.float32)
    tokenizer = load_tokenizer(config.policy)
    samples = find_samples(RunGroups(run.moments), SampleFilter(), None, 100).samples
    compared = 0
    for sample in samples:
        group = sample.group
        values = tokens_of(run.tokens, group.step, group.incarnation, group.group.group_id).get(sample.index)
        if values is None:
            continue
        assert sample.texts is not None and sample.completion is not None
        prompt = prompt_ids(tokenizer, sample.texts.prompt, config.prompts.chat)
        ids = torch.tensor([[*prompt, *values.token_ids.tolist()]])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1] / config.sampling.temperature
        expected = logits.log_softmax(-1).gather(1, ids[0, len(prompt) :, None])[:, 0].numpy()
        np.testing.assert_allclose(values.learner, expected, atol=1e-5)
        np.testing.assert_allclose(values.sampler, expected, atol=1e-5)
        np.testing.assert_allclose(values.advantage, sample.advantage, rtol=1e-5, atol=1e-7)
        assert len(values.texts) == sample.tokens and "".join(values.texts).startswith(sample.completion)
        compared += 1
    assert compared == 3 * 2
