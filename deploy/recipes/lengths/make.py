"""Make the prompts and the policy of the recipe `lengths`: python -m deploy.recipes.lengths.make

A fixed seed and one thread: the same machine makes the same files.
"""

from pathlib import Path

from deploy.recipes.lengths.skills import SKILLS
from deploy.recipes.tiny.mixture import Teaching, make_policy
from deploy.recipes.tiny.skill import write_prompts

HOME = Path(__file__).parent
RECIPE = HOME.with_suffix(".yaml")
POLICY = HOME / "policy"
EACH = 630
"""Prompts of a skill: 8 x 600 are trained on, which is 150 steps of 32 groups, and 30 are held out."""
TEACHING = Teaching(primer=600, mixture=300, batch=32)


def main() -> None:
    write_prompts(SKILLS, EACH, HOME / "prompts")
    make_policy(RECIPE, SKILLS, TEACHING, POLICY)


if __name__ == "__main__":
    main()
