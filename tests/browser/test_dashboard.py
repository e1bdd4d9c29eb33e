"""The dashboard in a real browser: live and finished runs, every view, both widths and themes, hostile text."""

import asyncio
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from actors.rollout.evaluated import EvaluationDraw
from deploy.evaluation.result import EvaluatedPrompt, EvaluationResult, write_result
from deploy.report.evaluation import draw_result
from deploy.rundir.evaluated import new_place
from tests.browser.conftest import WIDTHS, Pages, address_of, picture, shift, until, violations
from tests.conftest import ROOT, Command
from tests.made_evaluations import judged
from tests.made_runs import MadeRun, keep_tokens

pytestmark = pytest.mark.browser

WAIT_MS = 30_000
STEADY = 0.02
"""Layout shift that a page may have in all; 0.1 is what is called good."""
SCRIPT = "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'><svg onload='window.hacked = 1'>"
HOSTILE = {
    0: SCRIPT,
    1: "\x1b[31mred\x1b[0m \u202egnirts\u202c \x00\x07",
    2: "A" * 1_000_000,
    3: "](javascript:alert(1)) {{7*7}} ${7*7}",
}
VIEWS = (
    "#/",
    "#/run?name=first",
    "#/moments?name=first&cluster=1",
    "#/groups?name=first",
    "#/samples?name=first",
    "#/samples?name=first&step=30&beside=second",
    "#/samples?name=first&state=valued&colour=mismatch",
    "#/system?name=first",
    "#/compare?run=first&run=second",
)


async def two_runs(runs: Path) -> MadeRun:
    first = await MadeRun(runs, "first", steps=40, groups=12, texts=HOSTILE).start()
    await (await first.steps(40)).finish()
    leave_evaluation(first)
    keep_tokens(first.directory, 30, {first.group_ids[30 * 12]: [COLOURED, COLOURED[:-3]]})
    second = await MadeRun(runs, "second", seed=1, steps=40, groups=12, estimator="grpo").start()
    await (await second.steps(25)).finish()
    return first


def leave_evaluation(run: MadeRun) -> None:
    """What `bvblend eval` would, of a policy and prompts with hostile names."""
    how = EvaluationDraw(samples=4, temperature=1.0, top_p=1.0, top_k=0, max_tokens=9)
    prompts = tuple(EvaluatedPrompt(f"p{i}", "sums", None, judged(1.0, 0.0, 0.0, float(i % 2))) for i in range(6))
    result = EvaluationResult(SCRIPT, HOSTILE[1], how, prompts, step=20)
    place = new_place(run.directory, "held_out")
    assert place is not None
    write_result(result, place)
    draw_result(result, place.with_suffix(".png"))


COLOURED = [
    "First",
    ", 7",
    " times",
    " 6",
    " is",
    " 4",
    "2",
    ".",
    " <img src=x",
    " onerror=",
    "window.hacked=1>",
    "\n",
    " Answer",
    ": ",
    "42",
    "<|end|>",
]


@dataclass(frozen=True)
class Finished:
    """Two finished runs and the dashboard over them."""

    runs: Path
    first: MadeRun
    address: str


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Finished]:
    runs = tmp_path_factory.mktemp("runs")
    first = asyncio.run(two_runs(runs))
    command = Command(("dashboard", str(runs), "--port", "0"), tmp_path_factory.mktemp("log") / "output", ROOT)
    yield Finished(runs, first, address_of(command))
    command.end()


async def test_a_run_is_followed_from_before_its_first_step_to_its_end(
    browser: Any, bvblend: Callable[..., Command], tmp_path: Path
) -> None:
    run = MadeRun(tmp_path / "runs", "live", steps=5, groups=8)
    address = address_of(bvblend("dashboard", tmp_path / "runs", "--port", 0))
    pages = Pages(browser, address)
    page = await pages.open("#/run?name=live")
    await page.get_by_text("No step yet").wait_for()
    await run.start()
    for step in range(1, 6):
        await run.steps(1)
        await until(page, f"document.querySelector('.tile dd > span').textContent === '{step}'")
        if step == 2:
            await page.locator("[data-chart='Groups whose rewards differ'] canvas").wait_for(timeout=WAIT_MS)
            await page.evaluate("window.shifts.length = 0")
    label = (
        "document.querySelector(\"[data-chart='Groups whose rewards differ'] [role=img]\").getAttribute('aria-label')"
    )
    await until(page, f"{label}.includes('over 5 points')")
    assert await page.locator("#state").inner_text() == "running"
    await run.finish()
    await until(page, "document.getElementById('state').textContent === 'done'")
    assert await shift(page) < STEADY, "nothing moves while numbers change"
    # The other views follow too.
    await pages.go(page, "#/moments?name=live")
    await page.get_by_text("Moments after step 5.").wait_for()
    assert not pages.complaints


