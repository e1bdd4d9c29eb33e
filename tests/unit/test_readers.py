"""The same rows as JSON lines, CSV, parquet and a Hugging Face dataset."""

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from actors.prompts.options import FileSource, PromptConfig, Source
from actors.prompts.pool import PromptPool
from actors.prompts.sources import load_prompts
from benchmarks.reading import write_csv, write_jsonl, write_parquet
from deploy.config.recipe import load_recipe
from tests.conftest import ROOT

pytestmark = pytest.mark.unit

ROWS: list[dict[str, Any]] = [
    {"question": "Tom has 3 boxes of {4} eggs.\nHow many eggs?", "answer": "3*4\n#### 12", "level": 'a, "b"'},
    {"question": "Wie viele Räder hat ein Fahrrad?", "answer": "#### 2", "level": "easy"},
    {"question": "How many legs have two cats?", "answer": "8", "level": "easy"},
]


def write_dataset(rows: list[dict[str, Any]], path: Path) -> None:
    from datasets import Dataset, DatasetDict

    DatasetDict({"train": Dataset.from_list(rows)}).save_to_disk(path)


def write_data_files(rows: list[dict[str, Any]], path: Path) -> None:
    path.mkdir()
    write_parquet(rows, path / "train-00000-of-00001.parquet")


WRITERS: dict[str, tuple[str, Callable[[list[dict[str, Any]], Path], None]]] = {
    "jsonl": ("jsonl", write_jsonl),
    "csv": ("csv", write_csv),
    "parquet": ("parquet", write_parquet),
    "saved dataset": ("dataset", write_dataset),
    "data files": ("dataset", write_data_files),
}
ROW_2 = {
    "jsonl": "data, line 2",
    "csv": "data, line 5",  # cells of the first row hold line breaks
    "parquet": "data, row 2",
    "saved dataset": r"data, train[1]",
    "data files": r"data, train[1]",
}


@pytest.fixture(autouse=True)
def no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def source(**settings: object) -> FileSource:
    made: FileSource = TypeAdapter(Source).validate_python({"name": "asked", "path": "data", **settings})
    return made


def load(base: Path, **settings: object) -> PromptPool:
    return load_prompts(PromptConfig(sources=(source(**settings),)), base)


@pytest.mark.parametrize("how", WRITERS)
def test_every_reader_gives_the_same_prompts_and_every_column(tmp_path: Path, how: str) -> None:
    kind, write = WRITERS[how]
    write_jsonl(ROWS, tmp_path / "lines")
    write(ROWS, tmp_path / "data")
    pool = load(tmp_path, kind=kind, held_out=1)
    assert pool == load(tmp_path, kind="jsonl", path="lines", held_out=1)
    prompts = {prompt.question: prompt for prompt in (*pool.train, *pool.held_out)}
    assert [prompts[row["question"]].row for row in ROWS] == ROWS
    assert [prompts[row["question"]].answer for row in ROWS] == ["12", "2", "8"]
    assert [prompts[row["question"]].difficulty for row in ROWS] == [row["level"] for row in ROWS]


@pytest.mark.parametrize("how", WRITERS)
@pytest.mark.parametrize(("column", "value", "why"), [("question", " ", "field `question` must be"), ("answer", "two", "not one number")])  # fmt: skip
def test_a_bad_row_is_named_by_its_place_or_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str, column: str, value: str, why: str
) -> None:
    kind, write = WRITERS[how]
    write([ROWS[0], {**ROWS[1], column: value}, ROWS[2]], tmp_path / "data")
    with pytest.raises(ValueError, match=f"source `asked`: .*{re.escape(ROW_2[how])}: .*{why}"):
        load(tmp_path, kind=kind)
    with caplog.at_level(logging.WARNING):
        pool = load(tmp_path, kind=kind, bad_rows="skip")
    assert [prompt.answer for prompt in pool.train] == ["12", "8"]
    assert "source `asked`: 1 rows are left out; " in caplog.text and ROW_2[how] in caplog.text


def test_lines_that_are_no_json_are_left_out_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = [json.dumps(ROWS[0]).encode(), b"{", b'"\xff"', b'{"question": "a", "answer": 1, "answer": 2}']
    (tmp_path / "data").write_bytes(b"\n".join(lines))
    assert len(load(tmp_path, kind="jsonl", bad_rows="skip").train) == 1
    assert "3 rows are left out; " in caplog.text and "line 2: not JSON" in caplog.text
    (tmp_path / "data").write_bytes(b"{\n{\n")
    with pytest.raises(ValueError, match=r"source `asked`: .*data holds no prompts"):
        load(tmp_path, kind="jsonl", bad_rows="skip")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"question,answer\na,1,2\n", "data, line 2: 3 cells, but the first row names 2 columns"),
        (b"question,answer\na,1\n\nb\xe4,1\n", "data, line 4: column `question` is not UTF-8"),
        (b"question,answer,answer\na,1,2\n", "data, line 1: two columns are called 'answer'"),
        (b'question,answer\na,1\n"b" c,1\n', "data, line 3: not CSV: "),
        (b'question,answer\na,1\n"b,1\n', "data, line 3: a quote opens and closes nowhere"),
        (b"questions,answer\na,1\n", r"no field `question` .*did you mean questions\?"),
        (b"question;answer\na;1\n", "no field `question`"),
        (b"", "data holds no prompts"),
    ],
)
def test_errors_of_a_csv_file(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "data").write_bytes(content)
    with pytest.raises(ValueError, match=f"source `asked`: .*{message}"):
        load(tmp_path, kind="csv")


