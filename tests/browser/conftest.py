"""A real Chromium, and pages that complain about everything."""

import asyncio
import io
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.conftest import Command

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync")  # fmt: skip
START_S = 60.0
WIDTHS = {"desktop": (1280, 860), "phone": (390, 844)}
AXE = Path(__file__).parent / "vendor" / "axe.min.js"

_SHIFTS = """
window.shifts = [];
new PerformanceObserver((list) => {
  for (const one of list.getEntries()) if (!one.hadRecentInput) window.shifts.push(one.value);
}).observe({ type: "layout-shift", buffered: true });
"""


@pytest.fixture
async def browser() -> AsyncIterator[Any]:
    """Chromium, ended after the test; a test without one is skipped."""
    playwright = pytest.importorskip("playwright.async_api", reason="no Playwright: make install-dev")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    async with playwright.async_playwright() as driver:
        found = await driver.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield found
        await found.close()


class Pages:
    """Opens pages of one dashboard and keeps what their consoles said."""

    def __init__(self, browser: Any, address: str) -> None:
        self.address = address
        self.complaints: list[str] = []
        self._browser = browser

    async def open(self, path: str = "#/", size: str = "desktop", theme: str = "light") -> Any:
        """A page in a browser profile of its own, once its view is shown."""
        width, height = WIDTHS[size]
        context = await self._browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=theme, service_workers="block"
        )
        page = await context.new_page()
        page.on(
            "console", lambda said: self.complaints.append(said.text) if said.type in ("error", "warning") else None
        )
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("dialog", lambda dialog: self.complaints.append(f"a dialog: {dialog.message}"))
        page.on("request", lambda request: self._only_here(request.url))
        await page.add_init_script(_SHIFTS)
        await self.go(page, path)
        return page

    async def go(self, page: Any, path: str) -> None:
        await page.goto(f"{self.address}/{path}")
        await page.wait_for_selector("html[data-ready]", timeout=1000 * START_S)

    def _only_here(self, url: str) -> None:
        if not url.startswith((self.address, "data:", "blob:")):
            self.complaints.append(f"asked somebody else: {url}")


def address_of(dashboard: Command) -> str:
    """Where a `bvblend dashboard` that was just started can be reached."""
    dashboard.wait_for("http://", START_S)
    line = next(line for line in dashboard.output().splitlines() if "http://" in line)
    return line[line.index("http://") :].rstrip("/")


async def until(page: Any, condition: str, timeout_s: float = 30.0) -> None:
    """Wait until an expression holds in the page. Playwright's own waiting compiles strings there, and the policy forbids it."""
    async with asyncio.timeout(timeout_s):
        while not await page.evaluate(condition):  # noqa: ASYNC110 - a page has no event for any expression
            await asyncio.sleep(0.05)


async def violations(page: Any) -> list[str]:
    """What axe-core finds wrong with the page as it stands."""
    # Playwright's evaluate is not bound by the page's own content security policy.
    await page.evaluate(AXE.read_text())
    found = await page.evaluate(
        "axe.run(document, {runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'best-practice']})"
    )
    return [
        f"{one['id']} ({one['impact']}): {one['help']}: {node['html'][:160]} {node.get('failureSummary', '')[:200]}"
        for one in found["violations"]
        for node in one["nodes"][:3]
    ]


async def shift(page: Any) -> float:
    """Sum of all layout shifts that no input caused."""
    return float(await page.evaluate("window.shifts.reduce((sum, one) => sum + one, 0)"))


async def picture(page: Any, name: str) -> None:
    """Keep a screenshot where BVBLEND_SCREENSHOTS names a directory; the pictures in the docs come from here."""
    if directory := os.environ.get("BVBLEND_SCREENSHOTS"):
        await page.mouse.move(0, 0)
        shot = Image.open(io.BytesIO(await page.screenshot()))
        # A page has few colours: a palette makes the file a third as large.
        shot.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(
            Path(directory) / f"{name}.png", optimize=True
        )
