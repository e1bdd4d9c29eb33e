"""Verifiers: what counts as right, and what is an error instead of a reward."""

import inspect
import re

import pytest

from actors.prompts.options import ReasoningGymSource
from actors.prompts.pool import SourceError
from actors.prompts.prompt import Prompt
from actors.prompts.tasks import load_task
from actors.rewards.protocol import Attempt, FunctionVerifier, Verdict, as_verifier
from actors.verifiers import BUILT_IN, UnknownVerifierError, get_verifier, refuse_gold
from actors.verifiers.exact import exact
from actors.verifiers.numeric import numeric

pytestmark = pytest.mark.unit


def prompt(answer: str | None, **material: object) -> Prompt:
    return Prompt(prompt_id="p", source="s", text="?", answer=answer, verifier="numeric", material=material)


def test_numeric_compares_values_not_digits() -> None:
    assert numeric(prompt("0.5"), "1/2") == 1.0
    assert numeric(prompt("1,000"), "1000 dollars") == 1.0
    assert numeric(prompt("12"), "1.2") == 0.0
    assert numeric(prompt("12"), "no idea") == 0.0
    # Equal as floats, not as numbers.
    assert numeric(prompt("10000000000000000"), "10000000000000001") == 0.0


@pytest.mark.parametrize("verifier", [exact, numeric])
def test_without_a_gold_answer_there_is_no_reward(verifier: object) -> None:
    with pytest.raises(ValueError, match="no gold answer"):
        verifier(prompt(None), "5")


@pytest.mark.parametrize(
    "gold", ["blue", "(1, 2)", r"2\sqrt{3}", "5:30", "7, 8", r"\pm 2021", "x > 5", "2^{10}", "", "1/0"]
)
def test_a_gold_answer_that_is_not_one_number_is_refused(gold: str) -> None:
    with pytest.raises(ValueError, match=r"not one number as a whole.*name the verifier `math`"):
        refuse_gold("numeric", gold)
    with pytest.raises(ValueError, match="not one number as a whole"):
        numeric(prompt(gold), "5")


def test_exact_forgives_only_form() -> None:
    assert exact(prompt("New  York"), ' "new york." ') == 1.0
    assert exact(prompt("New York"), "New York City") == 0.0


@pytest.mark.parametrize(
    ("gold", "completion", "reward"),
    [
        ("B", "(B)", 1.0),
        ("(B)", "b", 1.0),
        ("B", r"Of these, \boxed{B} is right", 1.0),
        ("B", r"$\boxed{\text{(B)}}$", 1.0),
        ("yes", "**Yes**", 1.0),
        ("yes", "**Yes.**", 1.0),
        ("yes", "yes and no", 0.0),
        ("[0, 1)", "(0, 1)", 0.0),
        ("(0, 1)", "(0,  1)", 1.0),
        ("B", r"\boxed{C} B", 0.0),
    ],
)
def test_exact_knows_what_is_put_around_choices(gold: str, completion: str, reward: float) -> None:
    assert exact(prompt(gold), completion) == reward


def test_built_in_verifiers_and_dotted_paths_are_found() -> None:
    for name in (*BUILT_IN, "choice", "actors.verifiers.exact:exact"):
        assert isinstance(get_verifier(name), FunctionVerifier)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("numerik", "did you mean `numeric`"),
        ("no_such_module:f", "cannot be loaded: No module named"),
        ("actors.verifiers.exact:nothing", "cannot be loaded: .*nothing"),
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
    with pytest.raises(ValueError, match="`composite` is refused"):
        task_score(prompt("1", task="composite", entry={}), "1")
    for task in ("puzzle24", "composite"):
        with pytest.raises(SourceError, match=f"`{task}`"):
            load_task(ReasoningGymSource(name="x", task=task, limit=1))


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
