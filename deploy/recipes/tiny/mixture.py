"""A policy that knows skills, and says so as often as it should: in two minds about every prompt of a skill in the same way.

It is taught on prompts of the recipe's stream, but on none of the recipe's own. First right answers and misconceptions are
learned side by side (a primer); then each visit teaches the right answer with the chance that its skill says. So what differs
is the skill, and prompts of one skill are about equally hard.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from actors.prompts.options import PromptConfig
from actors.prompts.pool import fill
from actors.prompts.sources import load_prompts
from deploy.recipes.tiny.policy import Lesson, make
from deploy.recipes.tiny.skill import Skill


@dataclass(frozen=True, slots=True)
class Teaching:
    """How a policy is taught."""

    primer: int
    """Steps in which the right answers and the misconceptions of all that can be known are learned, as often the one as the other."""
    mixture: int
    """Steps in which answers are right as often as they should be."""
    batch: int
    lr: float = 2e-3
    seed: int = 0


def lessons(skills: Sequence[Skill], template: str, own: frozenset[str], teaching: Teaching) -> Iterator[list[Lesson]]:
    """Batches of the primer, then of the mixture.

    own: texts of the recipe's prompts, which are left out.
    """
    chance = random.Random(teaching.seed)
    known = [skill for skill in skills if skill.success > 0]
    for step in range(teaching.primer + teaching.mixture):
        primer = step < teaching.primer
        batch: list[Lesson] = []
        while len(batch) < teaching.batch:
            skill = chance.choice(known if primer else skills)
            question, right, wrong = skill.draw(chance)
            text = fill(template, question)
            if text not in own:
                batch.append((text, right if chance.random() < (0.5 if primer else skill.success) else wrong))
        yield batch


def make_policy(recipe: Path, skills: Sequence[Skill], teaching: Teaching, out: Path) -> None:
    """Read the recipe's prompts, teach a new policy on others, and write it with its tokenizer into the folder `out`."""
    config = PromptConfig.model_validate(yaml.safe_load(recipe.read_text(encoding="utf-8"))["prompts"])
    pool = load_prompts(config, recipe.parent)
    own = frozenset(prompt.text for prompt in (*pool.train, *pool.held_out))
    batches = lessons(skills, config.sources[0].template, own, teaching)
    make(out, pool.train, batches, teaching.primer + teaching.mixture, teaching.lr, teaching.seed)
