"""Columns of messages, a system's words, and what a chat template is told."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from actors.prompts.options import PromptConfig
from actors.prompts.pool import PromptPool
from actors.prompts.prompt import Prompt
from actors.prompts.renderer import Renderer, all_prompt_ids, prompt_ids
from actors.prompts.sources import load_prompts
from deploy.config.recipe import ConfigError
from deploy.run.policy_check import refuse_unfit_policy
from deploy.run.policy_check_apart import PolicyCheck
from deploy.run.prompt_lengths import fitting
from deploy.run.prompt_set import question_of
from tests.hub import POLICY
from tests.unit.test_placement import recipe
from tests.unit.test_renderer import TEMPLATE, tokenizer

pytestmark = pytest.mark.unit

TURNS = [
    {"role": "user", "content": "two plus two"},
    {"role": "assistant", "content": "4"},
    {"role": "user", "content": " is 4 right "},
]


def read(base: Path, rows: list[dict[str, Any]], **settings: Any) -> PromptPool:
    (base / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    source = {"kind": "jsonl", "name": "talk", "path": "rows.jsonl", "question_field": "messages", **settings}
    return load_prompts(PromptConfig.model_validate({"sources": [source], "chat": True}), base)


def test_a_column_of_messages_is_a_conversation_up_to_what_the_user_says_last(tmp_path: Path) -> None:
    answered = [*TURNS, {"role": "assistant", "content": "yes"}]
    (prompt,) = read(tmp_path, [{"messages": answered, "answer": 4}], template="Now: {question}").train
    assert prompt.before == (("user", "two plus two"), ("assistant", "4"))
    assert (prompt.text, prompt.question) == ("Now: is 4 right", "is 4 right")
    assert question_of(prompt) == prompt.asked == "two plus two\n\n4\n\nNow: is 4 right"


def test_the_policy_reads_the_whole_conversation(tmp_path: Path) -> None:
    (prompt,) = read(tmp_path, [{"messages": TURNS, "answer": 4}]).train
    made = tokenizer()
    renderer = Renderer(made, chat=True, stop=())
    whole = [{**turn, "content": turn["content"].strip()} for turn in TURNS]
    expected = made.apply_chat_template(whole, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert renderer.opening_ids(prompt.text, prompt.before) == tuple(expected)
    with pytest.raises(ValueError, match=r"needs the tokenizer's chat template; set prompts\.chat"):
        Renderer(made, chat=False, stop=()).opening_ids(prompt.text, prompt.before)


def test_the_system_speaks_first_where_the_conversation_has_no_system_of_its_own(tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "system", "content": "mine"}, TURNS[0]], "answer": 4},
        {"messages": "2 + 2", "answer": 4},
    ]
    own, bare = read(tmp_path, rows, system="Be brief.").train
    assert own.before == (("system", "mine"),)
    assert bare.before == (("system", "Be brief."),) and question_of(bare) == bare.asked == "2 + 2"
    (plain,) = read(tmp_path, rows[1:]).train
    assert plain.before == () and plain.prompt_id != bare.prompt_id


def test_what_is_held_out_is_not_trained_on_under_another_system(tmp_path: Path) -> None:
    rows = [{"q": "2 + 2", "answer": 4}, {"q": "1 + 1", "answer": 2}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    common = {"kind": "jsonl", "path": "rows.jsonl", "question_field": "q"}
    sources = [{**common, "name": "a", "held_out": 1}, {**common, "name": "b", "system": "Be brief."}]
    pool = load_prompts(PromptConfig.model_validate({"sources": sources, "chat": True}), tmp_path)
    assert len(pool.held_out) == 1
    assert pool.held_out[0].text not in {prompt.text for prompt in pool.train}


def test_conversations_with_the_same_last_words_are_two_prompts(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": x}, TURNS[2]], "answer": 4} for x in ("1 + 1", "2 + 2")]
    pool = read(tmp_path, rows, held_out=1)
    assert (len(pool.train), len(pool.held_out)) == (1, 1)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "field `messages` has no message of the role `user`"),
        ([{"role": "user"}], "message 1 of field `messages` must have a `role` and a `content` that are texts"),
        ([TURNS[0], "and"], "message 2 of field `messages` must have"),
        ([{"role": "user", "content": [{"type": "image"}]}], "message 1 of field `messages` must have"),
        ([{"role": "user", "content": "\ud800"}], "holds half a character"),
    ],
)
def test_what_is_no_conversation_is_named(tmp_path: Path, messages: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"line 1: .*{message}"):
        read(tmp_path, [{"messages": messages, "answer": 1}])


def test_parts_of_text_are_one_content(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "2 +"}, {"type": "text", "text": " 2"}]
    (prompt,) = read(tmp_path, [{"messages": [{"role": "user", "content": parts}], "answer": 4}]).train
    assert prompt.text == "2 + 2"


def test_a_template_takes_columns_by_name_once(tmp_path: Path) -> None:
    row = {"messages": "Is {row.answer} 4?", "answer": 4, "context": "Sums.", "meta": {"level": 3}}
    template = r"{row.context} ({row.meta.level}) {question} \boxed{answer}"
    (prompt,) = read(tmp_path, [row], template=template).train
    assert prompt.text == r"Sums. (3) Is {row.answer} 4? \boxed{answer}"
    with pytest.raises(ValueError, match=r"line 1: no field `contex` \(from `template`\); did you mean context\?"):
        read(tmp_path, [row], template="{row.contex} {question}")


THINKING = TEMPLATE + "{% if add_generation_prompt and not (enable_thinking | default(true)) %} ;{% endif %}"


def test_the_chat_template_is_told_its_options() -> None:
    made = tokenizer(THINKING)
    quiet = Renderer(made, chat=True, stop=(), options={"enable_thinking": False})
    aloud = Renderer(made, chat=True, stop=())
    assert quiet.opening_ids("two") == (*aloud.opening_ids("two"), 10)
    assert quiet.answer_ids("is right", last=1)[-1] == 10


@pytest.mark.parametrize("chat", [True, False])
def test_many_at_once_are_what_each_is(chat: bool) -> None:
    made = tokenizer(THINKING)
    before = (("user", "4"), ("bot", "5")) if chat else ()
    openings = [("two", ()), ("two plus two", before), ("", ())]
    many = all_prompt_ids(made, openings, chat, {"enable_thinking": False})
    assert many == [prompt_ids(made, text, chat, before, {"enable_thinking": False}) for text, before in openings]
    assert len({len(ids) for ids in many}) == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"chat_options": {"enable_thinking": False}}, "chat_options are for the chat template"),
        ({"chat": True, "chat_options": {"tokenize": False}}, "tokenize is set for every run"),
        (
            {"sources": [{"kind": "jsonl", "name": "a", "path": "a", "system": "x"}]},
            "source `a` has a `system`, which needs",
        ),
    ],
)
def test_a_chat_that_cannot_be_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PromptConfig.model_validate({"sources": [{"kind": "jsonl", "name": "a", "path": "a"}], **settings})


def pool(*texts: str, before: tuple[tuple[str, str], ...] = ()) -> PromptPool:
    return PromptPool(train=tuple(Prompt(text, "s", text, "1", "exact", before=before) for text in texts), held_out=())


def test_a_conversation_without_a_chat_is_refused_before_anything_starts() -> None:
    with pytest.raises(
        ConfigError, match=r"a prompt of source s \('12'\) is a conversation, which needs prompts\.chat"
    ):
        refuse_unfit_policy(recipe(policy=str(POLICY)), pool("12", before=(("user", "1"),)))


def test_prompts_that_are_too_long_are_left_out_where_the_recipe_says_so(caplog: pytest.LogCaptureFixture) -> None:
    settings = {"policy": str(POLICY), "prompts__max_tokens": 4}
    with pytest.raises(ConfigError, match=r"4 is less than the 6 tokens .*prompts\.too_long: skip"):
        refuse_unfit_policy(recipe(**settings), pool("12", "12345", "123456"))
    asked = pool("12", "12345", "1234", "123456")
    with PolicyCheck() as check, PolicyCheck() as other:
        left = check.refuse_unfit(recipe(**settings, prompts__too_long="skip"), asked)
        with pytest.raises(ConfigError, match="all training prompts have more than 4 tokens"):
            other.refuse_unfit(recipe(**settings, prompts__too_long="skip"), pool("12345"))
    assert left.train == (asked.train[0], asked.train[2])
    assert fitting(recipe(**settings, prompts__too_long="skip"), asked) == left
    assert fitting(recipe(**settings), asked) == asked
    assert "2 prompts of more than prompts.max_tokens (4) are left out" in caplog.text


def test_an_option_that_the_template_does_not_know_is_refused(tmp_path: Path) -> None:
    for file in POLICY.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    about = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    template = "{{ messages[0]['content'] }}{% if not enable_thinking %}0{% endif %}"
    about["chat_template"] = template
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(about), encoding="utf-8")

    def config(**options: Any) -> Any:
        return recipe(policy=str(tmp_path), prompts__chat=True, prompts__chat_options=options)

    refuse_unfit_policy(config(enable_thinking=False), pool("12"))
    with pytest.raises(ConfigError, match=r"prompts\.chat_options: the chat template of .* knows no `thinking`"):
        refuse_unfit_policy(config(thinking=False), pool("12"))
