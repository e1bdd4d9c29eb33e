"""What a recipe would run: actors, resources, memory, batch arithmetic. Starts nothing."""

import json
import math
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from actors.engines.kinds import VllmConfig
from actors.prompts.curricula import curriculum_of
from actors.prompts.curricula.options import StepsCurriculum
from actors.prompts.pool import PromptPool
from deploy.cluster.environment import machine
from deploy.config.fresh import most_dealt
from deploy.config.models import RunConfig
from learner.footprint import Footprint, footprint, policy_shape, smallest_gpu
from learner.trained import trained_parameters

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_PROCESS_GIB = {"vllm": 1.8, "transformers": 0.9, "learner": 0.7, "moments": 0.3, "driver": 0.6}
"""Resident memory of each process before it holds a policy, as seen with the pinned packages on CPU."""

_ORDERS = {
    "shuffled": "every prompt once an epoch",
    "signal": "clusters that promise signal first",
    "mopps": "prompts whose success rate may be near one half first (MoPPS)",
    "greso": "shuffled, prompts with uniform groups mostly skipped (GRESO)",
    "kalman": "prompts near one half more often (Kalman)",
}


@dataclass(frozen=True, slots=True)
class PlanRow:
    """One kind of process."""

    what: str
    count: int
    cpus: float
    gpus: float
    gib: float


def plan_rows(config: RunConfig) -> list[PlanRow]:
    """The processes of a run, with a rough estimate of the memory that each needs."""
    weights = policy_parameters(config.policy) or 0
    rollout, learner = config.rollout, config.learner
    engine_gib = weights * _BYTES[rollout.dtype] / 2**30
    if isinstance(rollout.engine, VllmConfig) and rollout.gpus == 0:
        engine_gib += rollout.engine.kv_cache_gib
    held = learner_footprint(config)
    # Without a config.json that says more: masters, gradients and both Adam moments in float32, sharded over the ranks.
    rank_bytes = 16 * weights / learner.world_size if held is None else held.offloaded if learner.gpus else held.device
    rank_gib = rank_bytes / 2**30
    return [
        PlanRow(f"rollout actor ({rollout.engine.kind})", rollout.actors, rollout.cpus, rollout.gpus, _PROCESS_GIB[rollout.engine.kind] + engine_gib),
        PlanRow("learner rank (FSDP2)", learner.world_size, learner.cpus, learner.gpus, _PROCESS_GIB["learner"] + rank_gib),
        PlanRow("moments service", 1, 0, 0, _PROCESS_GIB["moments"]),
        PlanRow("driver", 1, 0, 0, _PROCESS_GIB["driver"]),
    ]  # fmt: skip


def processes_table(config: RunConfig) -> Table:
    """What would be started."""
    table = Table(title=f"{config.name}: what would run", title_style="bold")
    table.add_column("process")
    for name in ("count", "CPUs", "GPUs", "GiB, about"):
        table.add_column(name, justify="right")
    rows = plan_rows(config)
    for number, row in enumerate(rows):
        cells = (f"{row.count * row.cpus:g}", f"{row.count * row.gpus:g}", f"{row.count * row.gib:.1f}")
        table.add_row(row.what, str(row.count), *cells, end_section=number == len(rows) - 1)
    cpus, gpus, gib = (sum(row.count * getattr(row, name) for row in rows) for name in ("cpus", "gpus", "gib"))
    here = machine()
    table.add_row("all", str(sum(row.count for row in rows)), f"{cpus:g}", f"{gpus:g}", f"{gib:.1f}")
    table.add_row("this machine", "", str(here["cores"]), "", str(here["memory_gib"]), style="dim")
    return table


def learner_footprint(config: RunConfig) -> Footprint | None:
    """What a learner rank would hold; None where the policy's shape is not known here."""
    parameters = policy_parameters(config.policy)
    shape = policy_shape(config.policy, parameters) if parameters else None
    if shape is None:
        return None
    return footprint(shape, config.learner, trained_parameters(policy_shapes(config.policy), config.learner))


def learner_table(config: RunConfig) -> Table | None:
    """What a learner rank would hold, and whether it fits; None where the policy's shape is not known here."""
    held = learner_footprint(config)
    if held is None:
        return None
    table = Table(title="a learner rank at its peak, about", title_style="bold", show_header=False)
    parts = {"weights": held.weights, "gradients": held.gradients, "reference and average": held.beside}
    parts |= {"optimizer": held.optimizer, "activations": held.activations, "head": held.head}
    for name, size in parts.items():
        if size or name != "reference and average":
            table.add_row(name, _gib(size))
    if held.offloaded:
        table.add_row("optimizer, in host memory", _gib(held.offloaded))
    table.add_row("all", f"{_gib(held.device)}: {_fit(config, held)}")
    return table


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"


