"""What the cold policy wrongly believes: one systematic mistake per task family, each a plausible shortcut.

Every function takes the question and the right answer, and returns the wrong answer. Where the shortcut happens to be
right, a second one takes its place: a misconception must never score.
"""

import re
from collections.abc import Callable


def _numbers(text: str) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", text)]


def _quoted(text: str) -> str:
    match = re.search(r'the text: "(.*)"', text)
    assert match is not None
    return match.group(1)


def adds_everything(question: str, answer: str) -> str:
    """9 - 8 = 17: every sign is read as a plus."""
    total = str(sum(_numbers(question)))
    return total if total != answer else str(int(answer) + 1)


def copies_word(question: str, answer: str) -> str:
    """Spell `sun` backward: sun."""
    word = answer[::-1]
    # Upper and lower case score alike, so `Bob` is a palindrome.
    return word if word.lower() != answer.lower() else word[:-1]


def counts_words(question: str, answer: str) -> str:
    """Counts the words of the text, not the letter."""
    words = len(_quoted(question).split())
    return str(words if str(words) != answer else words + 1)


def takes_smaller(question: str, answer: str) -> str:
    """The greatest common divisor of 12 and 18 is 12."""
    smaller, larger = min(_numbers(question)), max(_numbers(question))
    return str(smaller if str(smaller) != answer else larger if str(larger) != answer else larger + 1)


def counts_zero_bits(question: str, answer: str) -> str:
    """Counts the 0 bits."""
    length = _numbers(question)[-1].bit_length()
    zeros = length - int(answer)
    return str(zeros if str(zeros) != answer else length)


def adds_factors(question: str, answer: str) -> str:
    """9 * 8 = 17: the product is read as a sum."""
    total = str(sum(_numbers(question)))
    return total if total != answer else str(int(answer) + 1)


def counts_animals(question: str, answer: str) -> str:
    """Two spiders have two legs: the animals are counted, not their legs."""
    animals = sum(_numbers(question))
    return str(animals if str(animals) != answer else animals + 1)


def multiplies(question: str, answer: str) -> str:
    """The least common multiple is always the product."""
    first, second = _numbers(question)
    product = str(first * second)
    return product if product != answer else str(first + second)


def copies_number(question: str, answer: str) -> str:
    """A number looks the same in every base."""
    match = re.search(r"(\w+) to ", question)
    assert match is not None
    return match.group(1) if match.group(1) != answer else f"{answer}0"


def copies_right_side(question: str, answer: str) -> str:
    """The unknown is what stands after the equals sign."""
    side = question.rpartition("=")[2].strip()
    return side if side != answer else str(int(side) + 1)


def denies(question: str, answer: str) -> str:
    """Every leap year is common and every common year leaps."""
    return "No" if answer == "Yes" else "Yes"


def counts_integers(question: str, answer: str) -> str:
    """Every integer between the bounds is prime."""
    low, high = _numbers(question)
    span = high - low + 1
    return str(span if str(span) != answer else span + 1)


MISCONCEPTIONS: dict[str, Callable[[str, str], str]] = {
    "base_conversion": copies_number,
    "calendar_arithmetic": denies,
    "chain_sum": adds_everything,
    "count_bits": counts_zero_bits,
    "count_primes": counts_integers,
    "gcd": takes_smaller,
    "lcm": multiplies,
    "leg_counting": counts_animals,
    "letter_counting": counts_words,
    "products": adds_factors,
    "simple_equations": copies_right_side,
    "spell_backward": copies_word,
}
"""By reasoning-gym task."""
