"""JSON of a run, in its files and in the dashboard's answers, is what the standard calls JSON: no NaN, no infinity."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from actors.rollout.evaluated import EvaluationDraw
from deploy.dashboard.app import create_app
from deploy.evaluation.result import EvaluatedPrompt, EvaluationResult, write_result
from deploy.report.summary import summarise
from deploy.rundir.evaluation import Evaluation
from tests.made_evaluations import judged
from tests.made_runs import MadeRun

pytestmark = pytest.mark.unit

STEPS = 12
SERIES = (
    "reward/mean",
    "signal/own",
    "learner/entropy",
    "learner/grad_norm",
    "advantage/history_weight",
    "phases/learn",
)
NOTHING = float("nan")


def strict(text: str | bytes) -> Any:
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> MadeRun:
    """A finished run without held-out prompts, some of whose numbers are means of nothing."""

    async def make() -> MadeRun:
        run = await MadeRun(tmp_path_factory.mktemp("runs"), "strict", steps=STEPS, groups=6, estimator="grpo").start()
        await (await run.steps(STEPS)).finish()
        return run

    run = asyncio.run(make())
    directory = run.directory
    row = directory.last_metrics(1)[0]
    directory.append_metrics(
        row | {"learner/grad_norm": NOTHING, "learner/entropy": float("inf"), "phases": {"learn": NOTHING}}
    )
    directory.append_evaluation(STEPS, "train", Evaluation(None, {}, 4, 8))
    summarise(directory, {}, {}, "grpo")
    directory.evaluated.mkdir()
    how = EvaluationDraw(samples=2, temperature=1.0, top_p=1.0, top_k=0, max_tokens=9)
    group = EvaluatedPrompt("p", "sums", None, judged(1.0, None))
    write_result(EvaluationResult("policy", "of", how, (group,)), directory.evaluated / "one.json")
    return run


def test_every_file_of_a_run(made: MadeRun) -> None:
    files = [path for path in made.directory.path.rglob("*") if path.suffix in (".json", ".jsonl")]
    assert {"metrics.jsonl", "evaluations.jsonl", "live.json", "summary.json"} <= {path.name for path in files}
    for path in files:
        for text in path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]:
            strict(text)


def questions(run: MadeRun) -> Iterator[tuple[str, dict[str, Any]]]:
    """One of everything that the page asks."""
    name = {"name": run.directory.path.name}
    group = name | {"id": run.group_ids[-1]}
    yield "runs", {}
    for path in ("run", "system", "clusters", "groups", "samples", "rewards", "evaluated"):
        yield path, name
    yield "series", name | {"series": SERIES}
    yield "compare", name | {"series": SERIES}
    yield "cluster", name | {"cluster": 0}
    yield "evaluated/file", name | {"file": "one.json"}
    yield "evaluated/file", name | {"file": "two.json"}
    yield "group", group
    yield "samples/prompt", name | {"prompt": run.group_ids[-1].split(":")[0]}
    yield "samples", name | {"state": "valued"}
    yield "samples/tokens", group | {"step": run.step - 1, "incarnation": 0}
    yield "group/recomputed", group | {"patient": True}
    yield "group/text", group | {"completion": 0}
    yield "run", {"name": "there is none"}
    yield "cluster", name | {"cluster": 10**6}
    yield "groups", name | {"outcome": "nonsense"}


def test_every_answer_of_the_dashboard(made: MadeRun) -> None:
    app = create_app(made.directory.path.parent)
    asked = set()
    with TestClient(app) as client:
        for path, values in questions(made):
            answer = client.get(f"/api/{path}", params=values)
            assert answer.status_code < 500, answer.text
            strict(answer.content)
            asked.add(f"/api/{path}")
    routes = app._app.routes  # type: ignore[attr-defined]
    # What events say is what `run` answers.
    assert asked | {"/api/events"} == {route.path for route in routes if route.path.startswith("/api/")}
