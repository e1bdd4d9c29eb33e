"""Word problems in the form of GSM8K's files: a solution with calculator marks, and the answer behind `####`."""

import json
import random
from pathlib import Path

NAMES = ("Ana", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gia", "Hugo", "Ida", "Jon")
THINGS = ("apples", "books", "coins", "eggs", "pens", "cards", "cups", "stamps", "shells", "kites")


def write_word_problems(path: Path, count: int) -> Path:
    """So many, all different."""
    chance, found = random.Random(0), dict[str, str]()
    while len(found) < count:
        (one, other), things = chance.sample(NAMES, 2), chance.choice(THINGS)
        a, b, k = chance.randint(2, 60), chance.randint(2, 60), chance.randint(2, 9)
        question, sum_, answer = chance.choice(
            (
                (f"{one} has {a} {things} and {other} gives {one} {b} more. How many {things} does {one} have now?", f"{a}+{b}", a + b),
                (f"{one} buys {k} boxes of {things}. Each holds {a} {things}. How many {things} are there in all?", f"{k}*{a}", k * a),
                (f"{one} had {a + b} {things} and gave {b} of them to {other}. How many {things} are left?", f"{a + b}-{b}", a),
                (f"{one} shares {k * a} {things} among {k} people, to each as many. How many does each have?", f"{k * a}/{k}", a),
            )
        )  # fmt: skip
        found[question] = f"That is {sum_} = <<{sum_}={answer}>>{answer}.\n#### {answer:,}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(json.dumps({"question": q, "answer": a}) for q, a in found.items()), encoding="utf-8")
    return path
