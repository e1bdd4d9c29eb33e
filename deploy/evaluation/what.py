"""What `bvblend eval` evaluates: the policy of a run, of one of its checkpoints or of a directory, and the prompts that it is asked."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from actors.prompts.options import CsvSource, FileSource, JsonlSource, ParquetSource
from actors.prompts.pool import SourceError
from actors.prompts.prompt import Prompt
from actors.prompts.readers import READERS
from deploy.config.models import RunConfig
from deploy.config.recipe import ConfigError
from deploy.rundir.find import whole_checkpoint
from deploy.rundir.layout import RunDirectory

QUESTIONS = ("question", "problem", "Problem", "Question", "prompt", "query")
"""Columns that benchmark files have their questions in: GSM8K, MATH-500, AIME, …"""
ANSWERS = ("answer", "Answer", "expected_answer", "final_answer", "solution")

KINDS: dict[str, type[JsonlSource | CsvSource | ParquetSource]] = {".csv": CsvSource, ".parquet": ParquetSource}
"""By the end of a file's name; everything else is JSON lines."""


@contextmanager
def policy_of_run(
    directory: RunDirectory, config: RunConfig, step: int | None
) -> Iterator[tuple[str, str, int | None]]:
    """(policy, what to call it, its steps as far as known) after `step` steps; None for the newest there is. A checkpoint is exported for as long as the context lasts.

    Raises ConfigError where there is no policy of that step.
    """
    if step is None and directory.policy.is_dir():
        done = [int(row["step"]) + 1 for row in directory.last_metrics(1)]
        yield str(directory.policy), f"{directory.path.name}, at its end", done[-1] if done else None
        return
    if step == 0:
        yield config.policy, f"{directory.path.name}, before training", 0
        return
    steps = directory.checkpoint_steps()
    if not steps or (step is not None and step not in steps):
        kept = ", ".join(map(str, (0, *steps)))
        raise ConfigError(
            f"{directory.path}: no policy after {'any' if step is None else step} steps is kept; --step takes {kept}"
        )
    after = steps[-1] if step is None else step
    checkpoint = whole_checkpoint(directory, after)
    import torch

    from learner.errors import CheckpointError
    from learner.export_checkpoint import export_checkpoint

    with TemporaryDirectory(prefix="bvblend-policy-") as place:
        exported = Path(place) / "policy"
        try:
            export_checkpoint(
                checkpoint / "learner",
                exported,
                config.policy,
                getattr(torch, config.rollout.dtype),
                config.learner.adapter,
            )
        except CheckpointError as error:
            raise ConfigError(str(error)) from None
        yield str(exported), f"{directory.path.name}, after {after} steps", after


def file_source(path: Path, verifier: str, template: str) -> FileSource:
    """A source of all rows of a benchmark's file, whose columns go by their usual names. Raises ConfigError."""
    kind = KINDS.get(path.suffix, JsonlSource)
    if not path.is_file():
        raise ConfigError(f"--data {path}: no such file")
    source = kind(name=path.stem, path=str(path.resolve()))
    try:
        row = next((row for _, row in READERS[source.kind](source, path)), None)
    except (SourceError, OSError) as error:
        raise ConfigError(f"--data {path}: {error}") from None
    if not isinstance(row, dict):
        raise ConfigError(f"--data {path}: {'it has no rows' if row is None else f'its first row: {row}'}")
    columns = {
        "question_field": _column(path, row, QUESTIONS, "question"),
        "answer_field": _column(path, row, ANSWERS, "gold answer"),
    }
    return source.model_copy(update={**columns, "verifier": verifier, "template": template})


def asked(prompts: Sequence[Prompt], limit: int | None) -> tuple[Prompt, ...]:
    """The first `limit` of them in the order of their ids, which is none of the file's; all if it is None."""
    chosen = {prompt.prompt_id for prompt in sorted(prompts, key=lambda prompt: prompt.prompt_id)[:limit]}
    return tuple(prompt for prompt in prompts if prompt.prompt_id in chosen)


def _column(path: Path, columns: Mapping[str, Any], names: Sequence[str], what: str) -> str:
    found = next((name for name in names if name in columns), None)
    if found is None:
        raise ConfigError(
            f"--data {path}: no column for the {what} (there are {', '.join(map(repr, list(columns)[:8]))}; one of {', '.join(names)} is taken)"
        )
    return found
