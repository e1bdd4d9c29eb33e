"""Where prompts come from: reasoning-gym tasks and JSON-lines files, as one pool of distinct prompts.

Nothing here depends on the run's seed: the same recipe gives the same training and held-out prompts in every run.
"""

import dataclasses
import json
import logging
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.config import JsonlSource, PromptConfig, ReasoningGymSource, Source
from actors.prompts.prompt import Prompt, prompt_id
from actors.verifiers import UnknownVerifierError, refuse_unknown
from moments_service.suggestions import nearest

log = logging.getLogger(__name__)

GENERATOR_ERRORS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What reasoning-gym's generators raise at indices (or under settings) that they cannot make an item for."""
PATIENCE = 2000
"""A task that brought no new prompt for this many indices is taken to be exhausted."""
SHOT_START = 1_000_000
"""Solved examples are made at indices from here on, beyond any pool."""


class SourceError(ValueError):
    """A source cannot be read as configured; the message names the source and the remedy."""

    def __init__(self, source: Source, message: str) -> None:
        super().__init__(f"prompts.sources: source `{source.name}`: {message}")


@dataclass(frozen=True, slots=True)
class PromptPool:
    """Every prompt of a run. No prompt text stands on both sides."""

    train: tuple[Prompt, ...]
    held_out: tuple[Prompt, ...]


def load_prompts(config: PromptConfig, base: Path) -> PromptPool:
    """Read every source of a recipe.

    base: the recipe's folder, from which paths of files count.
    Prompts keep the order of the sources; a prompt that came before, by id, is dropped.
    """
    names = [source.name for source in config.sources]
    for source in config.sources:
        if names.count(source.name) > 1:
            raise SourceError(source, "this name is used twice; give every source a name of its own")
    pools = [_load(source, base) for source in config.sources]
    held_out = _distinct(prompt for pool in pools for prompt in pool.held_out)
    # Two sources may read the same file under two names: then ids differ, but the text must still not be trained on.
    kept_back = {prompt.text for prompt in held_out}
    train = _distinct(prompt for pool in pools for prompt in pool.train if prompt.text not in kept_back)
    for source, pool in zip(config.sources, pools, strict=True):
        overlap = sum(prompt.text in kept_back for prompt in pool.train)
        if overlap:
            log.warning(
                "source `%s`: %d prompts are held out by another source and not trained on", source.name, overlap
            )
    if not train:
        raise ValueError("prompts.sources: every training prompt is held out by another source; nothing to train on")
    return PromptPool(train=train, held_out=held_out)


def _load(source: Source, base: Path) -> PromptPool:
    if source.verifier is not None:
        try:
            refuse_unknown(source.verifier)
        except UnknownVerifierError as error:
            raise SourceError(source, str(error)) from None
    if "{question}" not in source.template:
        raise SourceError(source, f"template {source.template!r} has no place for the question; put {{question}} in it")
    pool = _load_task(source) if isinstance(source, ReasoningGymSource) else _load_file(source, base)
    if not pool.train:
        raise SourceError(
            source,
            f"no training prompts are left ({len(pool.held_out)} are held out); "
            "lower `held_out` or loosen what leaves prompts out",
        )
    if source.limit is not None and len(pool.train) < source.limit:
        log.warning("source `%s`: only %d training prompts of limit %d", source.name, len(pool.train), source.limit)
    if len(pool.held_out) < source.held_out:
        log.warning("source `%s`: only %d of %d held-out prompts", source.name, len(pool.held_out), source.held_out)
    return pool


def _distinct(prompts: Iterable[Prompt]) -> tuple[Prompt, ...]:
    return tuple({prompt.prompt_id: prompt for prompt in reversed(list(prompts))}.values())[::-1]


def _fill(template: str, question: str) -> str:
    # Not str.format: questions and templates may carry braces of their own (JSON, LaTeX).
    return template.replace("{question}", question)


# --- reasoning-gym ---------------------------------------------------------------------------------------------------


