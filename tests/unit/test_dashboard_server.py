"""The dashboard's server: what it answers, to whom, and what it refuses."""

import asyncio
import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from deploy.config.recipe import ConfigError
from deploy.dashboard.access import COOKIE, session_of
from deploy.dashboard.answers import Answers
from deploy.dashboard.app import STATIC, create_app
from deploy.dashboard.events import changes
from deploy.dashboard.run_view import overview
from deploy.dashboard.serve import TOKEN_VARIABLE, access_for, is_loopback, listen
from deploy.rundir import token_file
from deploy.rundir.catalog import Catalog
from deploy.rundir.config_file import estimator_of
from deploy.rundir.layout import RunDirectory
from deploy.rundir.open_run import OpenRun
from tests.conftest import Command
from tests.made_runs import MadeRun, keep_tokens

pytestmark = pytest.mark.unit

TOKEN = "a-token-for-this-test-only"
HOSTILE = {0: "<script>alert(1)</script>", 1: "\x1b[31mred\x1b[0m\u202e", 2: "x" * 1_000_000}
ENDPOINTS = ("run", "system", "clusters", "groups", "rewards", "samples", "evaluated", "series?series=reward/mean")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run and one that a crash ended, whose resume went back."""
    runs_dir = tmp_path_factory.mktemp("runs")

    async def make() -> None:
        first = await MadeRun(runs_dir, "first", steps=30, groups=6, texts=HOSTILE).start()
        await (await first.steps(30)).finish()
        second = await MadeRun(runs_dir, "second", seed=1, steps=30, groups=6, estimator="grpo").start()
        await (await second.steps(5)).close()

    asyncio.run(make())
    (runs_dir / "latest").symlink_to("first")
    (runs_dir / "no run").mkdir()
    return runs_dir


@pytest.fixture(scope="module")
def client(runs: Path) -> Iterator[TestClient]:
    with TestClient(create_app(runs)) as client:
        yield client


def get(client: TestClient, path: str, **values: Any) -> Any:
    answer = client.get(f"/api/{path}", params=values)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_runs_are_listed_newest_first_and_links_are_not(client: TestClient) -> None:
    rows = get(client, "runs")["runs"]
    assert {row["name"] for row in rows} == {"first", "second"}
    first = next(row for row in rows if row["name"] == "first")
    assert first["steps"] == first["planned"] == 30 and first["state"] == "done" and first["estimator"] == "bv_blend"


def test_one_run_can_be_opened_by_itself(runs: Path) -> None:
    with TestClient(create_app(runs / "first")) as client:
        assert [row["name"] for row in get(client, "runs")["runs"]] == ["first"]
        assert get(client, "run", name="first")["steps"] == 30


def test_series_have_the_values_of_the_file(client: TestClient, runs: Path) -> None:
    rows = RunDirectory(runs / "first").read_metrics()
    found = get(client, "series", name="first", series=["reward/mean", "phases/learn"])
    assert found["steps"] == list(range(30))
    assert found["series"]["reward/mean"]["values"] == pytest.approx([row["reward/mean"] for row in rows], rel=1e-4)
    assert found["series"]["phases/learn"]["values"] == [0.3] * 30
    some = get(client, "series", name="first", series="reward/mean", first=10, last=19)
    assert some["steps"] == list(range(10, 20))
    few = get(client, "series", name="first", series="reward/mean", points=10)
    assert len(few["steps"]) == 10 and max(few["series"]["reward/mean"]["values"]) == pytest.approx(
        max(row["reward/mean"] for row in rows), rel=1e-4
    )


def test_two_runs_over_each_other(client: TestClient) -> None:
    first, second = get(client, "compare", name=["first", "second"], series=["signal/own"])
    assert first["run"]["estimator"] == "bv_blend" and second["run"]["estimator"] == "grpo"
    assert len(first["steps"]) == 30 and len(second["steps"]) == 5


def test_clusters_lie_on_a_map_with_their_moments(client: TestClient, runs: Path) -> None:
    found = get(client, "clusters", name="first")
    stats = json.loads((runs / "first" / "live.json").read_text())["moments"]["clusters"]
    assert len(found["clusters"]) == len(stats["mean"]) == 12 and found["step"] == 30
    for cluster in found["clusters"]:
        assert -1 <= cluster["x"] <= 1 and -1 <= cluster["y"] <= 1 and cluster["name"]
        assert cluster["mean"] == pytest.approx(stats["mean"][cluster["id"]], abs=1e-5)
    masses = [cluster["mass"] for cluster in found["clusters"]]
    assert masses == sorted(masses, reverse=True)


def test_one_cluster_closely(client: TestClient) -> None:
    cluster = get(client, "clusters", name="first")["clusters"][0]
    found = get(client, "cluster", name="first", cluster=cluster["id"])
    assert found["count"] == get(client, "groups", name="first", cluster=cluster["id"])["total"] > 0
    assert 1 <= len(found["exemplars"]) <= 5 and 1 <= len(found["groups"]) <= 10
    assert all(group["cluster"] == cluster["id"] for group in found["groups"])
    assert found["history"]["reward"]["steps"] == sorted(found["history"]["reward"]["steps"])
    assert client.get("/api/cluster", params={"name": "first", "cluster": 99}).status_code == 404


def test_pages_of_groups(client: TestClient) -> None:
    ids: list[str] = []
    before = None
    while True:
        page = get(client, "groups", name="first", **({"before": before} if before else {}))
        ids += [group["id"] for group in page["groups"]]
        assert page["total"] == 180
        if (before := page["next"]) is None:
            break
    assert len(ids) == len(set(ids)) == 180
    places = [int(group_id.split(":")[2]) for group_id in ids]
    assert places == sorted(places, reverse=True)


def test_tokens_have_their_values_where_they_were_kept(client: TestClient, runs: Path) -> None:
    directory = RunDirectory(runs / "first")
    groups = get(client, "samples", name="first", step=20)["groups"]
    assert not any(group["has_tokens"] for group in groups)
    kept = groups[1]
    where = {"name": "first", "id": kept["id"], "step": 20, "incarnation": kept["incarnation"]}
    assert get(client, "samples/tokens", **where) == {"samples": []}
    pieces = ["<b>", "\x1b[31m", "\u202e", *["x"] * 1500]
    keep_tokens(directory, 20, {kept["id"]: [pieces, ["yes"]]})
    first, second = get(client, "samples/tokens", **where)["samples"]
    assert [text for text, *_ in first["tokens"][:3]] == ["<b>", "␛[31m", "⟨U+202E⟩"]
    assert len(first["tokens"]) + first["more"] == 1503 and second["more"] == 0 and len(second["tokens"]) == 1
    assert all(isinstance(number, float) for number in second["tokens"][0][1:])
    found = get(client, "samples", name="first", state="valued")
    assert [group["id"] for group in found["groups"]] == [kept["id"]] and found["newest_tokens"] == 20
    assert found["groups"][0]["has_tokens"] and get(client, "samples/tokens", **where | {"incarnation": 1}) == {
        "samples": []
    }
    path = token_file.path_of(directory.tokens, 20)
    path.write_bytes(b"damaged")
    answer = client.get("/api/samples/tokens", params=where)
    assert answer.status_code == 409 and "step-000020.safetensors cannot be read" in answer.json()["problem"]
    path.unlink()


def test_samples_by_what_they_are_and_beside_those_of_the_same_prompt(client: TestClient) -> None:
    pages, before = [], None
    while True:
        page = get(client, "samples", name="first", low=1, **({"before": before} if before else {}))
        pages += page["groups"]
        before = page["next"]
        if before is None:
            break
    samples = [sample for group in pages for sample in group["samples"]]
    assert len(pages) > 40 and {sample["reward"] for sample in samples} == {1.0}
    assert samples[0]["parts"] == {"right": 0.75, "<b>form</b>": 0.25} and samples[0]["advantage"] is not None
    one = pages[0]
    assert "what comes out of number" in one["prompt"]["text"]
    same = get(client, "samples/prompt", name="first", prompt=one["prompt_id"], step=one["step"])["group"]
    assert same["id"] == one["id"] and len(same["samples"]) == 2
    assert get(client, "samples/prompt", name="second", prompt="nobody's") == {"group": None}
    assert get(client, "samples", name="first", text="nobody says this")["groups"] == []
    assert client.get("/api/samples", params={"name": "first", "state": "good"}).status_code == 422
    assert client.get("/api/samples", params={"name": "first", "low": "nan"}).status_code == 422


def test_groups_by_what_they_are(client: TestClient) -> None:
    for outcome in ("mixed", "solved", "unsolved"):
        page = get(client, "groups", name="first", outcome=outcome)
        assert page["groups"] and {group["outcome"] for group in page["groups"]} == {outcome}
    rescued = get(client, "groups", name="first", outcome="rescued")["groups"]
    assert rescued and all(len(set(group["rewards"])) == 1 and any(group["advantages"]) for group in rescued)
    assert get(client, "groups", name="second", outcome="rescued")["total"] == 0, "GRPO rescues nothing from itself"
    one = rescued[0]
    for part in (one["id"], one["id"][:6], one["id"].partition(":")[0]):
        found = get(client, "groups", name="first", id=part)["groups"]
        assert one["id"] in [group["id"] for group in found] and all(group["id"].startswith(part) for group in found)
    assert get(client, "groups", name="first", id="zzzzzzzzzzzz")["groups"] == []
    assert get(client, "groups", name="first", source="no such source")["total"] == 0
    assert client.get("/api/groups", params={"name": "first", "outcome": "good"}).status_code == 422
    assert client.get("/api/groups", params={"name": "first", "before": "1.2"}).status_code == 422


PARTS = {"right": 0.75, "<b>form</b>": 0.25}


def test_a_group_in_full_with_its_advantages_computed_again(client: TestClient) -> None:
    group = get(client, "groups", name="first", step=20)["groups"][0]
    full = get(client, "group", name="first", id=group["id"])
    assert [completion["reward"] for completion in full["completions"]] == group["rewards"]
    assert full["completions"][0]["parts"] == {name: share * group["rewards"][0] for name, share in PARTS.items()}
    assert full["prompt"]["text"] and full["baseline"] is not None and not full["superseded"]
    again = get(client, "group/recomputed", name="first", id=group["id"])
    assert again["state"] == "done" and again["same"]
    assert again["recomputed"]["advantages"] == group["advantages"]
    assert again["recomputed"]["baseline"] == full["baseline"] and again["past"]["seen"]
    missing = client.get("/api/group", params={"name": "first", "id": "0:0:0:0"})
    assert missing.status_code == 404 and missing.json()["problem"] == "no group 0:0:0:0 in the ledger of first"


def test_hostile_texts_arrive_as_text_and_in_parts(client: TestClient) -> None:
    pages = [get(client, "groups", name="first", step=0)["groups"]]
    groups = {int(group["id"].split(":")[2]): group["id"] for group in pages[0]}
    first = get(client, "group", name="first", id=groups[0])["completions"]
    assert first[0]["text"]["text"] == HOSTILE[0]
    assert first[1]["text"]["text"] == "␛[31mred␛[0m⟨U+202E⟩"
    endless = get(client, "group", name="first", id=groups[1])["completions"][0]["text"]
    assert len(endless["text"]) == endless["next"] == 2000 and endless["chars"] == 1_000_000
    more = get(client, "group/text", name="first", id=groups[1], completion=0, offset=2000)
    assert len(more["text"]) == 20_000 and more["next"] == 22_000
    assert client.get("/api/group/text", params={"name": "first", "id": groups[1], "completion": 9}).status_code == 404


async def test_steps_past_a_checkpoint_that_a_resume_left_are_marked(tmp_path: Path) -> None:
    run = await MadeRun(tmp_path, "resumed", steps=30, groups=4).start()
    await run.steps(4)
    checkpoint = await run.snapshot(tmp_path / "checkpoint")
    await run.steps(3)
    await run.close()
    await (await run.start(1, checkpoint, step=4)).steps(2)
    await run.close()
    with TestClient(create_app(tmp_path)) as client:
        starts = get(client, "system", name="resumed")["incarnations"]
        assert [(start["number"], start["after_step"], start["last_step"]) for start in starts] == [
            (0, -1, 6),
            (1, 3, 5),
        ]
        groups = get(client, "groups", name="resumed")["groups"]
        assert len(groups) == 36
        marked = {
            (group["incarnation"], group["step"])
            for group in groups
            if get(client, "group", name="resumed", id=group["id"], incarnation=group["incarnation"])["superseded"]
        }
        assert marked == {(0, 4), (0, 5), (0, 6)}
        assert len(get(client, "series", name="resumed", series="reward/mean")["steps"]) == 6


def test_alarms_and_evaluations_are_told_newest_first_and_last(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("steps: 20\n")
    alarm = {"kind": "reward fell", "cluster": 3, "expected": 0.5, "found": 0.1}
    (run / "alarms.jsonl").write_text(
        "".join(json.dumps({"step": step, **alarm}) + "\n" for step in range(9)) + "{half"
    )
    evaluation = {"step": 0, "split": "train", "pass_at_1": 0.25, "sources": {}, "prompts": 8, "errors": 0}
    (run / "evaluations.jsonl").write_text(
        json.dumps(evaluation) + "\n" + json.dumps(evaluation | {"step": 10, "pass_at_1": None}) + "\n"
    )
    with TestClient(create_app(tmp_path)) as client:
        found = get(client, "run", name="run")
    assert found["alarm_count"] == 9 and [row["step"] for row in found["alarms"]] == [8, 7, 6, 5, 4, 3]
    assert [row["pass_at_1"] for row in found["evaluations"]] == [0.25]


@pytest.mark.parametrize(
    ("summary", "told"),
    [
        ({"advice": {"reasons": ["History helps: \u202e+20 %.", "Clusters:\nnone."]}}, ["History helps: ⟨U+202E⟩+20 %.", "Clusters:␊none."]),
        ({"advice": None}, []),
        ({"advice": {"reasons": [1]}}, []),
        ({}, []),
    ],
)  # fmt: skip
def test_a_finished_run_says_what_its_rewards_advise(tmp_path: Path, summary: dict[str, Any], told: list[str]) -> None:
    run = RunDirectory.create(tmp_path, "advised", "name: advised")
    run.summary.write_text(json.dumps(summary))
    assert overview(OpenRun(run))["advice"] == told


async def test_a_page_is_told_what_is_new(tmp_path: Path) -> None:
    run = await MadeRun(tmp_path, steps=30, groups=4).start()
    await run.steps(2)
    opened = OpenRun(run.directory)
    events = changes(opened, Answers(4, 3.0))
    first = json.loads((await anext(events)).data)
    assert first["steps"] == 2 and opened.followers == 1
    await run.steps(1)
    while json.loads((await asyncio.wait_for(anext(events), 30)).data)["steps"] < 3:
        continue
    await events.aclose()
    assert opened.followers == 0
    await run.close()


@pytest.mark.parametrize("path", ["/", "/api/runs", "/api/run?name=first", "/static/main.js", "/nothing", "/api/run"])
def test_every_answer_carries_the_headers_that_protect_it(client: TestClient, path: str) -> None:
    headers = client.get(path).headers
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'" and policy["script-src"] == "'self'" and policy["style-src"] == "'self'"
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff" and headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"
    assert ("no-store" in headers.get("cache-control", "")) == (not path.startswith("/static/"))


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_nothing_can_be_changed(client: TestClient, method: str) -> None:
    assert client.request(method, "/api/runs").status_code == 405


@pytest.mark.parametrize(
    "name", ["../first", "..", ".", "/etc", "first/../first", "no run", "latest", "", "first\0", "%2e%2e", "a" * 300]
)
def test_a_name_is_never_a_path(client: TestClient, name: str) -> None:
    for endpoint in ENDPOINTS:
        assert client.get(f"/api/{endpoint}", params={"name": name}).status_code in (404, 422), endpoint


@pytest.mark.parametrize(
    "path", ["/static/../app.py", "/static/%2e%2e/app.py", "/static/..%2fapp.py", "/static//etc/passwd", "/static/"]
)
def test_nothing_but_the_page_is_served_as_a_file(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404


def test_the_page_asks_nobody_else_and_has_no_inline_code() -> None:
    for page in ("index.html", "login.html"):
        text = (STATIC / page).read_text()
        assert "style=" not in text and "onclick" not in text and "<script>" not in text and "http" not in text
    for script in STATIC.glob("*.js"):
        text = script.read_text()
        for forbidden in (
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "new Function",
            "https://",
        ):
            assert forbidden not in text, f"{script.name}: {forbidden}"


def test_a_server_on_loopback_answers_to_its_own_names_only(runs: Path) -> None:
    app = create_app(runs, hosts=access_for("127.0.0.1").hosts)
    for host, status in (
        ("127.0.0.1:8420", 200),
        ("localhost", 200),
        ("[::1]:80", 200),
        ("evil.example", 421),
        ("", 421),
    ):
        with TestClient(app, base_url="http://127.0.0.1") as client:
            assert client.get("/api/runs", headers={"host": host}).status_code == status, host


def test_with_a_token_nothing_is_told_without_it(runs: Path) -> None:
    with TestClient(create_app(runs, TOKEN), follow_redirects=False) as client:
        for endpoint in ENDPOINTS:
            assert client.get(f"/api/{endpoint}", params={"name": "first"}).status_code == 401
        assert client.get("/static/main.js").status_code == 401
        assert client.get(f"/api/runs?token={TOKEN}").status_code == 401, "never in an address"
        assert client.get("/").headers["location"] == "/login"
        for wrong in ("Bearer", "Bearer x", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer ä"):
            assert client.get("/api/runs", headers={"authorization": wrong.encode()}).status_code == 401
        assert client.get("/api/runs", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200


def test_logging_in_gives_a_cookie_that_is_not_the_token(runs: Path) -> None:
    with TestClient(create_app(runs, TOKEN), follow_redirects=False) as client:
        assert client.get("/login").status_code == 200
        assert client.post("/login", data={"token": "wrong"}).status_code == 403
        assert client.post("/login", content=b"x" * 100_000).status_code == 403
        answer = client.post("/login", data={"token": TOKEN})
        cookie = answer.headers["set-cookie"]
        assert (
            answer.status_code == 303
            and TOKEN not in cookie
            and "HttpOnly" in cookie
            and "samesite=strict" in cookie.lower()
        )
        assert client.get("/api/runs").status_code == 200
        client.cookies.clear()
        assert (
            client.get("/api/runs", headers={"cookie": f"{COOKIE}={session_of('another token, as long')}"}).status_code
            == 401
        )


def test_other_addresses_than_loopback_get_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    for host in ("127.0.0.1", "localhost", "::1", "127.8.8.8"):
        assert is_loopback(host) and access_for(host).token is None
    for host in ("0.0.0.0", "::", "192.168.0.7", "example.org", "localhost.example.org"):
        access = access_for(host)
        assert not is_loopback(host) and access.new_token and access.token is not None and len(access.token) >= 32
    monkeypatch.setenv(TOKEN_VARIABLE, "short")
    with pytest.raises(ConfigError, match="could be guessed"):
        access_for("0.0.0.0")
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    assert access_for("0.0.0.0").token == access_for("127.0.0.1").token == TOKEN


def test_bad_addresses_and_directories_are_named(tmp_path: Path) -> None:
    taken = listen("127.0.0.1", 0)
    taken.listen()
    with pytest.raises(ConfigError, match="--port 0 takes a free one"):
        listen("127.0.0.1", taken.getsockname()[1])
    taken.close()
    with pytest.raises(ConfigError, match="no such directory"):
        Catalog(tmp_path / "nowhere")


async def test_a_run_whose_files_are_damaged_shows_what_can_be_shown(tmp_path: Path) -> None:
    run = await (await MadeRun(tmp_path, "damaged", groups=4).start()).steps(1)
    await run.close()
    for path in run.directory.moments.glob("*-*"):
        path.chmod(0o644)
        path.write_bytes(b"what is this" * 100)
    run.directory.config.write_text("steps: 2\nunknown_key: 1\nmoments: {estimator: bv_blend}\n")
    with TestClient(create_app(tmp_path)) as client:
        assert get(client, "run", name="damaged")["steps"] == 1
        for endpoint in ("groups", "clusters"):
            refused = client.get(f"/api/{endpoint}", params={"name": "damaged"})
            assert refused.status_code == 409 and refused.json()["problem"]


def test_a_run_that_has_written_nothing_yet(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "config.yaml").write_text("[broken")
    with TestClient(create_app(tmp_path)) as client:
        assert get(client, "run", name="new")["steps"] == 0
        assert get(client, "clusters", name="new")["clusters"] == []
        assert get(client, "run", name="new")["phases"] == {}
        assert client.get("/api/groups", params={"name": "new"}).status_code == 404


def test_the_runs_that_were_looked_at_longest_ago_are_let_go(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.rundir.catalog.MEMORY_BYTES", 1)
    catalog = Catalog(runs)
    first = catalog.open("first")
    first.catch_up(60.0)
    catalog.open("second").catch_up(60.0)
    assert catalog.open("second") is catalog.open("second")
    assert catalog.open("first") is not first


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_the_command_ends_when_it_is_asked_to_though_a_page_follows(
    bvblend: Callable[..., Command], runs: Path, by: signal.Signals
) -> None:
    command = bvblend("dashboard", runs, "--port", 0)
    command.wait_for("http://", 60)
    address = next(line for line in command.output().splitlines() if "http://" in line).split()[-1]
    with httpx.stream("GET", f"{address}api/events", params={"name": "first"}, timeout=30) as events:
        assert next(line for line in events.iter_lines() if line.startswith("data:"))
        command.process.send_signal(by)
        assert command.wait(30) == 0, command.output()
    assert "Traceback" not in command.output()


def test_the_command_refuses_what_cannot_work(bvblend: Callable[..., Command], tmp_path: Path) -> None:
    command = bvblend("dashboard", tmp_path / "nowhere")
    assert command.wait(60) == 2 and "no such directory" in command.output()


@pytest.mark.parametrize(
    ("moments", "name"),
    [
        ({"estimator": {"kind": "bv_blend", "variant": "eb"}}, "bv_blend:eb"),
        ({"estimator": {"kind": "bv_blend", "variant": "safe"}}, "bv_blend"),
        ({"estimator": {"kind": "grpo"}}, "grpo"),
        ({"estimator": "bv_blend"}, "bv_blend"),
        ("not a section", ""),
    ],
)
def test_a_run_is_listed_under_the_name_that_its_estimator_goes_by(moments: object, name: str) -> None:
    assert estimator_of({"moments": moments}) == name