async def test_rewards_are_spread_over_the_steps(browser: Any, finished: Finished) -> None:
    pages = Pages(browser, finished.address)
    page = await pages.open("#/run?name=first")
    spread = page.locator(".reward-map svg")
    await spread.wait_for()
    label = await spread.get_attribute("aria-label")
    assert label.startswith("Rewards by step. At step 40: 1 ") and "no reward" not in label
    assert await spread.locator("rect").count() == 2 * 40
    assert not pages.complaints


async def test_what_eval_left_is_listed_with_its_files(browser: Any, finished: Finished) -> None:
    pages = Pages(browser, finished.address)
    page = await pages.open("#/run?name=first")
    card = page.get_by_role("region", name="Evaluated by bvblend eval")
    cells = card.locator("tbody tr").first.locator("td")
    assert [await cells.nth(at).inner_text() for at in (0, 1, 3, 4)] == ["20", SCRIPT, "pass@1", "0.375"]
    assert " to " in await cells.nth(5).inner_text()
    assert await card.locator("tbody tr").count() == 6
    # Not by a click: what Chromium makes of a bare picture wants a style of its own, which the policy of contents forbids.
    address = await card.get_by_role("link", name="picture").first.get_attribute("href")
    shown = "async (address) => { const image = new Image(); image.src = address; await image.decode(); return image.naturalWidth; }"
    assert await page.evaluate(shown, address) > 500
    assert not pages.complaints


async def test_a_cluster_and_a_group_are_opened(browser: Any, finished: Finished) -> None:
    pages = Pages(browser, finished.address)
    page = await pages.open()
    await page.get_by_role("link", name="first").click()
    await page.get_by_role("link", name="Moments").click()
    await page.locator(".bubble").nth(2).click()
    panel = page.get_by_role("region", name="One cluster")
    await panel.get_by_role("heading", name="Prompts in it").wait_for()
    await panel.locator("canvas").first.wait_for()
    await panel.locator("tbody a").first.click()
    await page.get_by_text("the same, bit for bit").wait_for(timeout=WAIT_MS)
    articles = page.locator(".completion")
    assert await articles.count() == 2
    stored, again = (
        await articles.first.locator("dd").nth(1).inner_text(),
        await articles.first.locator("dd").nth(2).inner_text(),
    )
    assert stored == again != "…"
    await page.go_back()
    await page.get_by_role("heading", name="Clusters and what is remembered").wait_for()
    assert not pages.complaints


async def test_groups_are_searched_and_paged(browser: Any, finished: Finished) -> None:
    pages = Pages(browser, finished.address)
    page = await pages.open("#/groups?name=first")
    await page.get_by_text("480 found").wait_for()
    await page.get_by_role("button", name="Older groups").click()
    await until(page, "document.querySelectorAll('tbody tr').length === 100")
    await page.get_by_label("Outcome").select_option("rescued")
    await until(page, "!document.querySelector('[role=status].soft').textContent.startsWith('480')")
    assert "outcome=rescued" in page.url
    assert {await chip.inner_text() for chip in await page.locator(".chip").all()} <= {"all solved", "none solved"}
    await page.get_by_label("Step").fill("7")
    await page.get_by_role("button", name="Search").click()
    await until(
        page, "[...document.querySelectorAll('tbody tr td:first-child')].every((cell) => cell.textContent === '7')"
    )
    await page.get_by_role("searchbox").fill("nothing like it")
    await page.get_by_role("button", name="Search").click()
    await page.get_by_text("No group fits").wait_for()
    assert not pages.complaints


