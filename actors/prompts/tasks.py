"""Prompts that reasoning-gym's tasks make."""

import dataclasses
import re
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from actors.prompts.options import ReasoningGymSource
from actors.prompts.pool import PromptPool, SourceError, fill
from actors.prompts.prompt import Prompt, prompt_id
from actors.verifiers.options import spec
from moments_service.suggestions import nearest

GENERATOR_ERRORS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What reasoning-gym's generators raise at indices (or under settings) that they cannot make an item for."""
PATIENCE = 2000
"""A task that brought no new prompt for this many indices is taken to be exhausted."""
SHOT_START = 1_000_000
"""Solved examples are made at indices from here on, beyond any pool."""


def load_task(source: ReasoningGymSource) -> PromptPool:
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

        from actors.verifiers.reasoning_gym import EVALUATING_TASKS, MIXTURE

    if source.task not in DATASETS:
        raise SourceError(source, f"unknown reasoning-gym task `{source.task}`{nearest(source.task, DATASETS)}")
    if source.verifier is None and source.task in EVALUATING_TASKS:
        raise SourceError(
            source,
            f"the scorer of task `{source.task}` runs model output as code; name a verifier of your own, or another task",
        )
    if source.verifier is None and source.task == MIXTURE:
        raise SourceError(
            source, f"task `{MIXTURE}` hides which tasks score; name each as a source of its own, they mix"
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
        shots.setdefault(question, f"{fill(source.template, question)} {item['answer']}\n\n")
    if len(shots) < source.shots:
        raise SourceError(source, f"task `{source.task}` yields only {len(shots)} solved examples; lower `shots`")
    return "".join(shots.values()), frozenset(shots)


def _answer_fits(source: ReasoningGymSource, item: dict[str, Any]) -> bool:
    return source.max_answer_chars is None or len(str(item["answer"])) <= source.max_answer_chars


def _task_prompt(
    source: ReasoningGymSource, item: dict[str, Any], question: str, shots: str, shown: frozenset[str]
) -> Prompt | None:
    """The item as a prompt; None where it is too long or already stands among the solved examples."""
    text = shots + fill(source.template, question)
    if question in shown or not _answer_fits(source, item):
        return None
    if source.max_prompt_chars is not None and len(text) > source.max_prompt_chars:
        return None
    before = () if source.system is None else (("system", source.system),)
    return Prompt(
        prompt_id=prompt_id(source.name, text, before),
        source=source.name,
        text=text,
        question=question,
        before=before,
        # Some tasks have no single gold answer: their scorer judges from the metadata.
        answer=None if item["answer"] is None else str(item["answer"]),
        verifier=spec(source.verifier or "reasoning_gym"),
        material={
            "task": source.task,
            "params": source.params,
            "entry": item,
            "partial_credit": source.partial_credit,
        },
        origin=source.name,
    )
