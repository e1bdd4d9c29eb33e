"""Verifiers: what counts as right, and what is an error instead of a reward."""

import inspect
import re
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.prompts.prompt import Prompt
from actors.rewards.protocol import Attempt, FunctionVerifier, Verdict, as_verifier
from actors.verifiers import BUILT_IN, UnknownVerifierError, get_verifier
from actors.verifiers.matching import exact, find_number, numeric

pytestmark = pytest.mark.unit


def prompt(answer: str | None, **material: object) -> Prompt:
    return Prompt(prompt_id="p", source="s", text="?", answer=answer, verifier="numeric", material=material)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("42", 42),
        (" 42.\n", 42),
        ("The answer is -3.", -3),
        ("\u22123", -3),
        ("5-3", 3),
        ("10 - 4 = 6", 6),
        ("x=-7", -7),
        ("It costs $1,234,567.50 in all", Fraction("1234567.5")),
        ("-$5", -5),
        ("1,2,3", 3),
        (".5", Fraction(1, 2)),
        ("1/2.", Fraction(1, 2)),
        ("-3 / 4", Fraction(-3, 4)),
        ("1/0", None),
        ("1.5e3", 1500),
        ("7 apples and then #### 12 (not 13)", 12),
        ("#### 3\n#### 1,000", 1000),
        ("so \\boxed{17}, as 17 > 16", 17),
        ("\\boxed{\\frac{1}{2}}", Fraction(1, 2)),
        ("\\boxed{-\\dfrac{3}{4}} or 5", Fraction(-3, 4)),
        ("\\boxed{x = \\text{about } 12}", 12),
        ("\\boxed{no number} 5", None),
        ("\\boxed{5", 5),
        ("50%", 50),
        ("H2O", None),
        ("version 1.2.3", None),
        ("9" * 5000, None),
        ("", None),
        ("none at all", None),
        ("1e999999999", None),
    ],
)
def test_find_number(text: str, number: Fraction | int | None) -> None:
    assert find_number(text) == number


@given(st.integers(-(10**12), 10**12))
def test_integers_are_found_however_they_are_written(value: int) -> None:
    for written in (f"{value}", f"{value:,}", f"so {value}.", f"#### {value:,}", f"\\boxed{{{value}}}", f"{value}.0"):
        assert find_number(written) == value


@given(st.decimals(allow_nan=False, allow_infinity=False, places=4, min_value=-(10**9), max_value=10**9))
def test_decimals_are_exact(value: object) -> None:
    assert find_number(f"about {value:,} euros") == Fraction(str(value))


@given(st.text(max_size=400))
def test_hostile_text_gives_a_number_or_none(text: str) -> None:
    assert find_number(text) is None or isinstance(find_number(text), Fraction)


def test_numeric_compares_values_not_digits() -> None:
    assert numeric(prompt("0.5"), "1/2") == 1.0
    assert numeric(prompt("#### 1,000"), "1000 dollars") == 1.0
    assert numeric(prompt("12"), "1.2") == 0.0
    assert numeric(prompt("12"), "no idea") == 0.0
    # Equal as floats, not as numbers.
    assert numeric(prompt("10000000000000000"), "10000000000000001") == 0.0


@pytest.mark.parametrize("verifier", [exact, numeric])
def test_without_a_gold_answer_there_is_no_reward(verifier: object) -> None:
    with pytest.raises(ValueError, match="no gold answer"):
        verifier(prompt(None), "5")


def test_a_gold_answer_without_a_number_is_an_error() -> None:
    with pytest.raises(ValueError, match="holds no number"):
        numeric(prompt("blue"), "5")


def test_exact_forgives_only_form() -> None:
    assert exact(prompt("New  York"), ' "new york." ') == 1.0
    assert exact(prompt("New York"), "New York City") == 0.0


def test_built_in_verifiers_and_dotted_paths_are_found() -> None:
    for name in (*BUILT_IN, "actors.verifiers.matching:exact"):
        assert isinstance(get_verifier(name), FunctionVerifier)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("numerik", "did you mean `numeric`"),
        ("no_such_module:f", "cannot be loaded: No module named"),
        ("actors.verifiers.matching:nothing", "cannot be loaded: .*nothing"),
        ("actors.verifiers:BUILT_IN", "is a dict, not a callable"),
    ],
)
def test_an_unknown_verifier_is_a_clear_error(name: str, message: str) -> None:
    with pytest.raises(UnknownVerifierError, match=message):
        get_verifier(name)


def gym_prompt(task: str, params: dict[str, object], **material: object) -> Prompt:
    import reasoning_gym

    entry = reasoning_gym.create_dataset(task, seed=3, size=1, **params)[0]
    return prompt(entry["answer"], task=task, params=params, entry=entry, **material)


def test_reasoning_gym_uses_the_task_s_scorer() -> None:
    from actors.verifiers.reasoning_gym import task_score

    single = gym_prompt("gcd", {"min_value": 1, "max_value": 30})
    assert single.answer == "6"
    assert task_score(single, " 6 \n") == 1.0
    assert task_score(single, "5") == 0.0


def test_partial_credit_keeps_fractions_only_where_asked() -> None:
    from actors.verifiers.reasoning_gym import task_score

    params = {"min_value": 1, "max_value": 30}
    assert task_score(gym_prompt("gcd", params), "6!") == 0.0
    assert task_score(gym_prompt("gcd", params, partial_credit=True), "6!") == 0.5


def test_every_installed_task_that_evaluates_completions_is_refused() -> None:
    from reasoning_gym.factory import DATASETS

    from actors.verifiers.reasoning_gym import EVALUATING_TASKS, task_score

    calls = re.compile(r"\b(?:eval|exec|parse_expr|sympify|compile)\(")
    gold_only = {"number_sorting"}
    found = {name for name, (cls, _) in DATASETS.items() if calls.search(inspect.getsource(cls.score_answer))}
    assert found - gold_only == EVALUATING_TASKS
    with pytest.raises(ValueError, match="evaluates the completion"):
        task_score(prompt("1", task="puzzle24", entry={}), "__import__('os').getpid()")


async def test_a_function_is_a_verifier_sync_or_async() -> None:
    async def later(prompt: Prompt, completion: str) -> bool:
        return completion == prompt.answer

    attempts = [Attempt("4", 0), Attempt("5", 1)]
    for function, waits in ((exact, False), (later, True)):
        verifier = as_verifier(function)
        assert isinstance(verifier, FunctionVerifier) and verifier.waits is waits
        assert await verifier.judge(prompt("4"), attempts) == [Verdict(1.0), Verdict(0.0)]


async def test_an_object_or_a_class_may_judge_whole_groups() -> None:
    class Longest:
        async def judge(self, prompt: Prompt, attempts: list[Attempt]) -> list[Verdict]:
            longest = max(attempt.tokens for attempt in attempts)
            return [Verdict(float(attempt.tokens == longest)) for attempt in attempts]

    attempts = [Attempt("a", 0, tokens=3), Attempt("b", 1, tokens=7)]
    for found in (Longest, Longest()):
        assert [verdict.reward for verdict in await as_verifier(found).judge(prompt(None), attempts)] == [0.0, 1.0]


@pytest.mark.parametrize(("reward", "error"), [(None, None), (1.0, "late"), (float("nan"), None), (float("inf"), None)])
def test_a_verdict_is_a_finite_reward_or_an_error(reward: float | None, error: str | None) -> None:
    with pytest.raises(ValueError):
        Verdict(reward, error)
