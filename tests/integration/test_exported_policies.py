"""What was exported of a policy, merged or its adapter alone, samples in vLLM with the log-probs that transformers and peft compute."""

from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from transformers import AutoModelForCausalLM
from vllm import SamplingParams
from vllm.inputs.engine import tokens_input
from vllm.lora.request import LoRARequest
from vllm.v1.engine.async_llm import AsyncLLM

from actors.config import RolloutConfig
from actors.engines.kinds import VllmConfig
from actors.engines.vllm import engine_args
from learner.adapters import Lora
from learner.export import export_adapter
from tests.contract.conftest import policy_config
from tests.unit.test_learner_rank import config_with, draw_groups, running_rank

pytestmark = [pytest.mark.integration, pytest.mark.long]
PROMPT = list(range(3, 20))
RANK = 8


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directories `policy`, `merged` and `adapter`, after three steps."""
    root = tmp_path_factory.mktemp("exported")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(policy_config("llama", tied=True), dtype=torch.float32)
    model.save_pretrained(root / "policy")
    with running_rank(str(root / "policy"), config_with(lr=3e-2, adapter=Lora(rank=RANK))) as rank:
        for step in range(3):
            rank.step([draw_groups(step)], step)
        export_adapter(root / "adapter", rank.policy, str(root / "policy"), torch.float32)
        rank.export_hf(root / "merged")
    return root


async def sampled(policy: Path, adapter: Path | None) -> tuple[list[int], np.ndarray]:
    """Tokens that vLLM samples, and their log-probs."""
    args = engine_args(RolloutConfig(engine=VllmConfig(kv_cache_gib=0.125), max_model_len=128), str(policy), seed=1)
    args.enable_lora, args.max_lora_rank = adapter is not None, RANK
    llm = AsyncLLM.from_engine_args(args)
    try:
        request = None if adapter is None else LoRARequest("version 3", 3, str(adapter))
        params = SamplingParams(max_tokens=8, logprobs=0, flat_logprobs=True, detokenize=False)
        async for output in llm.generate(tokens_input(PROMPT), params, "one", lora_request=request):
            found: Any = output.outputs[0]
        return list(found.token_ids), np.asarray(found.logprobs.logprobs)
    finally:
        llm.shutdown()


def expected(model: Any, tokens: list[int]) -> np.ndarray:
    """Log-probs of tokens after the prompt."""
    with torch.no_grad():
        logprobs = model(input_ids=torch.tensor([PROMPT + tokens])).logits[0].log_softmax(-1)
    return logprobs[len(PROMPT) - 1 : -1].gather(1, torch.tensor(tokens)[:, None])[:, 0].numpy()


async def test_vllm_loads_the_merged_policy(exported: Path) -> None:
    tokens, logprobs = await sampled(exported / "merged", None)
    model = AutoModelForCausalLM.from_pretrained(exported / "merged", dtype=torch.float32)
    np.testing.assert_allclose(logprobs, expected(model, tokens), atol=1e-5, rtol=0)


async def test_vllm_loads_the_adapter_beside_the_policy(exported: Path) -> None:
    tokens, logprobs = await sampled(exported / "policy", exported / "adapter")
    plain = AutoModelForCausalLM.from_pretrained(exported / "policy", dtype=torch.float32)
    without = expected(plain, tokens)
    model = peft.PeftModel.from_pretrained(plain, exported / "adapter")
    np.testing.assert_allclose(logprobs, expected(model, tokens), atol=1e-5, rtol=0)
    assert np.abs(logprobs - without).max() > 1e-2, "the adapter does something"
