"""Verifiers with options, how a recipe writes them and a prompt names them, and several that make one reward."""

import asyncio
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import TypeAdapter, ValidationError

from actors.prompts.options import JsonlSource, PromptConfig
from actors.prompts.prompt import Prompt
from actors.prompts.sources import load_prompts
from actors.rewards.protocol import Attempt, FunctionVerifier, Unscored, Verdict, as_verifier
from actors.verifiers import BUILT_IN, WITH_OPTIONS, get_verifier
from actors.verifiers.options import AnyVerifier, spec
from tests.conftest import ROOT

pytestmark = pytest.mark.unit

ANY = TypeAdapter[Any](AnyVerifier)
RIGHT_AND_FORM = {
    "kind": "weighted",
    "of": {
        "right": {"verifier": "exact"},
        "form": {"verifier": {"kind": "regex", "pattern": "^[a-z]+$"}, "weight": 0.25},
    },
}


def prompt(answer: str | None = None, **row: Any) -> Prompt:
    return Prompt("p", "s", "?", answer, "exact", row=row)


def verdicts(verifier: Any, texts: Sequence[str], answer: str | None = None) -> list[Verdict]:
    """Of a verifier as a recipe writes it."""
    found = get_verifier(spec(ANY.validate_python(verifier)))
    return list(asyncio.run(found.judge(prompt(answer), [Attempt(text, i) for i, text in enumerate(texts)])))


def rewards(verifier: Any, texts: Sequence[str], answer: str | None = None) -> list[float | None]:
    return [verdict.reward for verdict in verdicts(verifier, texts, answer)]


@pytest.mark.parametrize("name", [*BUILT_IN, "choice", "my_task:score"])
def test_a_name_stands_for_itself(name: str) -> None:
    assert spec(ANY.validate_python(name)) == spec(ANY.validate_python({"kind": name})) == name