def _load_task(source: ReasoningGymSource) -> PromptPool:
    """Prompts of one reasoning-gym task. The first distinct ones are held out, so `limit` never changes which."""
    task = _create_task(source)
    pattern = _question_pattern(source)
    shots, shown = _make_shots(source, task, pattern)
    wanted = None if source.limit is None else source.held_out + source.limit
    stop = task.size if wanted is None or "size" in source.params else SHOT_START
    found: dict[str, Prompt] = {}
    barren, failure = 0, None
    for item in _items(task, range(stop)):
        if isinstance(item, Exception):
            failure, prompt = item, None
        else:
            prompt = _task_prompt(source, item, _question(source, pattern, item), shots, shown)
        if prompt is not None and prompt.prompt_id not in found:
            found[prompt.prompt_id] = prompt
            barren = 0
        else:
            barren += 1
        if len(found) == wanted or barren >= PATIENCE:
            break
    if not found:
        reason = f"the generator failed: {failure}" if failure else "all were left out by their length"
        raise SourceError(
            source,
            f"task `{source.task}` yielded no prompt ({reason}); "
            "check `params`, `max_prompt_chars` and `max_answer_chars`",
        )
    prompts = tuple(found.values())
    return PromptPool(train=prompts[source.held_out :], held_out=prompts[: source.held_out])


def _create_task(source: ReasoningGymSource) -> Any:
    # Imported here: it takes seconds, and recipes without such a task should not wait for it.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # of a package that reasoning-gym brings along
        from reasoning_gym.factory import DATASETS, create_dataset

        from actors.verifiers.reasoning_gym import EVALUATING_TASKS

    if source.task not in DATASETS:
        raise SourceError(source, f"unknown reasoning-gym task `{source.task}`{nearest(source.task, DATASETS)}")
    if source.verifier is None and source.task in EVALUATING_TASKS:
        raise SourceError(
            source,
            f"the scorer of task `{source.task}` runs model output as code; name a verifier of your own, or another task",
        )
    if "seed" in source.params:
        raise SourceError(source, "`params.seed` would be overridden; set the source's own `seed`")
    known = [field.name for field in dataclasses.fields(DATASETS[source.task][1])]
    for key in source.params:
        if key not in known:
            raise SourceError(source, f"task `{source.task}` has no setting `{key}`{nearest(key, known)}")
    try:
        return create_dataset(source.task, seed=source.seed, **source.params)
    except GENERATOR_ERRORS as error:
        raise SourceError(source, f"task `{source.task}` refuses params {source.params}: {error}") from error


def _question_pattern(source: ReasoningGymSource) -> re.Pattern[str] | None:
    if source.question_pattern is None:
        return None
    try:
        pattern = re.compile(source.question_pattern, re.DOTALL)
    except re.error as error:
        raise SourceError(
            source, f"question_pattern {source.question_pattern!r} is no regular expression: {error}"
        ) from error
    if pattern.groups < 1:
        raise SourceError(
            source,
            f"question_pattern {source.question_pattern!r} has no group; put ( ) around the part that is the question",
        )
    return pattern


def _items(task: Any, indices: Sequence[int]) -> Iterator[dict[str, Any] | Exception]:
    """The task's items in order; at an index where its generator gives up, the error in the item's place."""
    for index in indices:
        try:
            yield task[index]
        except GENERATOR_ERRORS as error:
            yield error


def _question(source: ReasoningGymSource, pattern: re.Pattern[str] | None, item: dict[str, Any]) -> str:
    question: str = item["question"].strip()
    if pattern is None:
        return question
    match = pattern.search(question)
    if match is None or match.group(1) is None:
        raise SourceError(source, f"question_pattern {pattern.pattern!r} does not match the question {question!r}")
    return match.group(1).strip()


