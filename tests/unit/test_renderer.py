"""Texts and token ids: a conversation that grows turn by turn has the ids of the whole one, and nothing sampled is touched."""

import subprocess
import sys

import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from actors.prompts.renderer import Renderer
from tests.conftest import ROOT

pytestmark = pytest.mark.unit

WORDS = ["<pad>", "<eos>", "two", "plus", "4", "5", "is", "right", "user:", "bot:", ";"]
EOS, FOUR, STOP = 1, 4, 10
TEMPLATE = "{% for m in messages %}{{ 'user:' if m.role == 'user' else 'bot:' }} {{ m.content }}<eos> {% endfor %}{% if add_generation_prompt %}bot:{% endif %}"


def tokenizer(template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token=AddedToken("<eos>"))
    made.chat_template = template
    return made


def test_a_bare_text_goes_on_with_bare_text() -> None:
    renderer = Renderer(tokenizer(None), chat=False, stop=(";",))
    assert renderer.opening_ids("two plus two is") == (2, 3, 2, 6)
    assert renderer.answer_ids("is right", last=STOP) == (6, 7)
    assert renderer.stop_ids == (STOP,)


@pytest.mark.parametrize("said", [[FOUR, EOS], [FOUR]], ids=["ended by its own token", "cut by a stop text"])
def test_a_chat_grows_into_the_ids_of_the_whole_conversation(said: list[int]) -> None:
    made = tokenizer()
    renderer = Renderer(made, chat=True, stop=())
    grown = [*renderer.opening_ids("two plus two"), *said]
    grown += renderer.answer_ids("is 5 right", last=grown[-1])
    conversation = [
        {"role": "user", "content": "two plus two"},
        {"role": "assistant", "content": "4"},
        {"role": "user", "content": "is 5 right"},
    ]
    assert grown == made.apply_chat_template(conversation, add_generation_prompt=True, return_dict=True)["input_ids"]


def test_a_template_that_forgets_what_was_said_takes_no_second_turn() -> None:
    forgetful = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    with pytest.raises(ValueError, match="drops what the policy said"):
        Renderer(tokenizer(forgetful), chat=True, stop=()).answer_ids("is right", last=EOS)


def test_texts_are_without_what_ended_them() -> None:
    renderer = Renderer(tokenizer(), chat=True, stop=(";",))
    assert [renderer.text(ids) for ids in ([FOUR, STOP], [FOUR, EOS], [FOUR], [])] == ["4", "4", "4", ""]
    assert renderer.text([STOP, FOUR]) == "; 4"


@pytest.mark.parametrize(
    ("chat", "stop", "message"), [(True, (), "no chat template"), (False, ("two plus",), "'two plus' is 2 tokens")]
)
def test_what_cannot_be_rendered_is_refused(chat: bool, stop: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Renderer(tokenizer(None), chat, stop)


def test_a_tokenizer_loads_while_another_thread_imports_transformers() -> None:
    """Which puts another module in its own place at the end of its import."""
    code = """
import sys, threading
from actors.prompts.renderer import load_tokenizer

threading.Thread(target=__import__, args=("transformers",)).start()
while "transformers" not in sys.modules:
    pass
load_tokenizer(sys.argv[1])
"""
    policy = ROOT / "deploy" / "recipes" / "cold_start" / "policy"
    subprocess.run([sys.executable, "-c", code, policy], check=True, cwd=ROOT, timeout=120)
