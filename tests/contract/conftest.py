"""Tiny random policies and an independent oracle of their log-probs, for the contract tests."""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, PreTrainedModel, Qwen3Config

from actors.engines.protocol import Completion, GenerationRequest
from actors.weights.block import pack
from actors.weights.offer import WeightOffer
from tests.gloo_ranks import on_two_ranks, rank_processes

__all__ = ["on_two_ranks", "rank_processes"]

VOCABULARY = 256
EOS = 2
MAX_LENGTH = 1024


def policy_config(family: str, tied: bool) -> PretrainedConfig:
    """A grouped-query policy of two layers; weights are spread wide so that no two versions sample alike."""
    kind = {"qwen3": Qwen3Config, "llama": LlamaConfig}[family]
    return kind(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=MAX_LENGTH,
        initializer_range=0.1,
        tie_word_embeddings=tied,
        bos_token_id=1,
        eos_token_id=EOS,
        pad_token_id=0,
    )


def packed(tensors: Iterable[tuple[str, torch.Tensor]], version: int) -> WeightOffer:
    """An offer with its bytes in this process."""
    offer, blob = pack(tensors, version)
    return replace(offer, address=blob)


@dataclass
class TinyPolicy:
    """Every version of one random policy: version v is drawn from seed v. `path` holds version 0."""

    family: str
    tied: bool
    path: Path
    models: dict[int, PreTrainedModel] = field(default_factory=dict)

    def model(self, version: int) -> PreTrainedModel:
        """The policy at one version, fp32."""
        if version not in self.models:
            with torch.random.fork_rng():
                torch.manual_seed(version)
                model = AutoModelForCausalLM.from_config(policy_config(self.family, self.tied), dtype=torch.float32)
            self.models[version] = model.eval()
        return self.models[version]

    def offer(self, version: int) -> WeightOffer:
        """What a learner would offer, fetched; of a tied policy without its output head."""
        return packed(self.model(version).named_parameters(), version)

    def logprobs(self, request: GenerationRequest, completion: Completion) -> np.ndarray:
        """[T] log-probs of a completion, each token under its own version, by one full forward pass a version."""
        tokens = torch.tensor([[*request.token_ids, *completion.token_ids.tolist()]])
        start, length = len(request.token_ids) - 1, len(completion.token_ids)
        result = np.full(length, np.nan)
        for version in np.unique(completion.versions):
            with torch.no_grad():
                logits = self.model(int(version))(tokens).logits[0, start : start + length].double()
            all_logprobs = torch.log_softmax(_processed(logits, request), dim=-1)
            sampled = all_logprobs[torch.arange(length), torch.from_numpy(completion.token_ids).long()].numpy()
            at = completion.versions == version
            result[at] = sampled[at]
        return result


def _processed(logits: torch.Tensor, request: GenerationRequest) -> torch.Tensor:
    if request.temperature == 0:
        return logits
    logits = logits / request.temperature
    if request.top_k:
        logits = logits.masked_fill(logits < logits.topk(request.top_k).values[:, -1:], -torch.inf)
    if request.top_p < 1:
        ordered, order = logits.softmax(-1).sort(descending=True)
        outside = ordered.cumsum(-1) - ordered >= request.top_p
        logits = logits.masked_fill(torch.zeros_like(outside).scatter(1, order, outside), -torch.inf)
    return logits


@pytest.fixture(scope="session")
def tiny_policy(tmp_path_factory: pytest.TempPathFactory):
    """Makes tiny policies: `tiny_policy("qwen3", tied=True)`."""

    def make(family: str, tied: bool) -> TinyPolicy:
        policy = TinyPolicy(family, tied, tmp_path_factory.mktemp(f"{family}-{'tied' if tied else 'untied'}"))
        policy.model(0).save_pretrained(policy.path)
        return policy

    return make


_ids = itertools.count()


@pytest.fixture(scope="session")
def make_request():
    """Makes requests with a random prompt of `length` tokens and an id of their own."""

    def make(length: int = 12, n: int = 4, max_tokens: int = 16, **settings: object) -> GenerationRequest:
        number = next(_ids)
        prompt = np.random.default_rng(number).integers(3, VOCABULARY, length)
        settings = {"request_id": f"request-{number}", "token_ids": tuple(prompt.tolist())} | settings
        return GenerationRequest(n=n, max_tokens=max_tokens, **settings)

    return make