async def test_two_runs_are_laid_over_each_other(browser: Any, finished: Finished) -> None:
    pages = Pages(browser, finished.address)
    page = await pages.open()
    overlay = page.get_by_role("button", name="Overlay")
    assert await overlay.is_disabled()
    for name in ("first", "second"):
        await page.get_by_label(f"Compare {name}").check()
    await overlay.click()
    chart = page.locator("[data-chart='pass@1 and reward']")
    await chart.locator("canvas").wait_for()
    assert [await key.inner_text() for key in await chart.locator(".legend > span").all()]
    label = await chart.locator("[role=img]").get_attribute("aria-label")
    assert "first from" in label and "second from" in label
    # Dragging across a chart looks closer, in all of them.
    box = await chart.locator(".u-over").bounding_box()
    await page.mouse.move(box["x"] + 0.25 * box["width"], box["y"] + 20)
    await page.mouse.down()
    await page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 20, steps=4)
    await page.mouse.up()
    label = "document.querySelector(\"[data-chart='pass@1 and reward'] [role=img]\").getAttribute('aria-label')"
    points = f"Number({label}.match(/over (\\d+) points/)[1])"
    await until(page, f"5 <= {points} && {points} <= 16")
    await page.get_by_role("button", name="All steps").click()
    await until(page, f"{points} === 40")
    assert not pages.complaints


async def test_samples_are_searched_and_stand_beside_those_of_another_step(browser: Any, finished: Finished) -> None:
    pages = Pages(browser, finished.address)
    page = await pages.open("#/samples?name=first")
    first_page = await page.locator(".sample").count()
    assert first_page >= 40
    await page.get_by_role("button", name="Older samples").click()
    await until(page, f"document.querySelectorAll('.sample').length >= {first_page + 40}")
    await page.locator(".of-low input").fill("1")
    await page.locator(".of-source select").select_option("gcd")
    await until(page, "document.querySelectorAll('.sample .reward').length > 0")
    await until(page, "[...document.querySelectorAll('.sample .reward')].every((one) => one.textContent === '1')")
    assert "source=gcd" in page.url and "low=1" in page.url
    await page.locator(".of-beside select").select_option("first")
    await until(page, "document.querySelectorAll('.sampled .pair').length > 0")
    assert not pages.complaints


async def test_tokens_are_coloured_by_their_values(browser: Any, finished: Finished) -> None:
    pages = Pages(browser, finished.address)
    page = await pages.open("#/samples?name=second&colour=logprob")
    await page.get_by_text("this run kept no values of tokens (transcripts.tokens_every)").wait_for()
    await page.get_by_text("No values of these tokens were kept").first.wait_for()
    await pages.go(page, "#/samples?name=first&colour=mismatch")
    await page.locator(".filters").get_by_text("Colour tokens by").wait_for()
    await page.locator("[role=status] a").click()
    await until(page, "document.querySelectorAll('.tokens').length === 2")
    box = page.locator(".tokens").first
    assert await box.inner_text() == "".join(COLOURED)
    assert await page.evaluate("window.hacked") is None and await page.locator("main script, main img").count() == 0
    for value, title in (("mismatch", "learner: likelier"), ("advantage", "pushed up"), ("logprob", "unlikely")):
        await page.locator(".of-colour select").select_option(value)
        await page.get_by_text(title).first.wait_for()
        heats = await page.locator(".tokens .low, .tokens .high").evaluate_all(
            "(all) => all.map((one) => getComputedStyle(one).backgroundColor)"
        )
        assert len(heats) >= 4 and "rgba(0, 0, 0, 0)" not in heats
    await box.focus()
    for _ in range(3):
        await page.keyboard.press("ArrowRight")
    readout = page.locator(".readout").first
    assert (await readout.inner_text()).startswith(f"3/{len(COLOURED)} {json.dumps(COLOURED[2])}")
    assert "log-prob −" in await readout.inner_text() and "mismatch" in await readout.inner_text()
    await box.locator("span").first.hover()
    assert (await readout.inner_text()).startswith("1/")
    assert await violations(page) == []
    assert not pages.complaints


