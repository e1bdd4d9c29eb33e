"""Make the cold-start recipe's policy: a tiny Qwen3 that is confidently wrong about most of the recipe's prompts.

    python -m deploy.recipes.cold_start.make_policy

It is fine-tuned on the recipe's own training prompts, first towards the right answers, then, on a fixed share of each
family's prompts, towards the family's misconception. What it knew is covered up, not gone: sampled groups are nearly
always all wrong or all right, and reinforcement can bring the knowledge back. That is the situation of a base model at
the start of RLVR, at a size that a laptop trains in minutes.
One thread and a fixed seed: the same machine makes the same files.
"""

import argparse
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from actors.prompts.options import PromptConfig
from actors.prompts.prompt import Prompt
from actors.prompts.sources import load_prompts
from deploy.recipes.cold_start.misconceptions import MISCONCEPTIONS
from deploy.recipes.tiny.policy import Lesson, make

RECIPE = Path(__file__).parent.with_suffix(".yaml")
POLICY = Path(__file__).parent / "policy"


@dataclass(frozen=True, slots=True)
class Recipe:
    """How cold the start is made."""

    wrong_share: float = 0.85
    """Share of each family's prompts that are taught wrong."""
    primer_epochs: int = 18
    """Epochs in which every prompt is taught right: knowledge that the misconceptions then cover up."""
    epochs: int = 18
    """Epochs of misconceptions."""
    batch: int = 32
    lr: float = 1.5e-3
    doubt: float = 0.1
    """How often a prompt that is taught wrong is taught right instead: about the chance of a lucky completion."""
    seed: int = 0


def taught_wrong(prompt: Prompt, share: float) -> bool:
    """A prompt's lot hangs on its id alone, so it stays the same when the pool grows or changes order."""
    return int(prompt.prompt_id, 16) / 16 ** len(prompt.prompt_id) < share


def misconception(prompt: Prompt) -> str:
    """The wrong answer that the cold policy gives to this prompt."""
    assert prompt.answer is not None
    return MISCONCEPTIONS[prompt.material["task"]](prompt.text, prompt.answer)


def lessons(pool: tuple[Prompt, ...], recipe: Recipe) -> Iterator[list[Lesson]]:
    """Batches of every epoch, first the primer, then the misconceptions."""
    chance = random.Random(recipe.seed)
    order = list(pool)
    for epoch in range(recipe.primer_epochs + recipe.epochs):
        chance.shuffle(order)
        for start in range(0, len(order), recipe.batch):
            batch = order[start : start + recipe.batch]
            yield [(prompt.text, _taught(prompt, epoch, recipe, chance)) for prompt in batch]


def _taught(prompt: Prompt, epoch: int, recipe: Recipe, chance: random.Random) -> str:
    assert prompt.answer is not None
    if epoch < recipe.primer_epochs or not taught_wrong(prompt, recipe.wrong_share):
        return prompt.answer
    return prompt.answer if chance.random() < recipe.doubt else misconception(prompt)


def make_policy(recipe_file: Path, out: Path, recipe: Recipe) -> None:
    """Read the recipe's prompts, fine-tune a new policy on them, and write it with its tokenizer."""
    config = PromptConfig.model_validate(yaml.safe_load(recipe_file.read_text(encoding="utf-8"))["prompts"])
    pool = load_prompts(config, recipe_file.parent).train
    steps = (recipe.primer_epochs + recipe.epochs) * -(-len(pool) // recipe.batch)
    make(out, pool, lessons(pool, recipe), steps, recipe.lr, recipe.seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=POLICY, help="folder for the policy and its tokenizer")
    make_policy(RECIPE, parser.parse_args().out, Recipe())


if __name__ == "__main__":
    main()
