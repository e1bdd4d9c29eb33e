"""A real training run, watched from its first step to its end; the pictures in the docs come from here."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.browser.conftest import Pages, address_of, picture, until, violations
from tests.conftest import Command, brief_evaluations, settings
from tests.made_runs import RECIPE

pytestmark = pytest.mark.browser

STEPS = 80 if "BVBLEND_SCREENSHOTS" in os.environ else 10
"""Pictures want a curve."""
START_S = 300.0
END_S = 600.0
SHOWN_STEP = "Number(document.querySelector('.tile dd > span').textContent.replace(/\\D/g, ''))"


async def test_training_is_watched_from_its_first_step_to_its_end(
    browser: Any, bvblend: Callable[..., Command], tmp_path: Path
) -> None:
    small = settings(steps=STEPS, runs_dir=tmp_path, rollout__engine="transformers", checkpoint__every=5)
    training = bvblend("train", RECIPE, *small, *brief_evaluations())
    await asyncio.to_thread(training.wait_for, "run directory", START_S)
    name = (tmp_path / "latest").resolve().name
    pages = Pages(browser, address_of(bvblend("dashboard", tmp_path, "--port", 0)))
    page = await pages.open(f"#/run?name={name}")
    await until(page, f"{SHOWN_STEP} >= 1", START_S)
    seen = {await page.evaluate(SHOWN_STEP)}
    async with asyncio.timeout(END_S):
        while training.process.poll() is None:
            seen.add(await page.evaluate(SHOWN_STEP))
            await asyncio.sleep(0.1)
    assert training.process.returncode == 0, training.output()
    await until(page, f"{SHOWN_STEP} === {STEPS}")
    await until(page, "document.getElementById('state').textContent === 'done'")
    assert len(seen) >= 4, "steps were shown as they came"
    await page.get_by_text("held out").last.wait_for()
    await picture(page, "dashboard_run")

    await pages.go(page, f"#/moments?name={name}")
    await page.get_by_text(f"Moments after step {STEPS}.").wait_for()
    await page.locator(".bubble").nth(1).click()
    await page.get_by_role("heading", name="Prompts in it").wait_for()
    assert await violations(page) == []
    await picture(page, "dashboard_moments")

    await pages.go(page, f"#/groups?name={name}&outcome=rescued")
    await page.locator("tbody a").first.click()
    await page.get_by_text("the same, bit for bit").wait_for(timeout=60_000)
    await picture(page, "dashboard_group")

    await pages.go(page, f"#/system?name={name}")
    await page.get_by_text("Restarts of actors").wait_for()
    assert await page.get_by_text("serves", exact=True).count() == 1
    assert not pages.complaints
