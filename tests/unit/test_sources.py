import json
import logging
from pathlib import Path

import pytest

from actors.prompts.options import JsonlSource, PromptConfig, ReasoningGymSource
from actors.prompts.pool import PromptPool
from actors.prompts.prompt import prompt_id
from actors.prompts.sources import load_prompts

pytestmark = pytest.mark.unit

SUMS = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
GSM8K = [
    {"question": "Tom has 3 boxes of {4} eggs.\nHow many eggs?", "answer": "3*4 = <<3*4=12>>12 eggs.\n#### 12"},
    {"question": "A car costs $1,000 and a bike $200. Together?", "answer": "It is <<1000+200=1200>>\n#### 1,200"},
    {"question": "How many legs have two cats?", "answer": "#### 8"},
    {"question": "How many wheels has a bike?", "answer": "Two.\n#### 2"},
]


def sums(**settings: object) -> ReasoningGymSource:
    return ReasoningGymSource.model_validate({"name": "sums", "task": "chain_sum", "params": SUMS, **settings})


def jsonl(**settings: object) -> JsonlSource:
    return JsonlSource.model_validate({"name": "gsm8k", "path": "train.jsonl", **settings})


def load(*sources: ReasoningGymSource | JsonlSource, base: Path = Path()) -> PromptPool:
    return load_prompts(PromptConfig(sources=sources), base)


def write_lines(folder: Path, rows: list[dict[str, object]], name: str = "train.jsonl") -> None:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def gsm8k(tmp_path: Path) -> Path:
    write_lines(tmp_path, GSM8K)
    return tmp_path


def test_a_task_gives_the_same_distinct_prompts_every_time() -> None:
    pool = load(sums(limit=40, held_out=10))
    assert pool == load(sums(limit=40, held_out=10))
    assert (len(pool.train), len(pool.held_out)) == (40, 10)
    assert len({prompt.text for prompt in pool.train + pool.held_out}) == 50


def test_another_seed_gives_other_prompts() -> None:
    assert load(sums(limit=20)).train != load(sums(limit=20, seed=1)).train


def test_held_out_prompts_do_not_depend_on_the_limit() -> None:
    assert load(sums(limit=5, held_out=8)).held_out == load(sums(limit=60, held_out=8)).held_out


def test_a_task_prompt_carries_what_its_scorer_needs() -> None:
    from reasoning_gym.factory import create_dataset

    prompt = load(sums(limit=1, partial_credit=True)).train[0]
    task = create_dataset(prompt.material["task"], **prompt.material["params"])
    assert task.score_answer(prompt.answer, prompt.material["entry"]) == 1
    assert task.score_answer("no number", prompt.material["entry"]) == 0
    assert set(prompt.material) == {"task", "params", "entry", "partial_credit"}
    assert prompt.material["partial_credit"] is True
    assert prompt.verifier == "reasoning_gym"
    assert prompt.prompt_id == prompt_id("sums", prompt.text)


def test_verifier_of_the_source_comes_first() -> None:
    assert load(sums(limit=1, verifier="exact")).train[0].verifier == "exact"


def test_pattern_keeps_the_question_across_lines() -> None:
    source = ReasoningGymSource(
        name="legs", task="leg_counting", question_pattern="^Your task (.*)Now, (?:.*)$", limit=3
    )
    for prompt in load(source).train:
        assert prompt.text.startswith("is to count")
        assert "Now" not in prompt.text


def test_shots_follow_from_the_template() -> None:
    template = "Question: {question}\nAnswer:"
    pool = load(sums(limit=30, held_out=5, shots=2, template=template))
    prompt = pool.train[0]
    first, second, asked = prompt.text.split("\n\n")
    assert asked == template.replace("{question}", prompt.material["entry"]["question"])
    shown = set()
    for shot in (first, second):
        assert shot.startswith("Question: ")
        question, _, answer = shot.removeprefix("Question: ").rpartition("\nAnswer: ")
        terms = question.rpartition(":")[2].replace("=", "").replace(" - ", " + -").split("+")
        assert int(answer) == sum(int(term) for term in terms)
        shown.add(question)
    assert not shown & {other.material["entry"]["question"] for other in pool.train + pool.held_out}


def test_long_prompts_and_answers_are_left_out() -> None:
    wide = sums(params={**SUMS, "max_terms": 6}, limit=60)
    longest = max(len(prompt.text) for prompt in load(wide).train)
    pool = load(wide.model_copy(update={"max_prompt_chars": longest - 8, "max_answer_chars": 1}))
    assert len(pool.train) == 60
    assert max(len(prompt.text) for prompt in pool.train) <= longest - 8
    assert all(len(prompt.answer or "") == 1 for prompt in pool.train)


