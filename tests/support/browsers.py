"""A real browser at the page, and what it complains of: nothing may be logged, refused or sent elsewhere."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, Response, sync_playwright

from tests.support.paths import ROOT

SCREENSHOTS = ROOT / "build" / "screenshots"
MISSING = "no Chromium here, so the page is not tested; `make browser` installs it (apt-get, as root)"
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 360, "height": 740}
LISTEN = (
    "addEventListener('securitypolicyviolation', (event) => console.error('CSP', event.effectiveDirective))"
)
VIEWS = ("made", "tokens", "contrast", "steer", "features", "server")


@contextmanager
def chromium() -> Iterator[Browser]:
    """Debian's headless Chromium; where there is none, the tests are skipped, but never in CI."""
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(MISSING)
    alone = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=alone)
        yield browser
        browser.close()


@contextmanager
def visit(browser: Browser, address: str, fragment: str = "", **choices: Any) -> Iterator[Page]:
    """The page, scored for the first time; whatever it complained of fails when the visit ends."""
    with opened(browser, address, fragment, **choices) as page:
        page.wait_for_selector("#chart .row")
        settle(page)
        yield page
        settle(page)


@contextmanager
def opened(browser: Browser, address: str, fragment: str = "", **choices: Any) -> Iterator[Page]:
    """The page as it opens, in a context of its own."""
    refused: list[int] = choices.pop("refused", [])
    told: list[str] | None = choices.pop("complaints", None)
    context = browser.new_context(viewport=choices.pop("viewport", DESKTOP), **choices)
    context.set_default_timeout(20_000)
    page = context.new_page()
    complaints = [] if told is None else told

    def heard(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and not _is_told(message, refused):
            complaints.append(message.text)

    def answered(response: Response) -> None:
        if response.status >= 400 and response.status not in refused:
            complaints.append(f"{response.status} {response.url}")

    page.on("console", heard)
    page.on("response", answered)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: complaints.append(f"dialog: {dialog.message}"))
    page.on("request", lambda one: None if one.url.startswith(address) else complaints.append(one.url))
    page.add_init_script(LISTEN)
    page.goto(f"{address}/{fragment}")
    try:
        yield page
        assert told is not None or not complaints, complaints
    finally:
        context.close()


def settle(page: Page) -> None:
    """Wait until nothing is on its way to the server, debounced things included."""
    page.wait_for_timeout(200)
    page.wait_for_selector("#results[aria-busy=false]")


def turn_to(page: Page, view: str) -> None:
    """Open one of the views."""
    page.click(f"#tab-{view}")
    settle(page)


def values(page: Page, selector: str) -> list[float]:
    """The exact numbers behind what is shown."""
    found = page.locator(f"{selector} data").evaluate_all("(all) => all.map((one) => Number(one.value))")
    return [float(one) for one in found]


def sent(request: Request) -> dict[str, Any]:
    """The body of a request that the page made."""
    body: dict[str, Any] = json.loads(request.post_data or "{}")
    return body


def keep(page: Page, name: str) -> None:
    """A screenshot for whoever looks at what CI saw."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    with suppress(OSError):
        page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)


def _is_told(message: ConsoleMessage, refused: list[int]) -> bool:
    """Chromium itself logs every answer above 399; those a test asks for are no complaint."""
    return any(f"status of {code}" in message.text for code in refused)
