"""Engines sample from the weights that they were sent, also where the files of a policy name tensors otherwise than memory does."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from actors.config import RolloutConfig
from actors.engines.create import create_engine
from actors.engines.file_names import file_tensors, sent_tensors
from actors.engines.protocol import GenerationRequest
from actors.weights.block import pack
from tests.made_policies import MADE, made

pytestmark = pytest.mark.contract


def expected_logprobs(model: Any, prompt: tuple[int, ...], token_ids: np.ndarray) -> np.ndarray:
    tokens = torch.tensor([[*prompt, *token_ids.tolist()]])
    with torch.no_grad():
        logits = model(tokens).logits[0, len(prompt) - 1 : -1].double()
    chosen = torch.from_numpy(token_ids).long()
    return torch.log_softmax(logits, -1)[torch.arange(len(chosen)), chosen].numpy()


@pytest.mark.parametrize("name", MADE)
async def test_an_engine_samples_from_the_weights_it_was_sent(name: str, tmp_path: Path) -> None:
    await sampled_after_an_update("transformers", name, tmp_path)


# vLLM's latent attention on CPU takes the published sizes only ("Head dimension 24 is not supported by MLA"), and with those its
# log-probs are not those of transformers, before any update and without experts too.
@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in MADE if name != "deepseek_v3"])
async def test_vllm_samples_from_the_weights_it_was_sent(name: str, tmp_path: Path) -> None:
    await sampled_after_an_update({"kind": "vllm", "kv_cache_gib": 0.125}, name, tmp_path)


async def sampled_after_an_update(engine_config: Any, name: str, tmp_path: Path) -> None:
    """Log-probs before and after two updates are those of the model that was loaded, and of those that were sent."""
    made(MADE[name]).save_pretrained(tmp_path)
    engine = create_engine(RolloutConfig(engine=engine_config, max_model_len=128), str(tmp_path), seed=7, index=0)
    try:
        await engine.start()
        for version in range(3):
            model = made(MADE[name], seed=version)
            if version:
                offer, blob = pack(file_tensors(model, sent_tensors(model)), version)
                await engine.take_weights(replace(offer, address=blob), "keep")
            request = GenerationRequest(f"version {version}", tuple(range(3, 40)), n=2, max_tokens=12)
            for each in await engine.generate(request):
                assert (each.versions == version).all()
                expected = expected_logprobs(model, request.token_ids, each.token_ids)
                np.testing.assert_allclose(each.logprobs, expected, atol=1e-4, rtol=0)
    finally:
        await engine.close()
