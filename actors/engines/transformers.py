"""Rollouts on transformers' `generate`: one request at a time, the same tokens whatever the order of arrival."""

import asyncio
import threading
from typing import Any, cast

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)

from actors.config import RolloutConfig
from actors.engines.adapter_plan import AdapterPlan
from actors.engines.adapters import opened_pairs, verify_adapter
from actors.engines.gate import Gate
from actors.engines.policy_files import LM_HEAD, PolicyFiles, read_policy_files, verify_offer
from actors.engines.protocol import Completion, EngineDeadError, FinishReason, GenerationRequest, Running
from actors.weights.block import open_tensors
from actors.weights.offer import WeightError, WeightOffer
from moments_service.seeding import derive_seed


class TransformersEngine:
    """`Engine` for tests and for machines without vLLM.

    Consumes: requests, served in order, each on a thread. Waits for: its turn, and its gate, which an update closes
    after the request that runs. Ended by: `close`, which aborts what runs.
    Every request has its own random stream, from its seed and its id: neither the order of arrival nor the engine it
    lands on changes what is sampled. `generate` keeps the scores of a request: n * T * vocabulary * 4 bytes.
    """

    def __init__(self, config: RolloutConfig, policy: str, seed: int, adapter: AdapterPlan | None = None) -> None:
        """seed: without meaning here, where every request brings its own.    adapter: where weights come as adapters alone."""
        self._config, self._policy, self._adapter = config, policy, adapter
        self._device = torch.device("cuda" if config.gpus > 0 else "cpu")
        self._version = 0
        self._gate = Gate()
        self._turn = asyncio.Lock()
        self._requests: set[str] = set()
        # What ends the request that is on the thread.
        self._abort: threading.Event | None = None
        self._model: PreTrainedModel | None = None
        self._files: PolicyFiles | None = None
        # Weights of adapted layers as they were at the start.
        self._base: dict[str, torch.Tensor] = {}

    @property
    def policy_version(self) -> int:
        """Version of the weights that the next token is sampled with; 0 is what was loaded at the start."""
        return self._version

    async def start(self) -> None:
        """Load the policy in this process. Raises OSError if it cannot be found."""
        self._files = await asyncio.to_thread(read_policy_files, self._policy)
        self._model = await asyncio.to_thread(self._load)
        self._gate.open()

    async def generate(self, request: GenerationRequest) -> tuple[Completion, ...]:
        """Sample `request.n` completions. Greedy log-probs are those of the softmax at temperature 1.

        Raises ValueError for a prompt that is empty or fills `max_model_len`, or an id that is running,
        `EngineDeadError` after `close`, `WeightError` if an update failed.
        """
        if request.request_id in self._requests:
            raise ValueError(f"request {request.request_id} is already running")
        if not 0 < len(request.token_ids) < self._config.max_model_len:
            raise ValueError(f"a prompt of {len(request.token_ids)} tokens; 1 to {self._config.max_model_len - 1} fit")
        self._requests.add(request.request_id)
        try:
            while True:
                await self._gate.enter()
                async with self._turn:
                    if self._gate.closed:
                        continue  # An update came while this request waited for its turn, and goes first.
                    self._gate.raise_if_refusing()
                    completions = await self._on_thread(request)
                    self._gate.raise_if_refusing()
                    return completions
        finally:
            self._requests.discard(request.request_id)

    async def take_weights(self, offer: WeightOffer, running: Running) -> None:
        """Load the whole policy after the request that runs has ended, which `abort` makes happen now.

        Raises `WeightError` if the offer is damaged or does not fit; the engine then never serves again.
        """
        async with self._gate.update(offer.version):
            if running == "abort" and self._abort is not None:
                self._abort.set()
            async with self._turn:
                await asyncio.to_thread(self._replace_weights if self._adapter is None else self._merge, offer)
                self._version = offer.version

    async def close(self) -> None:
        """Abort what runs, whose callers get `EngineDeadError`, and drop the policy. Closing twice does nothing."""
        self._gate.refuse(EngineDeadError("it was closed"))
        if self._abort is not None:
            self._abort.set()
        async with self._turn:
            self._model = None

    def _load(self) -> PreTrainedModel:
        dtype = getattr(torch, self._config.dtype)
        model: Any = AutoModelForCausalLM.from_pretrained(self._policy, dtype=dtype, trust_remote_code=False)
        model.to(self._device).eval()
        # The checkpoint's own top-k, top-p and temperature would fill in for what a request leaves at its default.
        model.generation_config = GenerationConfig()
        return cast(PreTrainedModel, model)

    async def _on_thread(self, request: GenerationRequest) -> tuple[Completion, ...]:
        abort = self._abort = threading.Event()
        work = asyncio.ensure_future(asyncio.to_thread(self._sample, request, abort))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            # A thread cannot be cancelled; the next request may not share the model and the random state with it.
            abort.set()
            await asyncio.wait({work})
            raise
        finally:
            self._abort = None

    @torch.inference_mode()
    def _sample(self, request: GenerationRequest, abort: threading.Event) -> tuple[Completion, ...]:
        assert self._model is not None and self._files is not None
        stops = sorted({*request.stop_token_ids, *self._files.eos_token_ids})
        room = self._config.max_model_len - len(request.token_ids)
        prompt = torch.tensor([request.token_ids] * request.n, device=self._device)
        with torch.random.fork_rng(devices=[self._device] if self._device.type == "cuda" else []):
            torch.manual_seed(derive_seed(request.seed, request.request_id))
            generate: Any = self._model.generate
            output = generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                generation_config=_generation_config(request, stops, room),
                stopping_criteria=StoppingCriteriaList([_Aborted(abort)]),
            )
        tokens = output.sequences[:, len(request.token_ids) :]
        logprobs = torch.stack(
            [
                scores.float().log_softmax(-1).gather(-1, tokens[:, step, None])[:, 0]
                for step, scores in enumerate(output.scores)
            ],
            dim=1,
        )
        full = tokens.shape[1] == min(request.max_tokens, room)
        rows = zip(tokens.cpu().numpy(), logprobs.cpu().numpy(), strict=True)
        return tuple(self._completion(ids, values, stops, "length" if full else "abort") for ids, values in rows)

    def _completion(
        self, token_ids: np.ndarray, logprobs: np.ndarray, stops: list[int], otherwise: FinishReason
    ) -> Completion:
        ends = np.flatnonzero(np.isin(token_ids, stops))
        length = ends[0] + 1 if len(ends) else len(token_ids)
        return Completion(
            token_ids=token_ids[:length].astype(np.int32),
            logprobs=logprobs[:length].astype(np.float32),
            versions=np.full(length, self._version, dtype=np.int32),
            finish_reason="stop" if len(ends) else otherwise,
        )

    def _replace_weights(self, offer: WeightOffer) -> None:
        assert self._model is not None and self._files is not None
        verify_offer(offer, self._files)
        tied = {LM_HEAD} if self._files.tied else set()
        tensors = open_tensors(offer.manifest, offer.address)
        if not tensors.keys() <= self._model.state_dict().keys():
            tensors = self._as_in_memory(tensors, offer.version)
        result = self._model.load_state_dict(tensors, strict=False)
        if set(result.missing_keys) - tied or result.unexpected_keys:
            raise WeightError(
                f"weights of policy version {offer.version} were loaded in part: "
                f"missing {result.missing_keys[:3]}, unknown {result.unexpected_keys[:3]}"
            )

    @torch.no_grad()
    def _merge(self, offer: WeightOffer) -> None:
        """Add an adapter to the weights of the start. Holds those of its layers a second time."""
        assert self._model is not None and self._files is not None
        verify_adapter(offer, self._files.shapes)
        for layer, (a, b) in opened_pairs(offer).items():
            weight = cast(torch.Tensor, self._model.get_submodule(layer).weight)
            base = self._base.setdefault(layer, weight.clone())
            change = b.to(weight.device, torch.float32) @ a.to(weight.device, torch.float32)
            weight.copy_(base.float() + change)

    def _as_in_memory(self, tensors: dict[str, torch.Tensor], version: int) -> dict[str, torch.Tensor]:
        """Tensors by their names in files as the model joins and names them. Holds the policy a second time."""
        model: Any = self._model
        # Clones, because transformers may keep what it is given, and these bytes are not ours.
        given = {name: tensor.clone() for name, tensor in tensors.items()}
        loaded, found = type(model).from_pretrained(
            None, config=model.config, state_dict=given, dtype=model.dtype, output_loading_info=True
        )
        if wrong := {kind: sorted(map(str, names)) for kind, names in found.items() if names}:
            raise WeightError(f"weights of policy version {version} do not fit the loaded policy: {wrong}")
        state: dict[str, torch.Tensor] = loaded.state_dict()
        return state


class _Aborted(StoppingCriteria):
    def __init__(self, abort: threading.Event) -> None:
        self._abort = abort

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), self._abort.is_set(), device=input_ids.device, dtype=torch.bool)


def _generation_config(request: GenerationRequest, stops: list[int], room: int) -> GenerationConfig:
    sampled = {"temperature": request.temperature, "top_p": request.top_p, "top_k": request.top_k}
    return GenerationConfig(
        max_new_tokens=min(request.max_tokens, room),
        do_sample=request.temperature > 0,
        eos_token_id=stops or None,
        # Fills the rows that ended before the longest; cut off again at each row's first stop token.
        pad_token_id=stops[0] if stops else 0,
        return_dict_in_generate=True,
        output_scores=True,
        **(sampled if request.temperature > 0 else {}),
    )
