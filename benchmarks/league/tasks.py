"""A task, made ready once: the prompts of a recipe, tokenised, with their clusters, in one file that jobs read.

Making it needs everything that a run needs; reading it needs numpy, safetensors and pydantic.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import safe_open

from actors.prompts.prompt import Prompt
from deploy.config.models import RunConfig
from deploy.config.recipe import load_recipe
from moments_service.blend import Array
from moments_service.durable import write_tensors
from moments_service.seeding import derive_seed

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "deploy" / "recipes"
FRESH_LIMIT = 640
"""Training prompts of each family of `fresh`: 120 steps of 64 completions see no prompt twice, at any group size from 2 up."""
_CLUSTERS, _KINSHIP = "clusters/", "kinship/"

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Split:
    """N prompts. answers: token ids of each gold answer and of the end after it, cut to what a completion may have."""

    prompts: tuple[Prompt, ...]
    tokens: tuple[Indices, ...]
    answers: tuple[Indices, ...]


@dataclass(frozen=True, slots=True)
class Task:
    """A recipe with its prompts."""

    config: RunConfig
    policy: Path
    """Its directory."""
    end: int
    """Id of the end-of-sequence token."""
    train: Split
    held_out: Split
    clusters: dict[str, Indices]
    """By name, [N] of each training prompt: `16:3` are 16 clusters of embeddings in a run of seed 3."""
    kinship: dict[str, Array]
    """Of those clusters, by the same names: [K, K], see `Codebook.kinship`."""


def recipe_of(name: str) -> RunConfig:
    """The recipe that a task goes by: shipped under `name`, or at the path `name`; `fresh` is `cold_start` without repetition."""
    path = RECIPES / f"{'cold_start' if name == 'fresh' else name}.yaml"
    config = load_recipe(path if path.is_file() else Path(name))
    if name != "fresh":
        return config
    sources = tuple(source.model_copy(update={"limit": FRESH_LIMIT}) for source in config.prompts.sources)
    return config.model_copy(update={"prompts": config.prompts.model_copy(update={"sources": sources})})


def task_file(name: str, cache: Path) -> Path:
    """Where `prepare` puts a task."""
    return cache / f"{Path(name).stem}.safetensors"


def prepare(name: str, cache: Path, codebooks: Iterable[tuple[int, int]] = ()) -> Path:
    """Make the file of a task, or add the clusters that it lacks. codebooks: (clusters, seed of the run) of each."""
    path = task_file(name, cache)
    config = recipe_of(name)
    about, arrays = _made(config)
    if path.is_file():
        before, known = _read(path)
        if before["train"] == about["train"]:
            arrays |= {key: array for key, array in known.items() if key.startswith((_CLUSTERS, _KINSHIP))}
    wanted = {f"{count}:{seed}": (count, seed) for count, seed in codebooks}
    missing = {key: value for key, value in wanted.items() if _KINSHIP + key not in arrays}
    if missing:
        arrays |= _clusters(config, _prompts(about["train"]), missing)
    cache.mkdir(parents=True, exist_ok=True)
    write_tensors(path, arrays, about)
    return path


def load_task(path: Path) -> Task:
    """Read what `prepare` made."""
    about, arrays = _read(path)

    def split(side: str) -> Split:
        return Split(_prompts(about[side]), _unpacked(arrays, f"{side}/tokens"), _unpacked(arrays, f"{side}/answers"))

    return Task(
        config=RunConfig.model_validate(json.loads(about["config"])),
        policy=ROOT / about["policy"],
        end=int(about["end"]),
        train=split("train"),
        held_out=split("held_out"),
        clusters={
            name.removeprefix(_CLUSTERS): array.astype(np.int64)
            for name, array in arrays.items()
            if name.startswith(_CLUSTERS)
        },
        kinship={name.removeprefix(_KINSHIP): array for name, array in arrays.items() if name.startswith(_KINSHIP)},
    )


def _made(config: RunConfig) -> tuple[dict[str, str], dict[str, npt.NDArray[Any]]]:
    # Imported here: a job has no use for what makes prompts and reads tokenizers.
    from actors.prompts.renderer import load_tokenizer, prompt_ids
    from actors.prompts.sources import load_prompts

    pool = load_prompts(config.prompts, ROOT)
    tokenizer = load_tokenizer(config.policy)
    end = tokenizer.eos_token_id
    about = {
        "config": config.model_dump_json(),
        "policy": str(Path(config.policy).resolve().relative_to(ROOT)),
        "end": str(end),
    }
    arrays: dict[str, npt.NDArray[Any]] = {}
    for side, prompts in (("train", pool.train), ("held_out", pool.held_out)):
        answers = [
            [*tokenizer.encode(prompt.answer, add_special_tokens=False), end][: config.sampling.max_tokens]
            for prompt in prompts
        ]
        tokens = [prompt_ids(tokenizer, prompt.text, config.prompts.chat, prompt.before) for prompt in prompts]
        about[side] = json.dumps([asdict(prompt) | {"material": {}} for prompt in prompts])
        arrays |= _packed(f"{side}/tokens", tokens) | _packed(f"{side}/answers", answers)
    return about, arrays


def _clusters(
    config: RunConfig, prompts: Sequence[Prompt], wanted: dict[str, tuple[int, int]]
) -> dict[str, npt.NDArray[Any]]:
    from deploy.run.prompt_set import prompt_set
    from moments_service.clusters import fit_clusters

    every = prompt_set(config, prompts)
    found: dict[str, npt.NDArray[Any]] = {}
    for key, (count, seed) in wanted.items():
        settings = config.moments.clusters.model_copy(update={"count": count})
        codebook = fit_clusters(settings, every, derive_seed(seed, "codebook"))
        kinship = codebook.kinship()
        assert kinship is not None
        found |= {_CLUSTERS + key: codebook.assign_prompts(every), _KINSHIP + key: kinship}
    return found


def _read(path: Path) -> tuple[dict[str, str], dict[str, npt.NDArray[Any]]]:
    with safe_open(path, framework="numpy") as file:
        return file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _prompts(text: str) -> tuple[Prompt, ...]:
    return tuple(Prompt(**row) for row in json.loads(text))


def _packed(name: str, texts: Sequence[Sequence[int]]) -> dict[str, npt.NDArray[Any]]:
    flat = np.array([token for text in texts for token in text], dtype=np.int64)
    return {name: flat, f"{name}/ends": np.cumsum([len(text) for text in texts])}


def _unpacked(arrays: dict[str, npt.NDArray[Any]], name: str) -> tuple[Indices, ...]:
    return tuple(np.split(arrays[name], arrays[f"{name}/ends"][:-1]))
