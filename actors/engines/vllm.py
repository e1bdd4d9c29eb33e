"""Rollouts on vLLM's `AsyncLLM`: one engine an actor, on CPU or GPU, that takes new weights between two tokens."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, cast

import numpy as np
from vllm import SamplingParams
from vllm.config import WeightTransferConfig
from vllm.distributed.weight_transfer.base import WeightTransferInitRequest, WeightTransferUpdateRequest
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.exceptions import VLLMClientError
from vllm.inputs.engine import tokens_input
from vllm.logprobs import FlatLogprobs
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError as VllmEngineDeadError

from actors.config import RolloutConfig
from actors.engines.adapter_plan import AdapterPlan
from actors.engines.adapters import adapted_layers, verify_adapter
from actors.engines.gate import Gate
from actors.engines.kinds import VllmConfig
from actors.engines.policy_files import PolicyFiles, read_policy_files, verify_offer
from actors.engines.protocol import Completion, EngineDeadError, FinishReason, GenerationRequest, Running
from actors.engines.vllm_adapters import SLOTS, lora_request, refuse_unadapted, room_for
from actors.engines.vllm_lifetime import EngineLifetime
from actors.engines.vllm_weight_transfer import BACKEND
from actors.weights.memory_file import MemoryFile
from actors.weights.offer import Blob, WeightError, WeightOffer


class VllmEngine:
    """`Engine` on vLLM. It lives in the event loop that started it.

    Consumes: requests, as many at once as callers send; vLLM queues what exceeds `max_concurrent`.
    Waits for: its gate, which an update closes. Ended by: `close`, which fails what is still running.
    """

    def __init__(self, config: RolloutConfig, policy: str, seed: int, adapter: AdapterPlan | None = None) -> None:
        """seed: of this engine alone; two with the same one would sample alike.    adapter: where weights come as adapters alone."""
        self._args = engine_args(config, policy, seed % 2**31, adapter)
        self._policy, self._adapter = policy, adapter
        # A GPU is given back in order; elsewhere nothing outlives the processes, and Python takes seconds to take one apart.
        self._grace_s = None if config.gpus > 0 else 0.0
        self._version = 0
        self._gate = Gate()
        self._running: dict[str, int | None] = {}
        """Requests by id: the version that each began with, None while it waits at the gate."""
        self._llm: AsyncLLM | None = None
        self._lifetime: EngineLifetime | None = None
        self._files: PolicyFiles | None = None
        self._copy: MemoryFile | None = None

    @property
    def policy_version(self) -> int:
        """Version of the weights that the next token is sampled with; 0 is what was loaded at the start."""
        return self._version

    async def start(self) -> None:
        """Load the policy into a child process. Raises whatever kept vLLM from starting."""
        self._files = await asyncio.to_thread(read_policy_files, self._policy)
        self._llm = llm = await asyncio.to_thread(AsyncLLM.from_engine_args, self._args)
        self._lifetime = EngineLifetime(llm, self._gate.refuse)
        with _our_errors():
            await self._lifetime.during(_prepare(llm, self._version))
            if self._adapter is not None:
                await self._lifetime.during(_refuse_unadaptable(llm, self._policy, self._adapter))
        self._gate.open()

    async def generate(self, request: GenerationRequest) -> tuple[Completion, ...]:
        """Sample `request.n` completions. Greedy log-probs are those of the softmax at temperature 1.

        Raises ValueError for a request that vLLM refuses or whose id is running, `EngineDeadError` if vLLM died or
        was closed, `WeightError` if an update failed, before or meanwhile.
        """
        if request.request_id in self._running:
            raise ValueError(f"request {request.request_id} is already running")
        self._running[request.request_id] = None
        try:
            await self._gate.enter()
            began = self._running[request.request_id] = self._version
            output = await self._final_output(request, began)
            self._gate.raise_if_refusing()
            samples = sorted(output.outputs, key=lambda each: each.index)
            # Greedy decoding has one outcome, and vLLM refuses to be asked for more.
            all_of_it = None if self._adapter is None else began
            samples = samples if len(samples) == request.n else samples * request.n
            return tuple(_completion(each, all_of_it) for each in samples)
        finally:
            del self._running[request.request_id]

    async def take_weights(self, offer: WeightOffer, running: Running) -> None:
        """Swap the whole policy between two tokens. With `keep`, running requests go on with the new weights, prefixes recomputed.
        An adapter comes beside the one before it, which running requests end with; those of a still older one end first.

        Raises `WeightError` if the offer is damaged, incomplete or cannot be loaded, `EngineDeadError` if vLLM
        died. The engine then never serves again: running and later requests raise too.
        """
        try:
            async with self._gate.update(offer.version):
                await (self._replace_weights if self._adapter is None else self._add_adapter)(offer, running)
        finally:
            if self._gate.refusing:
                await self._wake_running()

    async def close(self) -> None:
        """End the child processes; running requests raise `EngineDeadError`. Closing twice does nothing."""
        self._gate.refuse(EngineDeadError("it was closed"))
        await self._wake_running()
        llm, self._llm = self._llm, None
        if self._lifetime is not None:
            self._lifetime.close()
        if llm is None:
            return
        if llm.output_handler is not None:
            # It would report the end of its engine as an error.
            llm.output_handler.cancel()
        await asyncio.to_thread(_shut_down, llm, self._grace_s)

    async def _wake_running(self) -> None:
        """Make vLLM hand back what runs; its callers then find the engine refusing."""
        if self._llm is not None:
            await self._llm.abort(list(self._running))

    async def _final_output(self, request: GenerationRequest, version: int) -> RequestOutput:
        assert self._llm is not None and self._files is not None
        prompt = tokens_input(list(request.token_ids))
        final: RequestOutput | None = None
        with _our_errors():
            params = sampling_params(request, self._files.eos_token_ids)
            lora = None if self._adapter is None else lora_request(version)
            async for output in self._llm.generate(prompt, params, request.request_id, lora_request=lora):
                final = output
        if final is None or len(final.outputs) != params.n:
            raise RuntimeError(f"vLLM returned {len(final.outputs) if final else 0} of {params.n} completions")
        return final

    async def _replace_weights(self, offer: WeightOffer, running: Running) -> None:
        llm, lifetime, blob = self._llm, self._lifetime, offer.address
        assert llm is not None and lifetime is not None and self._files is not None
        await asyncio.to_thread(verify_offer, offer, self._files)
        path = offer.path or await asyncio.to_thread(self._copied, blob)
        tensors = [asdict(entry) for entry in offer.manifest]
        info = WeightTransferUpdateRequest({"path": path, "size": blob.nbytes, "tensors": tensors})
        with _our_errors():
            await lifetime.during(llm.pause_generation(mode=running, clear_cache=False))
            await lifetime.during(_load(llm, info, offer.version))
            self._version = offer.version
            await lifetime.during(llm.resume_generation())

    async def _add_adapter(self, offer: WeightOffer, running: Running) -> None:
        llm, lifetime, blob = self._llm, self._lifetime, offer.address
        assert llm is not None and lifetime is not None and self._files is not None
        await asyncio.to_thread(verify_adapter, offer, self._files.shapes)
        path = offer.path or await asyncio.to_thread(self._copied, blob)
        tensors = [asdict(entry) for entry in offer.manifest]
        older = set(self._running.values()) - {None, 0, self._version}  # version 0 needs no slot
        mode: Running = "wait" if running == "keep" and older else running
        with _our_errors():
            if mode != "keep":
                await lifetime.during(llm.pause_generation(mode=mode, clear_cache=False))
            await lifetime.during(_hold(llm, (offer.version, path, blob.nbytes, tensors, [self._version])))
            self._version = offer.version
            if mode != "keep":
                await lifetime.during(llm.resume_generation())

    def _copied(self, blob: Blob) -> str:
        """Where vLLM's process reads bytes that lie in this one's memory alone. They stay there until the next version."""
        if self._copy is None or len(self._copy.bytes) != len(blob):
            self._copy = MemoryFile(len(blob))
        self._copy.bytes[:] = blob
        return self._copy.path


def engine_args(rollout: RolloutConfig, policy: str, seed: int, adapter: AdapterPlan | None = None) -> AsyncEngineArgs:
    """Everything that makes vLLM an RL sampler: log-probs of what was really sampled, nothing taken from files."""
    config = rollout.engine
    assert isinstance(config, VllmConfig)
    tensor_parallel = max(1, int(rollout.gpus))
    if rollout.gpus > 0:
        device: dict[str, Any] = {"gpu_memory_utilization": config.gpu_memory_share}
    else:
        # With its size given and nothing compiled, vLLM skips the warm-up; blocks of 32 decode short prompts fastest.
        device = {
            "enforce_eager": True,
            "block_size": 32,
            "kv_cache_memory_bytes": int(config.kv_cache_gib * 2**30),
        }
    if adapter is not None:
        device |= {"enable_lora": True, "max_lora_rank": room_for(adapter.rank), "max_loras": SLOTS}
    return AsyncEngineArgs(
        model=policy,
        skip_tokenizer_init=True,
        trust_remote_code=False,
        dtype=rollout.dtype,
        seed=seed,
        max_model_len=rollout.max_model_len,
        max_num_seqs=config.max_concurrent,
        logprobs_mode="processed_logprobs",
        # The default takes top-k, top-p and temperature from the checkpoint's generation_config.json, unsaid.
        generation_config="vllm",
        enable_prefix_caching=True,
        tensor_parallel_size=tensor_parallel,
        # Said because inside a placement group vLLM would pick Ray.
        distributed_executor_backend="mp" if tensor_parallel > 1 else "uni",
        worker_extension_cls="actors.engines.vllm_worker.WorkerExtension",
        weight_transfer_config=WeightTransferConfig(backend=BACKEND),
        disable_log_stats=True,
        use_tqdm_on_load=False,
        **device,
    )


def sampling_params(request: GenerationRequest, eos_token_ids: tuple[int, ...]) -> SamplingParams:
    """vLLM's form of a request. Without a tokenizer vLLM knows no end-of-sequence token: it is a stop token here."""
    return SamplingParams(
        n=request.n if request.temperature > 0 else 1,
        max_tokens=request.max_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k,
        stop_token_ids=sorted({*request.stop_token_ids, *eos_token_ids}),
        logprobs=0,
        flat_logprobs=True,
        detokenize=False,
        # Any other kind loses samples when n > 1 and only the last output is kept.
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


async def _prepare(llm: AsyncLLM, version: int) -> None:
    # vLLM keeps the answer: later requests are registered without yielding, so that whoever ends all of them finds each.
    await llm.get_supported_tasks()
    await llm.init_weight_transfer_engine(WeightTransferInitRequest())
    await llm.update_weight_version(str(version))


async def _refuse_unadaptable(llm: AsyncLLM, policy: str, plan: AdapterPlan) -> None:
    layers = await asyncio.to_thread(adapted_layers, policy, plan)
    refuse_unadapted(policy, (await llm.collective_rpc("unadaptable", args=(list(layers),)))[0])


async def _hold(llm: AsyncLLM, adapter: tuple[Any, ...]) -> None:
    try:
        await llm.collective_rpc("take_adapter", args=adapter)
    except VllmEngineDeadError:
        raise
    except Exception as error:
        # vLLM reports what its worker raised as a bare Exception.
        raise WeightError(f"vLLM could not take the adapter of policy version {adapter[0]}: {error}") from error


async def _load(llm: AsyncLLM, info: WeightTransferUpdateRequest, version: int) -> None:
    try:
        await llm.start_weight_update()
        await llm.update_weights(info)
        await llm.finish_weight_update(weight_version=str(version))
    except VllmEngineDeadError:
        raise
    except Exception as error:
        # vLLM reports what its worker raised as a bare Exception.
        raise WeightError(f"vLLM could not load policy version {version}: {error}") from error
    # vLLM keeps the prefixes of the old weights otherwise; running requests are preempted and recomputed.
    if not await llm.reset_prefix_cache(reset_running_requests=True):
        raise WeightError("vLLM did not drop the prefixes that the old weights computed")


def _shut_down(llm: AsyncLLM, grace_s: float | None) -> None:
    """grace_s: for its processes to end by themselves, as long as vLLM finds right if None."""
    manager = llm.engine_core.resources.engine_manager
    processes = list(manager.processes) if manager is not None else []
    llm.shutdown(timeout=grace_s)
    for process in processes:
        # vLLM kills what does not end in time, and does not wait for that.
        process.join()


@contextmanager
def _our_errors() -> Iterator[None]:
    try:
        yield
    except VllmEngineDeadError as error:
        raise EngineDeadError(f"vLLM's engine process died: {error}") from error
    except VLLMClientError as error:
        raise ValueError(f"vLLM refuses the request: {error}") from error


def _completion(output: CompletionOutput, version: int | None) -> Completion:
    """version: that sampled all of it; None where vLLM knows it token by token."""
    token_ids = np.asarray(output.token_ids, dtype=np.int32)
    logprobs = np.asarray(cast(FlatLogprobs, output.logprobs).logprobs, dtype=np.float32)
    versions = np.full(token_ids.shape, -1 if version is None else version, dtype=np.int32)
    for span in (output.weight_versions or ()) if version is None else ():
        versions[span.start : span.end] = int(span.version)
    if logprobs.shape != token_ids.shape or (versions < 0).any():
        raise RuntimeError(f"vLLM returned {len(token_ids)} tokens with {len(logprobs)} log-probs, versions {versions}")
    return Completion(token_ids, logprobs, versions, cast(FinishReason, output.finish_reason))