def test_every_verifier_with_options_has_a_model() -> None:
    _, *tagged = get_args(get_args(AnyVerifier)[0])
    assert {get_args(each)[0].model_fields["kind"].default for each in tagged} == set(WITH_OPTIONS)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("exatc", "unknown verifier `exatc`; did you mean `exact`"),
        ({"kind": "rgex", "pattern": "a"}, "unknown verifier `rgex`; did you mean `regex`"),
        ({"kind": "exact", "case": True}, "the verifier `exact` has no options"),
        ("regex", r"regex.pattern\s+Field required"),
        ({"kind": "regex", "patern": "a", "pattern": "a"}, r"regex.patern\s+Extra inputs"),
        ({"kind": "regex", "pattern": "("}, "no regular expression: missing"),
        ({"kind": "choice", "labels": ["A", "a"]}, "two labels are the same"),
        ({"kind": "choice", "labels": ["A", "B C"]}, "labels are single words"),
        ({"kind": "json_schema", "form": {"type": "objekt"}}, "no JSON schema: 'objekt'"),
        ({"kind": "weighted", "of": {"a": {"verifier": "exact", "weight": 0}}}, "every weight is 0"),
        ({"kind": "weighted", "of": {"a": {"verifier": RIGHT_AND_FORM}}}, "weighted"),
        ({"kind": "weighted", "of": {"a": {"verifier": "exatc"}}}, "did you mean `exact`"),
        (7, "give the name of a verifier"),
    ],
)
def test_what_cannot_be_is_refused(written: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ANY.validate_python(written)


def shown() -> list[Any]:
    """What the docs of verifiers and sandboxes write in YAML."""
    pages = [ROOT / "docs" / name for name in ("verifiers.md", "sandbox.md")]
    blocks = [
        re.findall(r"^```yaml\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL) for page in pages
    ]
    return [yaml.safe_load(block) for of_page in blocks for block in of_page]


@pytest.mark.parametrize("written", shown(), ids=lambda written: next(iter(written)))
def test_what_the_docs_write_is_what_a_recipe_may(written: dict[str, Any]) -> None:
    if "prompts" in written:
        assert PromptConfig.model_validate(written["prompts"]).sources
    else:
        assert spec(ANY.validate_python(written["verifier"]))


CHOICES = {
    "right": ["B", "(B)", "b.", r"\boxed{B}", r"I think so. $\boxed{\text{(B)}}$", "**B**", "B) Paris", "The answer is (B).", "Answer: B", "Answer: **B**\n", "So A is out.\nB"],
    "wrong": ["A", "", "(A) or (B)", "The answer is B or C", "BB", "Because of it", "A\nB and C", r"\boxed{A} not B", "answer: Berlin", "C) B", "K"],
}  # fmt: skip


def test_choice_finds_the_label() -> None:
    assert rewards("choice", CHOICES["right"], "(B)") == [1.0] * len(CHOICES["right"])
    assert rewards("choice", CHOICES["wrong"], "B") == [0.0] * len(CHOICES["wrong"])
    assert rewards({"kind": "choice", "labels": ["yes", "no"]}, ["Yes.", "**no**", "The answer is: yes"], "yes") == [
        1.0,
        0.0,
        1.0,
    ]


def test_regex_alone_and_with_an_answer() -> None:
    assert rewards({"kind": "regex", "pattern": r"<think>.*</think>"}, ["<think>a\nb</think>c", "<think>"]) == [
        1.0,
        0.0,
    ]
    tagged = {"kind": "regex", "pattern": r"<answer>(?P<answer>.*?)</answer>"}
    texts = [
        "<answer>Blue.</answer>",
        "<answer>red</answer><answer>blue</answer>",
        "<answer>blue</answer><answer>red</answer>",
        "blue",
    ]
    assert rewards(tagged, texts, "blue") == [1.0, 1.0, 0.0, 0.0]


def test_json_schema_reads_the_completion_or_its_last_block() -> None:
    form = {
        "type": "object",
        "properties": {"n": {"type": "integer"}},
        "required": ["n"],
        "additionalProperties": False,
    }
    texts = [
        '{"n": 1}',
        'Here:\n```json\n{"n": "x"}\n```\nno:\n```json\n{"n": 2}\n```\n',
        '{"n": 1.5}',
        '{"n": NaN}',
        '{"n": 1} and more',
        "[" * 100_000,
        "",
    ]
    assert rewards({"kind": "json_schema", "form": form}, texts) == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]


def test_a_schema_fetches_nothing() -> None:
    (verdict,) = verdicts({"kind": "json_schema", "form": {"$ref": "http://localhost:1/form"}}, ["{}"])
    assert verdict.error is not None and "Unresolvable" in verdict.error


def test_several_verifiers_make_one_reward_of_weighted_parts() -> None:
    found = verdicts(RIGHT_AND_FORM, ["blue", "Blue.", "red", "1"], "blue")
    assert [verdict.reward for verdict in found] == [1.25, 1.0, 0.25, 0.0]
    assert found[0].parts == {"right": 1.0, "form": 0.25} and found[2].parts == {"right": 0.0, "form": 0.25}


def test_an_error_of_a_part_is_an_error_of_the_whole() -> None:
    (verdict,) = verdicts(RIGHT_AND_FORM, ["blue"], None)
    assert verdict.reward is None and verdict.error is not None
    assert verdict.error.startswith(
        "part `right`: verifier raised ValueError: prompt p of source `s` has no gold answer"
    )


class Longest:
    """Judges groups."""

    async def judge(self, prompt: Prompt, attempts: Sequence[Attempt]) -> list[Verdict]:
        longest = max(len(attempt.text) for attempt in attempts)
        return [Verdict(float(len(attempt.text) == longest)) for attempt in attempts]


def test_a_part_may_judge_groups() -> None:
    own = f"{__name__}:Longest"
    mixed = {"kind": "weighted", "of": {"right": {"verifier": "exact"}, "longest": {"verifier": own, "weight": -0.5}}}
    assert rewards(mixed, ["blue", "a long one"], "blue") == [1.0, -0.5]


def test_the_gold_answer_must_suit_every_part(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text('{"question": "q", "answer": "blue", "level": 3, "tests": ["a"]}\n')
    source = {"name": "q", "path": "q.jsonl", "kind": "jsonl"}
    both = {"kind": "weighted", "of": {"a": {"verifier": "exact"}, "b": {"verifier": "numeric"}}}
    for verifier, what in ((both, "not one number as a whole"), ("choice", "is none of the labels A, B, C")):
        config = PromptConfig.model_validate({"sources": [{**source, "verifier": verifier}]})
        with pytest.raises(ValueError, match=f"line 1: .*{what}"):
            load_prompts(config, tmp_path)


def test_a_verifier_is_given_every_column_of_the_row(tmp_path: Path) -> None:
    row = {"question": "q", "answer": "1", "level": 3, "tests": [{"in": "1", "out": None}]}
    (tmp_path / "q.jsonl").write_text(json.dumps(row) + "\n")
    source = JsonlSource.model_validate({"name": "q", "path": "q.jsonl"})
    (read,) = load_prompts(PromptConfig(sources=(source,)), tmp_path).train
    assert read.row == row


async def test_what_a_function_may_return() -> None:
    def judge(prompt: Prompt, completion: str) -> Any:
        if completion == "?":
            raise Unscored("the picture is missing")
        return {
            "true": True,
            "parts": {"a": 1, "b": 0.5},
            "whole": {"reward": 0.5, "length": 12},
            "only": {"reward": 1},
        }[completion]

    verifier = as_verifier(judge)
    texts = ["true", "parts", "whole", "only", "?"]
    assert await verifier.judge(prompt(), [Attempt(text) for text in texts]) == [
        Verdict(1.0),
        Verdict(1.5, parts={"a": 1.0, "b": 0.5}),
        Verdict(0.5, parts={"length": 12.0}),
        Verdict(1.0),
        Verdict(None, "unscored: the picture is missing"),
    ]


async def test_a_function_of_attempts_judges_whole_groups_sync_or_async() -> None:
    def ranks(prompt: Prompt, attempts: Sequence[Attempt]) -> list[float]:
        order = sorted(attempts, key=lambda attempt: len(attempt.text))
        return [float(order.index(attempt)) for attempt in attempts]

    async def later(prompt: Prompt, attempts: Sequence[Attempt]) -> list[Any]:
        return [None, *ranks(prompt, attempts)[1:]]

    def fewer(prompt: Prompt, attempts: Sequence[Attempt]) -> list[float]:
        return [1.0]

    def unscored(prompt: Prompt, attempts: Sequence[Attempt]) -> list[float]:
        raise Unscored("no judge today")

    group = [Attempt("abc", 0), Attempt("a", 1)]
    for function, waits, said in (
        (ranks, False, [Verdict(1.0), Verdict(0.0)]),
        (later, True, [Verdict(None, "verifier returned NoneType, not a number"), Verdict(0.0)]),
        (fewer, False, [Verdict(None, "verifier returned 1 values for 2 attempts")] * 2),
        (unscored, False, [Verdict(None, "unscored: no judge today")] * 2),
    ):
        verifier = as_verifier(function)
        assert not isinstance(verifier, FunctionVerifier) and verifier.waits is waits  # type: ignore[attr-defined]
        assert await verifier.judge(prompt(), group) == said


BOTH = asyncio.Barrier(2)
"""Passed by two at once, or by nobody."""


async def once_both_are_asked(prompt: Prompt, completion: str) -> float:
    async with asyncio.timeout(20), BOTH:
        return 0.5


async def group_once_both_are_asked(prompt: Prompt, attempts: Sequence[Attempt]) -> list[float]:
    async with asyncio.timeout(20), BOTH:
        return [0.5] * len(attempts)


@pytest.mark.parametrize("other", ["once_both_are_asked", "group_once_both_are_asked"])
def test_members_that_wait_do_so_at_once(other: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.BOTH", asyncio.Barrier(2))  # of one event loop
    members = {"one": {"verifier": f"{__name__}:once_both_are_asked"}, "other": {"verifier": f"{__name__}:{other}"}}
    assert rewards({"kind": "weighted", "of": members}, ["any"]) == [1.0]
