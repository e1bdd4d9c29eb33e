"""The samples of a run: what a search finds against a plain look through the ledger, and what a person reads of them."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.color import ColorSystem

from deploy.cli import main as cli
from deploy.cli.console import console
from deploy.report.token_colours import coloured_text, heat, strongest
from deploy.rundir import samples as searching
from deploy.rundir import token_file
from deploy.rundir.groups import RunGroups, Wanted
from deploy.rundir.layout import RunDirectory
from deploy.rundir.samples import FoundSample, SampleFilter, find_samples, same_prompt
from tests.made_runs import MadeRun, keep_tokens

pytestmark = pytest.mark.unit

STEPS, GROUPS, SIZE = 12, 8, 4
HOSTILE = "\x1b[31mred\x1b[0m [bold]BOLD[/bold] <script>alert(1)</script>"

Say = Callable[..., str]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose last completion but five says something hostile."""
    import asyncio

    texts = {STEPS * GROUPS * SIZE - 5: HOSTILE}
    made = MadeRun(tmp_path_factory.mktemp("runs"), steps=STEPS, groups=GROUPS, size=SIZE, texts=texts)

    async def make() -> None:
        await (await (await made.start()).steps(STEPS)).finish()

    asyncio.run(make())
    return made.directory.path


@pytest.fixture
def said(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Say:
    """What `bvblend samples RUN …` prints."""

    def say(*arguments: object) -> str:
        monkeypatch.setenv("COLUMNS", "120")
        monkeypatch.setattr("sys.argv", ["bvblend", "samples", str(run), *map(str, arguments)])
        cli.main()
        return capsys.readouterr().out

    return say


def everything(run: Path) -> list[FoundSample]:
    return find_samples(RunGroups(run / "moments"), SampleFilter(), None, 2**30).samples


def keys(samples: list[FoundSample]) -> list[tuple[str, int]]:
    return [(sample.group.group.group_id, sample.index) for sample in samples]


@pytest.mark.parametrize(
    ("wanted", "fits"),
    [
        (SampleFilter(lowest=1.0), lambda one: one.reward >= 1.0),
        (SampleFilter(highest=0.0, shortest=3, longest=5), lambda one: one.reward <= 0.0 and 3 <= one.tokens <= 5),
        (SampleFilter(Wanted(step=3)), lambda one: one.group.step == 3),
        (SampleFilter(Wanted(source="gcd"), text="WHAT COMES"), lambda one: one.group.group.source == "gcd"),
        (SampleFilter(text="<SCRIPT>"), lambda one: one.completion == HOSTILE),
        (SampleFilter(failed=True), lambda one: one.reward is None),
        (SampleFilter(truncated=False), lambda one: True),
    ],
)
def test_a_search_finds_what_fits_and_nothing_else(
    run: Path, wanted: SampleFilter, fits: Callable[[FoundSample], bool]
) -> None:
    all_of_them = everything(run)
    assert len(all_of_them) == STEPS * GROUPS * SIZE
    found = find_samples(RunGroups(run / "moments"), wanted, None, 2**30)
    assert keys(found.samples) == keys([one for one in all_of_them if fits(one)]) and found.next is None


def test_pages_join_without_gaps(run: Path) -> None:
    groups, pages, before = RunGroups(run / "moments"), [], None
    while True:
        page = find_samples(groups, SampleFilter(lowest=1.0), before, 7)
        pages += page.samples
        before = page.next
        if before is None:
            break
    assert keys(pages) == keys(find_samples(groups, SampleFilter(lowest=1.0), None, 2**30).samples)


def test_a_search_that_takes_too_long_says_how_far_it_came_and_goes_on(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searching, "SEARCH_S", -1.0)
    monkeypatch.setattr(searching, "_CHUNK", 10)
    groups = RunGroups(run / "moments")
    page = find_samples(groups, SampleFilter(text="nobody says this"), None, 5)
    assert page.samples == [] and page.looked_at == 10 and page.next is not None
    assert find_samples(groups, SampleFilter(), page.next, 1).samples[0].group.group.sequence < page.next.sequence


def test_a_sample_has_what_became_of_it(run: Path) -> None:
    for one in everything(run)[:40]:
        assert one.reward is not None and one.advantage is not None
        assert one.parts == {"right": 0.75 * one.reward, "<b>form</b>": 0.25 * one.reward}
        assert one.texts is not None and "what comes out of number" in one.texts.prompt


def test_the_same_prompt_at_another_step(run: Path) -> None:
    groups = RunGroups(run / "moments")
    samples = everything(run)
    pairs = [(a, b) for a in samples for b in samples if a.group.step > b.group.step and a.index == b.index == 0]
    new, old = next((a, b) for a, b in pairs if a.group.group.prompt_id == b.group.group.prompt_id)
    (found,) = same_prompt(groups, [new], old.group.step)
    assert keys(found)[0][0].split(":")[0] == new.group.group.prompt_id and found[0].group.step == old.group.step
    assert same_prompt(groups, [new], step=10**6) == [[]]


def test_what_is_printed_is_text_and_says_how_to_go_on(said: Say, run: Path) -> None:
    told = said("--text", "script", "--limit", 1)
    assert "\x1b" not in told and "␛[31mred" in told and "[bold]BOLD[/bold] <script>alert(1)</script>" in told
    first = said("--limit", 4)
    place = first.split("--before ")[1].split()[0]
    assert f"step {STEPS} · " in first and "<b>form</b> " in first
    assert said("--limit", 4, "--before", place) != first
    assert "no group of this prompt" in said("--step", STEPS, "--beside-step", 10**6)
    assert said("--beside", run, "--step", 2, "--limit", 3).count("step 2 · ") >= 1


def test_tokens_are_coloured_and_without_colours_say_their_numbers(
    said: Say, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "the run kept no values of tokens" in said("--colour", "logprob")
    group = everything(run)[0].group
    pieces = ["What ", "<b>", "\x1b[31m", "[bold]", "é"]
    keep_tokens(RunDirectory(run), group.step, {group.group.group_id: [pieces, ["second"]]})
    (tokens, _) = token_file.tokens_of(run / "tokens", group.step, 0, group.group.group_id).values()
    told = said("--colour", "advantage")
    assert "What ‹+0.8›<b>␛[31m[bold]é" in told and "second‹+0.1›" in told and "\x1b" not in told
    assert f"{SIZE} samples in" in told and "blue: pushed up" in told
    nothing = " ".join(said("--colour", "advantage", "--text", "nobody says this").split())
    assert f"the newest that do are of step {group.step + 1}" in nothing
    tokens.learner[:] = [-9.0, -0.1, -0.2, -3.0, np.nan]
    assert coloured_text(tokens, "logprob", 5.0, 100, colours=False).plain == "What ‹-9›<b>␛[31m[bold]‹-3›é"
    shades = coloured_text(tokens, "logprob", 5.0, 100, colours=True)
    assert shades.plain == "What <b>␛[31m[bold]é" and str(shades.spans[0].style) == "#000000 on #f5a742"
    assert coloured_text(tokens, "logprob", 5.0, 6, colours=True).plain == "What <… 3 more tokens".replace("<…", "< …")
    monkeypatch.setattr(console, "_color_system", ColorSystem.TRUECOLOR)
    assert "\x1b[" in said("--colour", "mismatch")


def test_the_strongest_colour_is_that_of_the_group() -> None:
    column = np.zeros(3, dtype=np.float32)
    tokens = token_file.ReadTokens(["a", "b", "c"], column.astype(np.int32), column, column - 0.01, column - 2)
    assert strongest([tokens], "advantage") == 2.0 and strongest([tokens], "logprob") == 5.0
    assert strongest([tokens], "mismatch") == 0.05, "rounding does not glow"
    assert strongest([], "advantage") == 0.0 and not heat(column, "advantage", 0.0).any()


def test_json_lines_hold_the_whole(said: Say) -> None:
    lines = [json.loads(line) for line in said("--json", "--text", "script").splitlines()]
    assert [line["completion"] for line in lines] == [HOSTILE]
    assert lines[0]["step"] == STEPS - 1 and set(lines[0]["parts"]) == {"right", "<b>form</b>"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--reward", "much"), "--reward much: no range of numbers; write LOW:HIGH, LOW:, :HIGH or one number"),
        (("--before", "yesterday"), "--before yesterday: no place that an earlier page named"),
        (("--beside", "nowhere"), "nowhere"),
    ],
)
def test_what_cannot_be_asked_is_one_sentence(
    arguments: tuple[str, ...],
    words: str,
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.argv", ["bvblend", "samples", str(run), *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    told = capsys.readouterr().err
    assert ended.value.code == 2 and words in told and len(told.splitlines()) == 1
