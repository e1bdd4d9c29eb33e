"""What `bvblend eval` evaluates: the policy of a run, of one of its checkpoints or of a directory, and the prompts that it is asked."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from actors.config import JsonlSource
from actors.prompts.prompt import Prompt
from deploy.config.models import RunConfig
from deploy.config.recipe import ConfigError
from deploy.rundir.layout import RunDirectory

QUESTIONS = ("question", "problem", "Problem", "Question", "prompt", "query")
"""Columns that benchmark files have their questions in: GSM8K, MATH-500, AIME, …"""
ANSWERS = ("answer", "Answer", "expected_answer", "final_answer", "solution")


@contextmanager
def policy_of_run(directory: RunDirectory, config: RunConfig, step: int | None) -> Iterator[tuple[str, str]]:
    """(policy, what to call it) after `step` steps; None for the newest there is. A checkpoint is exported for as long as the context lasts.

    Raises ConfigError where there is no policy of that step.
    """
    if step is None and directory.policy.is_dir():
        yield str(directory.policy), f"{directory.path.name}, at its end"
        return
    if step == 0:
        yield config.policy, f"{directory.path.name}, before training"
        return
    steps = directory.checkpoint_steps()
    if not steps or (step is not None and step not in steps):
        kept = ", ".join(map(str, (0, *steps)))
        raise ConfigError(
            f"{directory.path}: no policy after {'any' if step is None else step} steps is kept; --step takes {kept}"
        )
    after = steps[-1] if step is None else step
    import torch

    from learner.errors import CheckpointError
    from learner.export_checkpoint import export_checkpoint

    with TemporaryDirectory(prefix="bvblend-policy-") as place:
        exported = Path(place) / "policy"
        try:
            export_checkpoint(
                directory.checkpoint(after) / "learner",
                exported,
                config.policy,
                getattr(torch, config.rollout.dtype),
                config.learner.adapter,
            )
        except CheckpointError as error:
            raise ConfigError(str(error)) from None
        yield str(exported), f"{directory.path.name}, after {after} steps"


def file_source(path: Path, verifier: str, template: str, limit: int | None) -> JsonlSource:
    """A source of all lines of a benchmark's file, whose columns go by their usual names. Raises ConfigError."""
    try:
        with path.open("rb") as lines:
            first = json.loads(next(line for line in lines if line.strip()))
    except OSError as error:
        raise ConfigError(f"--data {path}: {error.strerror}") from None
    except (StopIteration, ValueError):
        raise ConfigError(f"--data {path}: its first line is no JSON object; one object a line is read") from None
    columns = list(first) if isinstance(first, dict) else []
    return JsonlSource(
        name=path.stem,
        path=str(path.resolve()),
        question_field=_column(path, columns, QUESTIONS, "question"),
        answer_field=_column(path, columns, ANSWERS, "gold answer"),
        verifier=verifier,
        template=template,
        limit=limit,
    )


def asked(prompts: Sequence[Prompt], limit: int | None) -> tuple[Prompt, ...]:
    """The first `limit` of them in the order of their ids, which is none of the file's; all if it is None."""
    chosen = {prompt.prompt_id for prompt in sorted(prompts, key=lambda prompt: prompt.prompt_id)[:limit]}
    return tuple(prompt for prompt in prompts if prompt.prompt_id in chosen)


def _column(path: Path, columns: Sequence[str], names: Sequence[str], what: str) -> str:
    found = next((name for name in names if name in columns), None)
    if found is None:
        raise ConfigError(
            f"--data {path}: no column for the {what} (there are {', '.join(map(repr, columns[:8]))}; one of {', '.join(names)} is taken)"
        )
    return found