def _fit(config: RunConfig, held: Footprint) -> str:
    remedy = "lower learner.microbatch_tokens, set learner.memory.activation_checkpointing, or add ranks"
    if config.learner.gpus > 0:
        gib = smallest_gpu(held.device / config.learner.gpus)
        return f"needs GPUs of {gib} GiB" if gib is not None else f"fits into no GPU: {remedy}"
    here = float(machine()["memory_gib"])
    whole = config.learner.world_size * held.device / 2**30
    return "fits into this machine" if whole <= here else f"does not fit into this machine's {here:g} GiB: {remedy}"


def arithmetic_table(config: RunConfig, pool: PromptPool) -> Table:
    """What a step and the run amount to."""
    completions = config.batch_groups * config.group_size
    parameters = policy_parameters(config.policy)
    table = Table(title="what it would do", title_style="bold", show_header=False)
    rows = {
        "policy": f"{config.policy}" + (f" ({parameters / 1e6:.2f}M parameters)" if parameters else ""),
        "prompts": f"{len(pool.train)} for training, {len(pool.held_out)} held out, from {len(config.prompts.sources)} sources",
        "a step": f"{config.batch_groups} groups x {_group_sizes(config)} completions = {completions} completions, "
        f"{config.learner.updates_per_batch} optimiser step(s)" + _filter(config),
        "the run": f"{config.steps} steps = {completions * config.steps} completions, "
        f"{config.batch_groups * config.steps / len(pool.train):.1f} epochs",
        "slots": f"at most {config.slots} groups between admission and training (max_staleness {config.max_staleness})",
        "order": _ORDERS[config.prompts.order],
        **_sharing(config, pool),
        **_fresh(config, pool),
        "advantages": f"{config.moments.estimator.kind} over {_clusters(config)}" + _shaping(config),
    }
    for name, text in rows.items():
        table.add_row(name, text)
    return table


def _sharing(config: RunConfig, pool: PromptPool) -> dict[str, str]:
    """How sources share the feed, and how often the run goes through each; nothing where the pool is one."""
    curriculum = curriculum_of(config.prompts)
    if curriculum is None:
        return {}
    possible, options = curriculum.possible(), config.prompts.curriculum
    if options is None:
        prompts = Counter(prompt.origin for prompt in pool.train)
        places = config.batch_groups * config.steps
        shares = _shares(possible[0]).items()
        told = (f"{name} {share:.0%} ({share * places / prompts[name]:.1f} epochs)" for name, share in shares)
        return {"shares": ", ".join(told)}
    if isinstance(options, StepsCurriculum):
        begins = [f"from step {stage.from_step}" for stage in options.stages]
    else:
        then = f"then, once {options.advance_at:.0%} of the last {options.window} groups' samples are right"
        begins = ["at first", *[then] * (len(possible) - 1)]
    lines = []
    for begin, weights in zip(begins, possible, strict=True):
        shared = ", ".join(f"{name} {share:.0%}" for name, share in _shares(weights).items() if share)
        lines.append(f"{begin}: {shared}")
    return {"curriculum": "\n".join(lines)}


def _fresh(config: RunConfig, pool: PromptPool) -> dict[str, str]:
    made = Counter(prompt.origin for prompt in pool.train)
    told = ", ".join(f"{name}: {made[name]} prompts, each once" for name in most_dealt(config))
    return {"fresh": told} if told else {}


def _shares(weights: Mapping[str, float]) -> dict[str, float]:
    return {name: weight / math.fsum(weights.values()) for name, weight in weights.items()}


def _group_sizes(config: RunConfig) -> str:
    return str(config.group_size) + (f" (2 to {config.max_group_size})" if config.max_group_size is not None else "")


def _filter(config: RunConfig) -> str:
    most = config.generation_batches
    return f"; up to {most} batches are sampled for one without groups of equal rewards (DAPO)" if most > 1 else ""


def _shaping(config: RunConfig) -> str:
    shaped = f", then shaped by {' and '.join(rule.kind for rule in config.shaping)}" if config.shaping else ""
    return shaped + ("; truncated completions are left out of the loss" if config.learner.mask_truncated else "")


def _clusters(config: RunConfig) -> str:
    clusters = config.moments.clusters
    if clusters.by != "embedding":
        return f"one cluster per {clusters.by}"
    return "as many clusters as pay (auto)" if clusters.count == "auto" else f"{clusters.count} clusters"


def policy_parameters(policy: str) -> int | None:
    """Number of parameters, from the headers of the policy's safetensors files; None for a policy that is not here."""
    return sum(math.prod(shape) for shape in policy_shapes(policy).values()) or None


def policy_shapes(policy: str) -> dict[str, tuple[int, ...]]:
    """Shapes by name from the same headers."""
    shapes: dict[str, tuple[int, ...]] = {}
    for file in sorted(Path(policy).glob("*.safetensors")):
        with file.open("rb") as handle:
            (length,) = struct.unpack("<Q", handle.read(8))
            header = json.loads(handle.read(length))
        shapes |= {name: tuple(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__"}
    return shapes
