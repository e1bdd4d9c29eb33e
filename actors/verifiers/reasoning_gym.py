"""Verifier of reasoning-gym prompts: the task's own scorer, mended where it is wrong."""

import json
from functools import lru_cache
from typing import Any

from reasoning_gym.factory import create_dataset

from actors.prompts.prompt import Prompt
from actors.verifiers.mended_scorers import mended

FULL_SCORE = 0.99
"""What counts as a full score where partial credit is off."""

EVALUATING_TASKS = frozenset(
    {
        "binary_matrix",
        "countdown",
        "intermediate_integration",
        "n_queens",
        "polynomial_multiplication",
        "puzzle24",
        "simple_integration",
        "spiral_matrix",
        "string_insertion",
    }
)
"""Tasks whose scorer hands the completion to Python's `eval` (sympy's `parse_expr` does too): a policy that learns to
write code would run it. They are refused."""


MIXTURE = "composite"
"""A task made of others, among which could be those above; refused, too."""


def task_score(prompt: Prompt, completion: str) -> float:
    """Score in [0, 1]; without partial credit 1 for a full score and 0 for anything less."""
    task = prompt.material["task"]
    if task in EVALUATING_TASKS:
        raise ValueError(f"reasoning-gym task `{task}` is refused: its scorer evaluates the completion as Python code")
    if task == MIXTURE:
        raise ValueError(f"reasoning-gym task `{task}` is refused: it hands completions to scorers that are refused")
    scorer = _scorer(task, json.dumps(prompt.material.get("params", {}), sort_keys=True))
    score = float(mended(task, scorer.score_answer)(completion.strip(), prompt.material["entry"]))
    return score if prompt.material.get("partial_credit", False) else float(score >= FULL_SCORE)


@lru_cache(maxsize=256)
def _scorer(task: str, params: str) -> Any:
    return create_dataset(task, **json.loads(params))