def test_a_quote_that_never_closes_is_no_row_that_could_be_left_out(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b'question,answer\na,1\n"b,1\nc,1\nd,1\n')
    with pytest.raises(ValueError, match=r"data, line 3: a quote opens and closes nowhere; close it"):
        load(tmp_path, kind="csv", bad_rows="skip")


def test_a_csv_file_may_have_its_own_delimiter_a_mark_and_long_cells(tmp_path: Path) -> None:
    text = "\ufeffquestion\tanswer\ttests\r\nWhat?\t3\t" + "x" * 200_000 + "\r\n"
    (tmp_path / "data").write_text(text, encoding="utf-8", newline="")
    (prompt,) = load(tmp_path, kind="csv", delimiter="\t").train
    assert (prompt.question, prompt.answer, len(prompt.row["tests"])) == ("What?", "3", 200_000)


def test_fields_may_lie_within_a_column(tmp_path: Path) -> None:
    rows = [{"question": "1 + 1", "reward_model": {"ground_truth": "2", "style": "rule"}, "extra": [1, 2]}]
    write_parquet(rows, tmp_path / "data")
    (prompt,) = load(tmp_path, kind="parquet", answer_field="reward_model.ground_truth").train
    assert prompt.answer == "2" and prompt.row == rows[0]
    with pytest.raises(
        ValueError, match=r"row 1: no field `ground_truths` \(from `answer_field`\); did you mean ground_truth\?"
    ):
        load(tmp_path, kind="parquet", answer_field="reward_model.ground_truths")


def test_prompts_without_a_gold_answer(tmp_path: Path) -> None:
    write_jsonl([{"question": "Tell a joke."}], tmp_path / "data")
    (prompt,) = load(tmp_path, kind="jsonl", answer_field=None, verifier="mine:funny").train
    assert prompt.answer is None
    with pytest.raises(ValueError, match="line 1: the gold answer '' is not one number"):
        load(tmp_path, kind="jsonl", answer_field=None)


def test_errors_of_a_parquet_file(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match=r"source `asked`: .*data is no parquet file: "):
        load(tmp_path, kind="parquet")
    with pytest.raises(ValueError, match="`path` 'other' is no file"):
        load(tmp_path, kind="parquet", path="other")


def test_errors_of_a_dataset(tmp_path: Path) -> None:
    write_dataset(ROWS, tmp_path / "data")
    with pytest.raises(ValueError, match=r"source `asked`: it has no split `trian`; did you mean train\?"):
        load(tmp_path, kind="dataset", split="trian")
    with pytest.raises(
        ValueError, match=r"source `asked`: `path` 'somebody/nothing' cannot be read \(no directory .*from the hub\): "
    ):
        load(tmp_path, kind="dataset", path="somebody/nothing")
    import datasets

    datasets.Dataset.from_list(ROWS, split=datasets.NamedSplit("test")).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match="it was saved as the split `test`, and `split` is `train`"):
        load(tmp_path, kind="dataset", path="saved")
    assert len(load(tmp_path, kind="dataset", path="saved", split="test").train) == len(ROWS)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="source `asked`: `path` 'empty' cannot be read"):
        load(tmp_path, kind="dataset", path="empty")


def test_a_dataset_counts_from_the_recipe_where_it_is_there_and_is_a_name_elsewhere(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "name: x\npolicy: somebody/model\nsteps: 1\nprompts:\n  sources:\n"
        "  - {kind: dataset, name: a, path: data}\n  - {kind: dataset, name: b, path: openai/gsm8k, subset: main}\n"
        "  - {kind: dataset, name: c, path: ./gone}\n",
        encoding="utf-8",
    )
    (tmp_path / "data").mkdir()
    paths = [str(one.path) for one in load_recipe(recipe, ()).prompts.sources if one.kind == "dataset"]
    assert paths == [str(tmp_path / "data"), "openai/gsm8k", str(tmp_path / "gone")]


def test_the_docs_say_of_large_files_what_was_measured() -> None:
    found = json.loads((ROOT / "benchmarks" / "results" / "reading.json").read_text(encoding="utf-8"))
    seconds = [row["value"] for row in found["figures"] if row["unit"] == "s"]
    (peak,) = (row["value"] for row in found["figures"] if row["unit"] == "GiB")
    said = " ".join((ROOT / "docs" / "data.md").read_text(encoding="utf-8").split())
    assert f"{found['rows']:,} rows of 40 characters" in said
    assert (
        f"in {min(seconds):.0f} to {max(seconds):.0f} seconds on two cores, with {peak:.1f} GiB".replace(" 0.", " .")
        in said
    )