def test_a_task_that_runs_dry_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        pool = load(ReasoningGymSource(name="bits", task="count_bits", params={"min_n": 1, "max_n": 9}, limit=50))
    assert len(pool.train) == 9
    assert "`bits`: only 9 training prompts of limit 50" in caplog.text


def test_failing_indices_are_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    from reasoning_gym.arithmetic.chain_sum import ChainSumDataset

    whole = load(sums(limit=10)).train
    make = ChainSumDataset.__getitem__

    def flaky(self: ChainSumDataset, index: int) -> dict[str, object]:
        if index % 2:
            raise RuntimeError("no item here")
        return make(self, index)

    monkeypatch.setattr(ChainSumDataset, "__getitem__", flaky)
    pool = load(sums(limit=10)).train
    assert len(pool) == 10
    assert all(prompt.material["entry"]["metadata"]["source_index"] % 2 == 0 for prompt in pool)
    assert pool[0] == whole[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "chain_sums"}, "unknown reasoning-gym task `chain_sums`; did you mean chain_sum?"),
        ({"params": {"min_term": 2}}, "no setting `min_term`; did you mean min_terms?"),
        ({"params": {"min_terms": 3, "max_terms": 2}}, "refuses params .*max_terms"),
        ({"params": {"seed": 3}}, "the source's own `seed`"),
        ({"question_pattern": "answer"}, "has no group"),
        ({"question_pattern": "(answer"}, "no regular expression"),
        ({"question_pattern": "(nonsense)"}, "does not match the question"),
        ({"template": "Solve:"}, "has no place for the question"),
        ({"max_prompt_chars": 1}, "yielded no prompt .*max_prompt_chars"),
        ({"params": {**SUMS, "size": 4}, "held_out": 4}, "no training prompts are left"),
        ({"shots": 5000}, "lower `shots`"),
    ],
)
def test_errors_of_a_task_name_source_and_remedy(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=rf"source `sums`: .*{message}"):
        load(sums(**settings))


def test_gsm8k_lines_read_as_they_are(gsm8k: Path) -> None:
    pool = load(jsonl(template="Q: {question}\nA:"), base=gsm8k)
    assert [prompt.answer for prompt in pool.train] == ["12", "1,200", "8", "2"]
    assert pool.train[0].text == "Q: Tom has 3 boxes of {4} eggs.\nHow many eggs?\nA:"
    assert pool.train[0].verifier == "numeric"
    assert pool.train[0].source == "gsm8k"
    assert pool.train[0].material == {}


def test_held_out_lines_do_not_depend_on_order_or_limit(gsm8k: Path) -> None:
    pool = load(jsonl(held_out=2), base=gsm8k)
    write_lines(gsm8k, GSM8K[::-1])
    turned = load(jsonl(held_out=2, limit=1), base=gsm8k)
    assert {prompt.prompt_id for prompt in pool.held_out} == {prompt.prompt_id for prompt in turned.held_out}
    assert len(turned.train) == 1
    assert not {prompt.text for prompt in pool.train} & {prompt.text for prompt in pool.held_out}


def test_lines_that_stand_twice_count_once(gsm8k: Path) -> None:
    write_lines(gsm8k, [*GSM8K, *GSM8K])
    assert len(load(jsonl(), base=gsm8k).train) == 4


def test_lines_may_name_their_own_source(tmp_path: Path) -> None:
    write_lines(
        tmp_path, [{"text": "1 + 1", "gold": 2, "from": "sums"}, {"text": "2 * 2", "gold": 4, "from": "products"}]
    )
    source = jsonl(question_field="text", answer_field="gold", source_field="from")
    assert [(prompt.source, prompt.answer) for prompt in load(source, base=tmp_path).train] == [
        ("sums", "2"),
        ("products", "4"),
    ]


def test_what_one_source_holds_out_no_other_trains_on(gsm8k: Path) -> None:
    pool = load(jsonl(name="a", held_out=2), jsonl(name="b"), base=gsm8k)
    assert len(pool.held_out) == 2
    assert not {prompt.text for prompt in pool.train} & {prompt.text for prompt in pool.held_out}


def test_a_line_that_comes_again_keeps_its_first_place_and_gold(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked = [("a", 1), ("b", 2), ("c", 3), ("a", 1), ("b", 7), ("c", 8)]
    write_lines(tmp_path, [{"question": question, "answer": answer} for question, answer in asked])
    pool = load(jsonl(limit=2), base=tmp_path)
    assert [(prompt.text, prompt.answer) for prompt in pool.train] == [("a", "1"), ("b", "2")]
    assert "2 prompts come again with another gold answer, and the first one counts" in caplog.text
    assert "train.jsonl, line 5: '7', but '2' in " in caplog.text and "train.jsonl, line 2; …" in caplog.text


def test_a_file_may_begin_with_a_byte_order_mark(gsm8k: Path) -> None:
    whole = load(jsonl(), base=gsm8k)
    path = gsm8k / "train.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert load(jsonl(), base=gsm8k) == whole


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"difficulty": None, "level": 3}, "3"),
        ({"difficulty": 0, "level": 3}, "0"),
        ({"difficulty": {"by": "hand"}}, ""),
        ({"level": True}, ""),
        ({}, ""),
    ],
)
def test_the_difficulty_is_what_says_something(tmp_path: Path, fields: dict[str, object], found: str) -> None:
    write_lines(tmp_path, [{"question": "1 + 1", "answer": 2, **fields}])
    assert load(jsonl(), base=tmp_path).train[0].difficulty == found


