"""A micro-skill as a source of prompts: how it is asked, what is right, and what a policy wrongly believes."""

import json
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from deploy.recipes.tiny.words import word


@dataclass(frozen=True, slots=True)
class Skill:
    """One source of prompts, of which nobody runs out."""

    name: str
    difficulty: str
    """The label that its prompts carry."""
    success: float
    """How often a sampled completion of the shipped policy is right."""
    wordings: tuple[str, ...]
    """Each with a place for the subject."""
    right: Callable[[str], str]
    wrong: Callable[[str], str]
    subject: Callable[[random.Random], str] = word
    """What a prompt is about: draws a word, or what stands in its place."""

    def draw(self, chance: random.Random) -> tuple[str, str, str]:
        """A question, its right and its wrong answer, which are never the same."""
        while True:
            subject = self.subject(chance)
            right, wrong = self.right(subject), self.wrong(subject)
            if right != wrong:
                return chance.choice(self.wordings).format(subject), right, wrong


def same(text: str) -> str:
    """The subject as it is: what somebody says who has not understood what to do with it."""
    return text


def rows(skill: Skill, count: int, seed: int = 0) -> list[dict[str, str]]:
    """Distinct prompts of a skill as lines of a file."""
    chance = random.Random(f"{skill.name} {seed}")
    found: dict[str, dict[str, str]] = {}
    while len(found) < count:
        question, answer, _ = skill.draw(chance)
        found[question] = {"question": question, "answer": answer, "difficulty": skill.difficulty}
    return list(found.values())


def write_prompts(skills: Iterable[Skill], count: int, out: Path) -> None:
    """A file of JSON lines for each skill. Training and held-out prompts are one stream, from which a recipe sets some aside."""
    out.mkdir(parents=True, exist_ok=True)
    for skill in skills:
        lines = [json.dumps(row) + "\n" for row in rows(skill, count)]
        (out / f"{skill.name}.jsonl").write_text("".join(lines), encoding="utf-8")
