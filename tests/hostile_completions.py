"""Completions that try to stall, crash, mislead or be paid by a verifier; none of them is a right answer to anything that tests ask."""

import json
import random
import string
from collections.abc import Iterator

HOSTILE = {
    "nothing": "",
    "spaces": " " * 50_000,
    "open boxes": r"\boxed{" * 20_000,
    "closed boxes": r"\boxed{}" * 20_000,
    "braces": "{" * 100_000,
    "brackets": "(" * 50_000 + ")" * 50_000,
    "a box of brackets": r"\boxed{" + "(" * 20_000 + ")" * 20_000 + "}",
    "fractions": r"\boxed{" + r"\frac{" * 10_000 + "1" + "}{2}" * 10_000 + "}",
    "digits": "9" * 200_000,
    "a box of digits": r"\boxed{" + "9" * 200_000 + "}",
    "markers": "####" * 20_000,
    "answers": "the answer is " * 10_000,
    "commas": "1," * 50_000,
    "a tower": r"\boxed{9^{9^{9^{9^9}}}}",
    "a factorial": r"\boxed{99999999!}",
    "a power of a sum": r"\boxed{(x+y+z)^{500}}",
    "a sum": r"\boxed{\sum_{n=1}^{10^{9}} \frac{1}{n^2}}",
    "an exponent": "1e999999999",
    "not a number": "nan",
    "infinity": r"\boxed{\infty}",
    "undefined": r"\boxed{\frac{0}{0}}",
    "code": r"\boxed{__import__('os').system('touch paid')}",
    "dunders": "().__class__.__bases__[0].__subclasses__()",
    "nul": "\x00" * 1000,
    "half a character": "\ud800",
    "other scripts": "العربية 中文 😀" * 1000,
    "all choices": "A B C D E F G H I J",
    "all of it": "12 or 13, blue or red, (A) or (B)",
}

LONGEST = 20_000
"""Characters of a made one, so that ten thousand of them fit in memory."""
PROGRAMS = (
    "import os; os._exit(0)",
    "import sys; sys.exit(0)",
    "raise SystemExit",
    "print('1' * 10_000_000)",
    "import os\nwhile True: os.fork()",
    "def f(*a): return f(*a)",
    "class A:\n    def __eq__(self, other): return True\ndef f(*a): return A()",
    "import socket; socket.create_connection(('127.0.0.1', 80))",
    "open('/etc/passwd').read()",
    "import os; os.kill(os.getppid(), 9)",
    "held = bytearray(1 << 33)",
    "def f(:",
    "import os; os.closerange(0, 64)",
    "import ctypes; ctypes.string_at(0)",
    "__builtins__.print = None; del __builtins__",
)
"""What stands in fenced blocks; without an endless loop, which costs its whole time."""
_WRAPPED = (
    "\\boxed{{{}}}", "The answer is {}", "#### {}", "<answer>{}</answer>", "```json\n{}\n```", "```python\n{}\n```", "**{}**", "({})",
    "$${}$$", "\\[{}\\]", "Answer: {}\nAnswer: {}", '{{"zone": {}}}', "<think>{}", "\\text{{{}}}", "\\frac{{{}}}{{{}}}",
)  # fmt: skip
_CHARACTERS = [
    *string.printable, *"\u202e\u200b\ufeff\x00\x1b\ud800\uffff½²−–－，。﹣٣四",
    *("\\boxed{", "}", "\\frac", "^", "_", "\\left(", "\\begin{pmatrix}", "&", "```", "</s>", "<|im_end|>", "####", "e999", "!", "\\sum"),
]  # fmt: skip


def made(count: int, forbidden: str, seed: int = 0) -> Iterator[str]:
    """So many, each different, made of those above. forbidden: the right answer, which stands in none of them."""
    chance = random.Random(seed)
    seeds = [*(text[:LONGEST] for text in HOSTILE.values()), *(f"```python\n{program}\n```" for program in PROGRAMS)]
    while count:
        text = chance.choice(seeds)
        for _ in range(chance.randrange(4)):
            text = _changed(chance, text, seeds)[:LONGEST]
        if forbidden.casefold() not in text.casefold():
            yield text
            count -= 1


def _changed(chance: random.Random, text: str, seeds: list[str]) -> str:
    match chance.randrange(6):
        case 0:
            wrapping = chance.choice(_WRAPPED)
            return wrapping.format(*[text[: LONGEST // 3]] * 2)
        case 1:
            return text[: LONGEST // 2] + chance.choice("\n ,;") + chance.choice(seeds)[: LONGEST // 2]
        case 2:
            place = chance.randrange(len(text) + 1)
            return text[:place] + "".join(chance.choices(_CHARACTERS, k=chance.randrange(1, 40))) + text[place:]
        case 3:
            return text[chance.randrange(len(text) + 1) :]
        case 4:
            return text[: chance.randrange(200)] * chance.randrange(1, 200)
        case _:
            return json.dumps(text)