@pytest.mark.parametrize(
    ("verifier", "gold", "message"),
    [
        ("numeric", "two", "line 2: the gold answer 'two' is not one number as a whole"),
        (None, "1/0", "name the verifier `math`"),
        ("exact", '"."', "line 2: the gold answer .* is empty for the verifier `exact`"),
    ],
)
def test_a_gold_that_the_verifier_cannot_read_is_refused(
    tmp_path: Path, verifier: str | None, gold: str, message: str
) -> None:
    write_lines(tmp_path, [GSM8K[0], {"question": "1 + 1", "answer": gold}])
    with pytest.raises(ValueError, match=message):
        load(jsonl(verifier=verifier), base=tmp_path)
    assert len(load(jsonl(verifier="my_module:mine"), base=tmp_path).train) == 2


def test_a_prompt_knows_its_question_without_what_stands_around_it(gsm8k: Path) -> None:
    asked = load(jsonl(template="Think first.\n{question}\nAnswer:"), base=gsm8k).train[2]
    assert (asked.text, asked.question) == (f"Think first.\n{asked.question}\nAnswer:", "How many legs have two cats?")
    shown = load(sums(limit=1, shots=2, template="Q: {question}\nA:")).train[0]
    assert shown.text.endswith(f"Q: {shown.question}\nA:") and shown.text.count("Q: ") == 3
    assert "Q:" not in shown.question


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"question": "1 + 1?"}', r"train\.jsonl, line 2: no field `answer` \(from `answer_field`\)"),
        ('{"question": "1 + 1?", "answers": "2"}', "no field `answer` .*did you mean answers?"),
        ('{"question": "1 + 1?", "answer": null}', "field `answer` must be a text or a number, found None"),
        ('{"question": " ", "answer": "2"}', "field `question` must be"),
        ("question: 1 + 1", "line 2: not JSON"),
        pytest.param("[" * 200_000, "line 2: its JSON is nested too deep", id="nested"),
        (r'{"question": "\ud800", "answer": 1}', r"line 2: field `question` holds half a character, \\ud800"),
        (r'{"question": "?", "answer": "\udfff 1"}', "line 2: field `answer` holds half a character"),
        ('{"question": "?", "answer": 1, "answer": 2}', "line 2: the key 'answer' stands twice"),
        ('{"question": "?", "answer": NaN}', "line 2: not JSON: NaN is no number there"),
        ('{"question": "?", "answer": 1e999}', "line 2: field `answer` holds a number that is too large"),
        pytest.param('{"question": "?", "answer": ' + "9" * 5000 + "}", "line 2: .*5000 digits", id="digits"),
        ('["1 + 1", 2]', "line 2: expected a JSON object, found list"),
    ],
)
def test_errors_of_a_line_name_file_line_and_field(gsm8k: Path, line: str, message: str) -> None:
    (gsm8k / "train.jsonl").write_text(json.dumps(GSM8K[0]) + "\n" + line + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=f"source `gsm8k`: .*{message}"):
        load(jsonl(), base=gsm8k)


def test_bytes_that_are_no_utf8_are_named_with_their_line(gsm8k: Path) -> None:
    with (gsm8k / "train.jsonl").open("ab") as file:
        file.write('{"question": "Größe?", "answer": 1}\n'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"train\.jsonl, line 5: not UTF-8 \(byte 17 is 0xf6\)"):
        load(jsonl(), base=gsm8k)


def test_errors_of_a_file(gsm8k: Path) -> None:
    with pytest.raises(ValueError, match=r"`path` 'test\.jsonl' is no file .*counts from the recipe"):
        load(jsonl(path="test.jsonl"), base=gsm8k)
    (gsm8k / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match=r"empty\.jsonl holds no prompts"):
        load(jsonl(path="empty.jsonl"), base=gsm8k)
    with pytest.raises(ValueError, match="no training prompts are left"):
        load(jsonl(held_out=4), base=gsm8k)


def test_sources_need_names_of_their_own(gsm8k: Path) -> None:
    with pytest.raises(ValueError, match="source `gsm8k`: this name is used twice"):
        load(jsonl(), jsonl(), base=gsm8k)
