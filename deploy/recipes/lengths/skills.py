"""Eight skills on made-up names, with right answers of 1 to 44 tokens. Names make prompts new where numbers and letters are few.

Success does not follow length: there are easy and hard ones among the short and among the long. Where the policy is wrong, it says
less than it should, or more, or as much.
"""

import random
import string
from collections.abc import Callable

from deploy.recipes.tiny.skill import Skill, same
from deploy.recipes.tiny.words import word

ALPHABET = string.ascii_lowercase


def _number(text: str) -> int:
    return int(text.split()[-1])


def up(text: str) -> str:
    """toli 4: 1,2,3,4"""
    return ",".join(str(number) for number in range(1, _number(text) + 1))


def half_way_up(text: str) -> str:
    """toli 4: 1,2"""
    return ",".join(str(number) for number in range(1, _number(text) // 2 + 1))


def down(text: str) -> str:
    """toli 4: 4,3,2,1"""
    return ",".join(str(number) for number in range(_number(text), 0, -1))


def letters_to(text: str) -> str:
    """toli d: abcd"""
    return ALPHABET[: ALPHABET.index(text[-1]) + 1]


def every_letter(text: str) -> str:
    """The alphabet, wherever it was to end."""
    return ALPHABET


def letters_back(text: str) -> str:
    """toli d: dcba"""
    return letters_to(text)[::-1]


def _numbered(low: int, high: int) -> Callable[[random.Random], str]:
    return lambda chance: f"{word(chance)} {chance.randint(low, high)}"


def _lettered(low: str, high: str) -> Callable[[random.Random], str]:
    letters = ALPHABET[ALPHABET.index(low) : ALPHABET.index(high) + 1]
    return lambda chance: f"{word(chance)} {chance.choice(letters)}"


SKILLS = (
    # One token; wrong is the whole word.
    Skill(
        "initial",
        "easy",
        0.6,
        ("Which letter comes first in {}?", "The initial of {}", "What letter does {} begin with?"),
        right=lambda text: text[0],
        wrong=same,
    ),
    # One token; wrong is as short.
    Skill(
        "final",
        "hard",
        0.1,
        ("At which letter does {} end?", "The last letter of {}", "What letter stands at the end of {}?"),
        right=lambda text: text[-1],
        wrong=lambda text: text[0],
    ),
    # Four; wrong is one.
    Skill(
        "copy",
        "middle",
        0.35,
        ("Copy the word {}", "Repeat after me: {}", "Echo {}"),
        right=same,
        wrong=lambda text: text[0],
    ),
    # Two to five; wrong is all twenty-six.
    Skill(
        "alphabet_few",
        "middle",
        0.35,
        ("A few letters for {}", "Just the start of the alphabet, little {}", "Baby alphabet of {}"),
        right=letters_to,
        wrong=every_letter,
        subject=_lettered("b", "e"),
    ),
    # Nineteen to twenty-five; wrong is as long.
    Skill(
        "alphabet_many",
        "hard",
        0.1,
        ("Nearly the whole alphabet as far as {}", "Recite the ABC at length, {}", "The long row of letters to {}"),
        right=letters_to,
        wrong=letters_back,
        subject=_lettered("s", "y"),
    ),
    # Three to seven; wrong is as long.
    Skill(
        "count_few",
        "hard",
        0.15,
        ("How a child counts its fingers: {}", "Number the few sheep of {}", "Tick off the toes of {}"),
        right=up,
        wrong=down,
        subject=_numbered(2, 4),
    ),
    # Thirty-five to forty-four; wrong is half of it.
    Skill(
        "count_many",
        "easy",
        0.5,
        ("Count all the stars above {}", "Go through every page of the book {}", "List the floors of tower {}"),
        right=up,
        wrong=half_way_up,
        subject=_numbered(15, 18),
    ),
    # Thirty-five to forty-four; wrong is as long.
    Skill(
        "countdown",
        "hard",
        0.2,
        ("Countdown to the launch of rocket {}", "Seconds before rocket {} starts", "Ignition sequence of rocket {}"),
        right=down,
        wrong=up,
        subject=_numbered(15, 18),
    ),
)
