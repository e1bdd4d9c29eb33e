"""What `bvblend eval` leaves in a run's directory, and what the dashboard makes of it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from actors.rollout.evaluated import EvaluationDraw
from deploy.dashboard.app import create_app
from deploy.evaluation.result import EvaluatedPrompt, EvaluationResult, read_result, write_result
from deploy.report.evaluation import draw_result
from deploy.rundir.evaluated import new_place
from deploy.rundir.layout import RunDirectory
from tests.made_evaluations import judged

pytestmark = pytest.mark.unit

HOW = EvaluationDraw(samples=4, temperature=1.0, top_p=1.0, top_k=0, max_tokens=9)
PROMPTS = tuple(
    EvaluatedPrompt(name, "sums", None, judged(*rewards))
    for name, rewards in (("a", (1.0, 0.0, 0.0, 1.0)), ("b", (0.0, 0.0, None, 1.0)))
)
RESULT = EvaluationResult("first, after\x1b[31m 20 steps", "held out prompts", HOW, PROMPTS, step=20)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(tmp_path / "runs", "first", "steps: 40\n")


@pytest.fixture
def client(run: RunDirectory) -> Iterator[TestClient]:
    with TestClient(create_app(run.path.parent)) as client:
        yield client


def evaluated(run: RunDirectory, of: str = "held_out") -> Path:
    place = new_place(run, of)
    assert place is not None
    write_result(RESULT, place)
    return place


def test_evaluations_of_a_run_are_listed_newest_first_with_their_files(run: RunDirectory, client: TestClient) -> None:
    name = {"name": run.path.name}
    assert client.get("/api/evaluated", params=name).json() == {"evaluated": []}
    one, two = evaluated(run), evaluated(run, "../bench 1")
    assert one.parent == two.parent == run.path / "evaluated" and two.name.endswith("-___bench_1.json")
    os.utime(one, (10, 10))
    draw_result(RESULT, one.with_suffix(".png"))
    (run.evaluated / "other.json").write_text("{}")
    (run.evaluated / "link.json").symlink_to(one)
    newest, oldest = client.get("/api/evaluated", params=name).json()["evaluated"]
    assert (newest["file"], oldest["file"]) == (two.name, one.name)
    assert (newest["picture"], oldest["picture"]) == (None, one.with_suffix(".png").name)
    assert oldest["step"] == 20 and "\x1b" not in oldest["policy"] and oldest["unscored"] == 1 and oldest["at"] == 10
    measured = RESULT.measures["pass@1"]
    found = oldest["measures"]["pass@1"]
    assert (found["mean"], found["exact_low"], found["exact_high"]) == (
        measured.mean,
        measured.exact_low,
        measured.exact_high,
    )
    whole = client.get("/api/evaluated/file", params=name | {"file": one.name})
    assert whole.content == one.read_bytes() and whole.headers["content-type"] == "application/json"
    picture = client.get("/evaluated/picture", params=name | {"file": oldest["picture"]})
    assert picture.content.startswith(b"\x89PNG") and picture.headers["content-type"] == "image/png"


@pytest.mark.parametrize("file", ["link.json", "../config.yaml", "..", "nothing.json", "one.json/../one.json", "a.png"])
def test_nothing_else_is_served(file: str, run: RunDirectory, client: TestClient) -> None:
    one = evaluated(run)
    (run.evaluated / "link.json").symlink_to(one)
    (run.evaluated / "a.png").symlink_to(run.config)
    for path in ("/api/evaluated/file", "/evaluated/picture"):
        assert client.get(path, params={"name": run.path.name, "file": file}).status_code == 404


def test_files_are_shown_to_whoever_has_the_token(run: RunDirectory) -> None:
    file = {"name": run.path.name, "file": evaluated(run).name}
    with TestClient(create_app(run.path.parent, token="t" * 20)) as client:
        for path in ("/api/evaluated", "/api/evaluated/file", "/evaluated/picture"):
            assert client.get(path, params=file).status_code == 401


def test_a_second_evaluation_in_the_same_second_has_a_place_of_its_own(run: RunDirectory) -> None:
    places = [evaluated(run) for _ in range(3)]
    assert len(set(places)) == 3
    assert all(read_result(place) == RESULT for place in places)
