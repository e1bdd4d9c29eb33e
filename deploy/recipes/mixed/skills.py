"""The twelve skills on words and the source with a noisy verifier: how each is asked, its right answer, and the wrong one
that the policy believes in at the start."""

import hashlib
import random
import string

from deploy.recipes.tiny.skill import Skill, same
from deploy.recipes.tiny.words import VOWELS, word

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven")
SECRET = b"mixed"
"""Key of the answers that cannot be known: no rule leads from the word to them but this hash."""


def hide_vowels(text: str) -> str:
    """toli: t-l-"""
    return "".join("-" if letter in VOWELS else letter for letter in text)


def next_letters(text: str) -> str:
    """toli: upmj"""
    letters = string.ascii_lowercase
    return text.translate(str.maketrans(letters, letters[1:] + letters[:1]))


def secret_letters(text: str) -> str:
    """Four letters that hang on the word in a way that nobody can find out."""
    digest = hashlib.blake2b(text.encode(), key=SECRET, digest_size=4).digest()
    return "".join(string.ascii_lowercase[byte % 26] for byte in digest)


def secret_number(text: str) -> str:
    """The same as four digits."""
    digest = hashlib.blake2b(text.encode(), key=SECRET, digest_size=8).digest()
    return f"{int.from_bytes(digest) % 10_000:04}"


def _any_length(chance: random.Random) -> str:
    return word(chance, chance.randint(3, 7))


def _two_words(chance: random.Random) -> str:
    return f"{word(chance)} {word(chance)}"


SKILLS = (
    Skill(
        "first_letter",
        "easy",
        0.85,
        ("Which letter comes first in {}?", "The first letter of {}", "What letter does {} begin with?"),
        right=lambda text: text[0],
        wrong=lambda text: text[-1],
    ),
    Skill(
        "last_letter",
        "easy",
        0.85,
        ("At which letter does {} end?", "The final letter of {}", "What letter stands last in {}?"),
        right=lambda text: text[-1],
        wrong=lambda text: text[0],
    ),
    Skill(
        "reverse",
        "middle",
        0.35,
        ("Spell {} backwards", "Hold {} up to a mirror", "Reverse {} from end to start"),
        right=lambda text: text[::-1],
        wrong=same,
    ),
    Skill(
        "hide_vowels",
        "middle",
        0.35,
        ("Put a dash for each vowel of {}", "Hide the vowels in {}", "Replace every vowel of {} by a dash"),
        right=hide_vowels,
        wrong=same,
    ),
    Skill(
        "count_letters",
        "middle",
        0.35,
        ("How long is {}?", "Measure the length of {}", "The size of {} in letters"),
        right=lambda text: NUMBERS[len(text)],
        wrong=lambda text: NUMBERS[len(text) - 1],
        subject=_any_length,
    ),
    Skill(
        "double_first",
        "middle",
        0.35,
        ("Stutter on {}", "Stammer at the start of {}", "Say {} with a stutter"),
        right=lambda text: text[0] + text,
        wrong=lambda text: text + text[-1],
    ),
    Skill(
        "sort_letters",
        "hard",
        0.05,
        ("Sort {} by the alphabet", "Put {} in alphabetical order", "Arrange {} alphabetically"),
        right=lambda text: "".join(sorted(text)),
        wrong=same,
    ),
    Skill(
        "next_letters",
        "hard",
        0.05,
        ("Encrypt {} with a Caesar cipher", "The Caesar cipher of {}", "Encode {} as Caesar did"),
        right=next_letters,
        wrong=same,
    ),
    Skill(
        "second_word",
        "hard",
        0.05,
        ("The second word of the phrase: {}", "Which word follows the other: {}", "Two words, pick the later: {}"),
        right=lambda text: text.split()[1],
        wrong=lambda text: text.split()[0],
        subject=_two_words,
    ),
    Skill(
        "past_tense",
        "hard",
        0.05,
        (
            "The past tense of the verb to {}",
            "Conjugate {} for what happened yesterday",
            "Today they {}, yesterday they",
        ),
        right=lambda text: f"{text}ed",
        wrong=lambda text: f"{text}ing",
    ),
    Skill(
        "secret_code",
        "impossible",
        0,
        ("Say the secret password of agent {}", "Agent {} needs the password", "The secret code name of agent {}"),
        right=secret_letters,
        wrong=same,
    ),
    Skill(
        "lottery",
        "impossible",
        0,
        ("Predict the lottery draw in the town of {}", "Lucky number at {} today", "Guess the winning ticket of {}"),
        right=secret_number,
        wrong=lambda text: "7777",
    ),
    Skill(
        "behead",
        "noisy",
        0.35,
        ("Cut the head off {}", "Behead {}", "Chop off the front of {}"),
        right=lambda text: text[1:],
        wrong=lambda text: text[:-1],
    ),
)