def _make_shots(source: ReasoningGymSource, task: Any, pattern: re.Pattern[str] | None) -> tuple[str, frozenset[str]]:
    """The text of the solved examples, and their questions (which the pool then leaves out)."""
    shots: dict[str, str] = {}
    for item in _items(task, range(SHOT_START, SHOT_START + PATIENCE)):
        if len(shots) == source.shots:
            break
        if isinstance(item, Exception) or not _answer_fits(source, item):
            continue
        question = _question(source, pattern, item)
        shots.setdefault(question, f"{_fill(source.template, question)} {item['answer']}\n\n")
    if len(shots) < source.shots:
        raise SourceError(source, f"task `{source.task}` yields only {len(shots)} solved examples; lower `shots`")
    return "".join(shots.values()), frozenset(shots)


def _answer_fits(source: ReasoningGymSource, item: dict[str, Any]) -> bool:
    return source.max_answer_chars is None or len(str(item["answer"])) <= source.max_answer_chars


def _task_prompt(
    source: ReasoningGymSource, item: dict[str, Any], question: str, shots: str, shown: frozenset[str]
) -> Prompt | None:
    """The item as a prompt; None where it is too long or already stands among the solved examples."""
    text = shots + _fill(source.template, question)
    if question in shown or not _answer_fits(source, item):
        return None
    if source.max_prompt_chars is not None and len(text) > source.max_prompt_chars:
        return None
    return Prompt(
        prompt_id=prompt_id(source.name, text),
        source=source.name,
        text=text,
        # Some tasks have no single gold answer: their scorer judges from the metadata.
        answer=None if item["answer"] is None else str(item["answer"]),
        verifier=source.verifier or "reasoning_gym",
        material={
            "task": source.task,
            "params": source.params,
            "entry": item,
            "partial_credit": source.partial_credit,
        },
    )


# --- JSON lines ------------------------------------------------------------------------------------------------------


def _load_file(source: JsonlSource, base: Path) -> PromptPool:
    """Prompts of one file in its order. Held out are those with the smallest ids, so the file's order does not matter."""
    path = base / source.path
    if not path.is_file():
        raise SourceError(source, f"`path` {source.path!r} is no file (looked at {path}); it counts from the recipe")
    with path.open(encoding="utf-8") as lines:
        prompts = _distinct(
            _line_prompt(source, f"{path}, line {number}", line)
            for number, line in enumerate(lines, start=1)
            if line.strip()
        )
    if not prompts:
        raise SourceError(source, f"{path} holds no prompts")
    held_out = set(sorted(prompt.prompt_id for prompt in prompts)[: source.held_out])
    train = [prompt for prompt in prompts if prompt.prompt_id not in held_out]
    return PromptPool(
        train=tuple(train[: source.limit]),
        held_out=tuple(prompt for prompt in prompts if prompt.prompt_id in held_out),
    )


def _line_prompt(source: JsonlSource, where: str, line: str) -> Prompt:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise SourceError(source, f"{where}: not JSON: {error}") from error
    if not isinstance(row, dict):
        raise SourceError(source, f"{where}: expected a JSON object, found {type(row).__name__}")
    question = _field(source, where, row, "question_field").strip()
    answer = _field(source, where, row, "answer_field").rpartition("####")[2].strip()
    name = _field(source, where, row, "source_field") if source.source_field else source.name
    text = _fill(source.template, question)
    return Prompt(
        prompt_id=prompt_id(name, text),
        source=name,
        text=text,
        answer=answer,
        verifier=source.verifier or "numeric",
        difficulty=_difficulty(source, where, row),
    )


def _difficulty(source: JsonlSource, where: str, row: dict[str, Any]) -> str:
    """What the line says in `difficulty` or `level`; "" where it has neither."""
    value = row.get("difficulty", row.get("level"))
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise SourceError(source, f"{where}: the difficulty must be a text or a number, found {value!r}")
    return str(value).strip()


def _field(source: JsonlSource, where: str, row: dict[str, Any], key: str) -> str:
    field = getattr(source, key)
    if field not in row:
        remedy = nearest(field, row) if row else "; the line is empty"
        raise SourceError(source, f"{where}: no field `{field}` (from `{key}`){remedy}")
    value = row[field]
    if isinstance(value, bool) or not isinstance(value, str | int | float) or not str(value).strip():
        raise SourceError(source, f"{where}: field `{field}` must be a text or a number, found {value!r}")
    return str(value)
