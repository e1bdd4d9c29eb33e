"""The memory model of `bvblend plan` against what torch really keeps."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from benchmarks.learner_runs import VARIANTS, table
from deploy.cluster.plan import learner_footprint, learner_table
from deploy.config.recipe import load_recipe
from learner.config import LearnerConfig, MemoryConfig
from learner.footprint import PolicyShape, footprint, layer_activations, smallest_gpu
from learner.model.checkpointing import checkpointed
from tests.conftest import ROOT

pytestmark = pytest.mark.unit
RECIPE = Path(__file__).parents[2] / "deploy" / "recipes" / "cold_start.yaml"
SIZES = {
    "vocab_size": 64,
    "hidden_size": 96,
    "intermediate_size": 256,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
}
TOKENS = 200


def kept_bytes(model: torch.nn.Module, dtype: torch.dtype, kind: str) -> float:
    """Bytes for each token that a layer's forward keeps: what autograd saves, or what allocation shows of a checkpointed one."""
    decoder = model.model
    layer = checkpointed(decoder.layers[0], kind)
    hidden = torch.randn(1, TOKENS, SIZES["hidden_size"], dtype=dtype, requires_grad=True)
    positions = decoder.rotary_emb(hidden, torch.arange(TOKENS)[None])
    held = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *positions)}
    kept: dict[int, torch.UntypedStorage] = {}

    def remember(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in held:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        layer(hidden, position_embeddings=positions, attention_mask=None)
    return sum(storage.nbytes() for storage in kept.values()) / TOKENS


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("keys", [4, 2])
def test_a_layer_keeps_what_the_model_says(dtype: torch.dtype, keys: int) -> None:
    model = (
        LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=keys))
        if keys == 4
        else Qwen2ForCausalLM(Qwen2Config(**SIZES, num_key_value_heads=keys))
    )
    shape = PolicyShape(0, 1, 96, 256, 96, 24 * keys, 64, True)
    found = kept_bytes(model.to(dtype), dtype, "none")
    assert found == pytest.approx(layer_activations(shape, "none", dtype.itemsize), rel=0.02)


def test_checkpointing_keeps_less_and_less() -> None:
    shape = PolicyShape(1_540_000_000, 28, 1536, 8960, 1536, 256, 151936, True)
    kept = [layer_activations(shape, kind, 2) for kind in ("none", "selective", "layer")]
    assert kept[0] > 1.5 * kept[1] and kept[1] > 10 * kept[2]


def test_what_is_known_of_published_sizes() -> None:
    """16 bytes a parameter for masters, gradients and two moments; a 1.5B policy at 16k tokens needs checkpointing on 80 GiB."""
    shape = PolicyShape(1_540_000_000, 28, 1536, 8960, 1536, 256, 151936, True)

    def gib(kind: str, **changes: object) -> float:
        memory = MemoryConfig(activation_checkpointing=kind, **changes)  # type: ignore[arg-type]
        config = LearnerConfig(gpus=1, dtype="bfloat16", microbatch_tokens=16384, memory=memory)
        return footprint(shape, config, shape.parameters).device / 2**30

    assert smallest_gpu(gib("none") * 2**30) == 141 and smallest_gpu(gib("layer") * 2**30) == 40
    assert gib("layer") - gib("layer", offload_optimizer=True) == pytest.approx(8 * 1.54e9 / 2**30)
    held = footprint(shape, LearnerConfig(world_size=4), shape.parameters)
    assert held.optimizer == 2 * shape.parameters and held.weights > shape.parameters


def table_rows() -> list[list[str]]:
    """Cells of the tables in docs/learner.md."""
    page = (ROOT / "docs" / "learner.md").read_text(encoding="utf-8")
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| ")]


def test_the_docs_say_of_the_head_s_memory_what_was_measured() -> None:
    figures = json.loads((ROOT / "benchmarks" / "results" / "learner_memory.json").read_text(encoding="utf-8"))[
        "figures"
    ]
    measured = {figure["name"]: figure["value"] for figure in figures}
    rows = [row for row in table_rows() if row[0] in ("1,024", "4,096")]
    assert len(rows) == 2
    for tokens, *said, _ in rows:
        for vocabulary, cell in zip((32_000, 64_000, 150_000), said, strict=True):
            name = f"output head, {int(tokens.replace(',', ''))} tokens, vocabulary {vocabulary}"
            assert cell == f"{measured[name]:.0f} MiB"


