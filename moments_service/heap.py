"""The heap of a process that lives as long as a run, and Python's cyclic collector, which would walk it again and again."""

import gc


def freeze_heap() -> None:
    """Call once, when all is loaded that stays. From then on the collector looks only at what came later.

    Imports of torch and vLLM leave some million objects, and a full collection goes over every one of them: .4 s in which nothing
    is sampled, each 15 to 20 steps. What is frozen is still freed when its last reference goes, unless it is part of a cycle.
    """
    gc.collect()
    gc.freeze()
