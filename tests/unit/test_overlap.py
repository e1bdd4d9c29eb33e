"""What stands in a pool more than once is counted and shown."""

import re
from collections.abc import Sequence

import numpy as np
import pytest

from actors.prompts.overlap import NEAR, exact_duplicates, exact_overlap, near_duplicates, near_overlap, sentences
from actors.prompts.pool import PromptPool
from actors.prompts.prompt import Prompt
from deploy.run.prompt_set import overlaps
from tests.unit.test_placement import recipe

pytestmark = pytest.mark.unit


def asked(text: str, source: str = "s") -> Prompt:
    return Prompt(f"{source}:{text}", source, f"Q: {text}", "1", "exact", question=text)


def pool(train: Sequence[str], held_out: Sequence[str] = ()) -> PromptPool:
    return PromptPool(tuple(map(asked, train)), tuple(asked(text, "test") for text in held_out))


def test_the_same_words_are_one_question_whatever_stands_between_them() -> None:
    twice = exact_duplicates(pool(["How many  eggs?", "How many hens?", "how many eggs", "How many eggs!"]))
    assert twice.prompts == 2
    assert [(one.question, other.question) for one, other in twice.examples] == [
        ("how many eggs", "How many  eggs?"),
        ("How many eggs!", "How many  eggs?"),
    ]


def test_formulas_and_numbers_that_differ_are_different_questions() -> None:
    assert exact_duplicates(pool(["1 + 1", "1 - 1", "What is 12?", "What is 1 2?", "x^2", "x_2"])).prompts == 0
    said = [
        "State the answer to 9 + 9 =",
        "State the answer to 9 - 9 =",
        "Round 3.5 up",
        "Round 35 up",
        "How much is 5!",
        "How much is 5",
    ]
    assert exact_duplicates(pool(said)).prompts == 0
    assert exact_duplicates(pool(["1 + 1", "1  +  1"])).prompts == 1


def test_what_is_held_out_and_trained_on_is_counted_by_held_out_prompts() -> None:
    both = exact_overlap(
        pool(["How many eggs?", "HOW MANY EGGS", "How many hens?"], ["how many eggs", "how many cats"])
    )
    assert both.prompts == 1
    assert both.examples == ((asked("how many eggs", "test"), asked("How many eggs?")),)


def test_near_ones_are_those_of_all_pairs_nearest_first() -> None:
    generator = np.random.default_rng(0)
    train = generator.normal(size=(700, 16))
    held_out = np.concatenate(
        [train[[5, 650]] + 0.05 * generator.normal(size=(2, 16)), generator.normal(size=(600, 16))]
    )
    train, held_out = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (train, held_out))
    texts = pool([str(row) for row in range(700)], [str(row) for row in range(602)])
    found = near_overlap(texts, train, held_out)
    cosines = (held_out @ train.T).max(axis=1)
    assert found.prompts == int((cosines >= NEAR).sum()) == 2
    order = sorted((0, 1), key=lambda row: -cosines[row])
    assert [(int(one.question), int(other.question)) for one, other in found.examples] == [
        (r, (5, 650)[r]) for r in order
    ]


def test_near_duplicates_are_those_of_all_pairs_each_by_the_later_one() -> None:
    generator = np.random.default_rng(1)
    train = generator.normal(size=(1100, 16))
    # A neighbour in the same block of rows, one in an earlier block, and a third of the same.
    for later, first in ((40, 3), (1050, 7), (1090, 3)):
        train[later] = train[first] + 0.05 * generator.normal(size=16)
    train /= np.linalg.norm(train, axis=1, keepdims=True)
    found = near_duplicates(pool([str(row) for row in range(1100)]), train)
    cosines = np.tril(train @ train.T, -1)
    near = np.flatnonzero(cosines.max(axis=1) >= NEAR)
    assert set(near) == {40, 1050, 1090} and found.prompts == 3
    pairs = [(int(one.question), int(other.question)) for one, other in found.examples]
    assert dict(pairs) == {row: int(cosines[row].argmax()) for row in near.tolist()}
    assert [cosines[pair] for pair in pairs] == sorted((cosines[pair] for pair in pairs), reverse=True)


def test_nothing_held_out_overlaps_nothing() -> None:
    assert near_overlap(pool(["a"]), np.ones((1, 2)), np.zeros((0, 2))).prompts == 0
    assert sentences(exact_duplicates(pool(["a"])), exact_overlap(pool(["a"]))) == []


def test_plan_says_it_in_sentences_with_both_texts_and_embeds_only_where_asked() -> None:
    questions = ["Tom has three boxes of four eggs. How many eggs has he?", "Which river flows through Vienna?"]
    reworded = questions[0].replace("has he", "does he have")
    found = pool([*questions, questions[1].lower()], [questions[1], reworded])
    duplicate, overlap = overlaps(recipe(), found, near=False)
    assert re.match(r"1 training prompts .*'which river flows .*' \(s\) and 'Which river", duplicate)
    assert overlap.startswith("1 held-out prompts ask in the words of a training prompt")
    twins, near = overlaps(recipe(), found, near=True)[2:]
    assert twins.startswith("1 training prompts are near an earlier one (cosine of 0.95 or more): 'which river")
    assert near.startswith("2 held-out prompts are near a training prompt (cosine of 0.95")
