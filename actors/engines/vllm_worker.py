"""What vLLM imports inside its worker: it registers our weight transport, takes adapters, and ends the worker with its rollout actor."""

import multiprocessing
import os
import threading
from multiprocessing.process import BaseProcess

from vllm.distributed.weight_transfer import WeightTransferEngineFactory

from actors.engines.vllm_adapters import AdapterHolder
from actors.engines.vllm_weight_transfer import BACKEND, FileWeightTransferEngine


class WorkerExtension(AdapterHolder):
    """Named in `worker_extension_cls`, so that vLLM imports this module and its worker has these methods."""


def _end_with(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)


WeightTransferEngineFactory.register_engine(BACKEND, FileWeightTransferEngine)

_parent = multiprocessing.parent_process()
if _parent is not None:
    # A killed actor takes nothing with it: its engine would hold memory and cores until somebody finds it.
    threading.Thread(target=_end_with, args=(_parent,), daemon=True, name="end-with-parent").start()
