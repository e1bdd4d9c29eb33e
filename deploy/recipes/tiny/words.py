"""Words that nobody has read before, and that can be said: consonants and vowels take turns."""

import random

CONSONANTS = "bcdfghjklmnprstvwz"
VOWELS = "aeiou"
LENGTH = 4
"""Letters of a word where nothing else is said."""


def word(chance: random.Random, letters: int = LENGTH) -> str:
    """One made-up word, such as `toli`."""
    kinds = (CONSONANTS, VOWELS) if chance.random() < 0.7 else (VOWELS, CONSONANTS)
    return "".join(chance.choice(kinds[place % 2]) for place in range(letters))