def test_the_docs_say_of_a_step_beside_others_what_was_measured() -> None:
    path = ROOT / "benchmarks" / "results" / "learner.json"
    measured = {row["name"]: row["value"] for row in json.loads(path.read_text(encoding="utf-8"))["figures"]}
    said = {row[0]: row[1:] for row in table_rows()}
    for threads in ("1 thread", "2 threads"):
        for tokens in (32, 128, 512):
            about = f"1.1M, {tokens} tokens, {threads}"
            ratios = [measured[f"{about}, ours / {other}, cpu"] for other in ("default", "tuned", "bare", "before")]
            ratios.append(measured[f"{about}, compiled / tuned, cpu"])
            ratios += [value for name, value in measured.items() if name.startswith(f"{about}, gain of sharing")]
            assert said[f"{tokens} tokens, {threads}"] == [f"{ratio:.2f}".removeprefix("0") for ratio in ratios]
    page = (ROOT / "docs" / "learner.md").read_text(encoding="utf-8")
    for few, many in ((32, 128), (128, 512)):
        growth = measured[f"1.1M, 1 thread, ours, growth a doubling, {few} to {many} tokens"]
        assert f"{growth:.2f} times" in page
    assert (
        f"padding by {measured['padded tokens in rows of eight samples, lognormal lengths']:.0%}".replace("%", " %")
        in page
    )


def test_the_docs_say_of_the_whole_step_what_was_measured() -> None:
    path = ROOT / "benchmarks" / "results" / "step.json"
    measured = {row["name"]: row["value"] for row in json.loads(path.read_text(encoding="utf-8"))["figures"]}
    said = {row[0]: row[1:] for row in table_rows()}
    for about in (
        f"{task}, {cores}"
        for task in ("1.1M, 32 tokens", "1.1M, 128 tokens", "6.4M, 32 tokens")
        for cores in ("1 core", "2 cores")
    ):
        kinds = [f"TRL {kind} / ours, {unit}" for kind in ("default", "tuned") for unit in ("wall time", "CPU seconds")]
        ratios = [f"{measured[f'{about}: {kind}']:.2f}" for kind in kinds]
        assert said[about] == [f"{measured[f'{about}: ours, wall time']:.2f} s", *ratios]


def test_the_docs_say_what_fits_as_the_plan_does() -> None:
    shapes = {
        "1.5B": PolicyShape(1_543_714_304, 28, 1536, 8960, 1536, 256, 151936, True),
        "7B": PolicyShape(7_615_616_512, 28, 3584, 18944, 3584, 512, 152064, False),
    }
    memories = [MemoryConfig(activation_checkpointing=kind) for kind in ("none", "selective", "layer")]
    memories.append(MemoryConfig(activation_checkpointing="layer", offload_optimizer=True))
    rows = [row for row in table_rows() if row[0] in shapes]
    assert len(rows) == 9
    for name, ranks, tokens, *said in rows:
        config = LearnerConfig(
            gpus=1, dtype="bfloat16", world_size=int(ranks), microbatch_tokens=int(tokens.replace(",", ""))
        )
        held = [
            footprint(shapes[name], config.model_copy(update={"memory": memory}), shapes[name].parameters).device
            for memory in memories
        ]
        assert said == [f"{size / 2**30:.0f} ({smallest_gpu(size) or 'none'})" for size in held]


def test_an_adapter_s_gradients_and_moments_are_those_of_what_it_trains() -> None:
    whole, part = (learner_footprint(load_recipe(RECIPE, changes)) for changes in ([], ["learner.adapter=lora"]))
    assert whole is not None and part is not None
    trained = part.optimizer / 8
    assert 0 < trained < whole.optimizer / 16
    assert part.gradients / whole.gradients == pytest.approx(part.optimizer / whole.optimizer)
    assert part.weights == whole.weights


def test_the_plan_says_whether_a_rank_fits() -> None:
    fits = load_recipe(RECIPE, [])
    held = learner_footprint(fits)
    assert held is not None and 2**24 < held.device < 2**32
    for overrides, words in (
        ([], "fits into this machine"),
        (["learner.microbatch_tokens=100000000"], "does not fit into this machine"),
        (["learner.gpus=1"], "needs GPUs of 16 GiB"),
    ):
        shown = Console(file=io.StringIO(), width=200, record=True)
        shown.print(learner_table(load_recipe(RECIPE, overrides)))
        assert words in shown.export_text()


def test_the_docs_show_the_runs_that_were_made() -> None:
    runs = json.loads((ROOT / "benchmarks" / "results" / "learner_runs.json").read_text(encoding="utf-8"))["runs"]
    assert set(runs) == set(VARIANTS) and all(
        run["train"]["end"] > run["train"]["start"] + 0.1 for run in runs.values()
    )
    assert table(runs) in (ROOT / "docs" / "learner.md").read_text(encoding="utf-8")


def test_the_docs_show_what_an_adapter_reached() -> None:
    results = ROOT / "benchmarks" / "results"
    adapter = json.loads((results / "smollm2_lora.json").read_text(encoding="utf-8"))["runs"]["as shipped"]
    layers = json.loads((results / "compare_smollm2.json").read_text(encoding="utf-8"))["hierarchical"]
    said = (ROOT / "docs" / "learner.md").read_text(encoding="utf-8")
    for part in ("train", "held_out"):
        ends = np.mean([run[part]["end"] for run in layers])
        for start, end in ((adapter[part]["start"], adapter[part]["end"]), (layers[0][part]["start"], ends)):
            assert f"{start:.3f} → {end:.3f}" in said