async def test_hostile_completions_do_no_harm(browser: Any, finished: Finished) -> None:
    pages = Pages(browser, finished.address)
    page = await pages.open(f"#/group?name=first&id={finished.first.group_ids[0]}")
    texts = page.locator(".completion pre")
    assert await texts.first.inner_text() == SCRIPT
    assert await texts.nth(1).inner_text() == "␛[31mred␛[0m ⟨U+202E⟩gnirts⟨U+202C⟩ ␀␇"
    await pages.go(page, f"#/group?name=first&id={finished.first.group_ids[1]}")
    await page.get_by_text("2\u202f000 of 1\u202f000\u202f000 characters").wait_for()
    await page.get_by_role("button", name="Show more").first.click()
    await page.get_by_text("22\u202f000 of 1\u202f000\u202f000 characters").wait_for()
    assert len(await texts.first.inner_text()) == 22_000
    assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "it breaks, however long it is"
    assert await texts.nth(1).inner_text() == HOSTILE[3]
    await pages.go(page, "#/samples?name=first&text=window.hacked")
    assert await page.locator(".sample pre").first.inner_text() == SCRIPT
    assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert await page.evaluate("window.hacked") is None
    assert await page.locator("main script, main img").count() == 0
    # A name of a run, a cluster or a group in the address is hostile as well.
    for path in (
        "#/group?name=first&id=<img src=x onerror=alert(1)>",
        "#/run?name=<script>alert(1)</script>",
        "#/moments?name=../..",
        "#/<b>",
    ):
        await pages.go(page, path)
        assert await page.locator("main script, main img, main b").count() == 0
    refused = [said for said in pages.complaints if "404" not in said and "422" not in said]
    assert not refused


@pytest.mark.parametrize(("size", "theme"), list(itertools.product(WIDTHS, ("light", "dark"))))
async def test_every_view_at_every_width_and_theme(browser: Any, finished: Finished, size: str, theme: str) -> None:
    pages = Pages(browser, finished.address)
    page = await pages.open("#/", size, theme)
    background = await page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background[4:-1].split(","))) < 200) == (theme == "dark")
    for view in (*VIEWS, f"#/group?name=first&id={finished.first.group_ids[100]}"):
        await pages.go(page, view)
        if "#/group?" in view:
            await page.get_by_text("the same, bit for bit").wait_for(timeout=WAIT_MS)
        assert await violations(page) == [], view
        assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth"), (
            f"{view} is wider than the page"
        )
        await picture(page, f"{view[2:].partition('?')[0] or 'list'}-{size}-{theme}")
    assert not pages.complaints


async def test_the_theme_can_be_switched_and_is_remembered(browser: Any, finished: Finished) -> None:
    pages = Pages(browser, finished.address)
    page = await pages.open("#/run?name=first")
    await page.get_by_role("button", name="Switch between light and dark").click()
    assert await page.evaluate("getComputedStyle(document.documentElement).colorScheme") == "dark"
    assert await violations(page) == []
    await page.reload()
    await page.wait_for_selector("html[data-ready]")
    assert await page.evaluate("document.documentElement.dataset.theme") == "dark"
    assert not pages.complaints


async def test_everything_can_be_reached_with_the_keyboard(browser: Any, finished: Finished) -> None:
    pages = Pages(browser, finished.address)
    page = await pages.open("#/moments?name=first")
    await page.keyboard.press("Tab")
    assert await page.evaluate("document.activeElement.className") == "skip"
    await page.keyboard.press("Enter")
    assert await page.evaluate("document.activeElement.id") == "main" and "moments" in page.url
    await page.keyboard.press("Tab")
    first = await page.evaluate("document.activeElement.dataset.cluster")
    await page.keyboard.press("ArrowRight")
    second = await page.evaluate("document.activeElement.dataset.cluster")
    assert first is not None and second is not None and first != second
    await page.keyboard.press("Enter")
    await page.get_by_role("region", name="One cluster").get_by_role("heading", name=f"Cluster {second}").wait_for()
    assert await page.evaluate("document.activeElement.dataset.cluster") == second, "the focus stays where it was"
    assert not pages.complaints


async def test_behind_a_token_a_person_logs_in_by_a_form(
    browser: Any, bvblend: Callable[..., Command], finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = "a-token-for-this-test-only"
    monkeypatch.setenv("BVBLEND_DASHBOARD_TOKEN", token)
    command = bvblend("dashboard", finished.runs, "--port", 0)
    address = address_of(command)
    pages = Pages(browser, address)
    context = await browser.new_context(viewport={"width": 390, "height": 844})
    page = await context.new_page()
    await page.goto(address)
    assert page.url.endswith("/login")
    assert await violations(page) == []
    await page.get_by_label("Token").fill("wrong")
    await page.get_by_role("button", name="Log in").click()
    await page.get_by_text("That is not the token").wait_for()
    await page.get_by_label("Token").fill(token)
    await page.keyboard.press("Enter")
    await page.get_by_role("link", name="second").click()
    await page.locator("[data-chart] canvas").first.wait_for()
    assert token not in page.url and token not in command.output()
    assert all(token not in cookie["value"] for cookie in await context.cookies())
    await asyncio.wait_for(context.close(), 30)
    assert not pages.complaints
