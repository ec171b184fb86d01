"""A browser for the page's tests; console errors, error statuses and requests to other hosts fail them."""

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
NO_CHROMIUM = (
    "Chromium is not installed, so the page is not tested; `make browser` installs it (apt-get, as root)"
)
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 360, "height": 740}
REPORT_CSP_VIOLATIONS = (
    "addEventListener('securitypolicyviolation', (event) => console.error('CSP', event.effectiveDirective))"
)
VIEWS = ("breakdown", "tokens", "contrast", "steer", "features", "server")


@contextmanager
def launch_chromium() -> Iterator[Browser]:
    """Headless Chromium. Without one the tests are skipped, except in CI, where they fail."""
    executable = shutil.which("chromium") or shutil.which("google-chrome")
    if executable is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(NO_CHROMIUM)
    root_options = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=root_options)
        yield browser
        browser.close()


@contextmanager
def open_scored_page(browser: Browser, address: str, fragment: str = "", **options: Any) -> Iterator[Page]:
    """Open the page and wait for its first scores; complaints of the page fail the test at the end."""
    with open_page(browser, address, fragment, **options) as page:
        page.wait_for_selector("#chart .row")
        wait_until_idle(page)
        yield page
        wait_until_idle(page)


@contextmanager
def open_page(browser: Browser, address: str, fragment: str = "", **options: Any) -> Iterator[Page]:
    """Open the page in a browser context of its own, without waiting for scores.

    Options: `refused`, the error statuses that the test expects; `complaints`, a list that collects
    complaints instead of failing the test; everything else goes to `new_context`.
    """
    refused: list[int] = options.pop("refused", [])
    collected: list[str] | None = options.pop("complaints", None)
    context = browser.new_context(viewport=options.pop("viewport", DESKTOP), **options)
    context.set_default_timeout(20_000)
    page = context.new_page()
    complaints = [] if collected is None else collected
    _collect_complaints(page, address, refused, complaints)
    page.add_init_script(REPORT_CSP_VIOLATIONS)
    page.goto(f"{address}/{fragment}")
    try:
        yield page
        assert collected is not None or not complaints, complaints
    finally:
        context.close()


def _collect_complaints(page: Page, address: str, refused: list[int], complaints: list[str]) -> None:
    def on_console(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and not _is_expected(message, refused):
            complaints.append(message.text)

    def on_response(response: Response) -> None:
        if response.status >= 400 and response.status not in refused:
            complaints.append(f"{response.status} {response.url}")

    def on_request(request: Request) -> None:
        if not request.url.startswith(address):
            complaints.append(request.url)

    page.on("console", on_console)
    page.on("response", on_response)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: complaints.append(f"dialog: {dialog.message}"))
    page.on("request", on_request)


def wait_until_idle(page: Page) -> None:
    """Wait until no request is running or scheduled (debounced)."""
    page.wait_for_timeout(200)
    page.wait_for_selector("#results[aria-busy=false]")


def open_tab(page: Page, view: str) -> None:
    """Open one of the views."""
    page.click(f"#tab-{view}")
    wait_until_idle(page)


def read_values(page: Page, selector: str) -> list[float]:
    """The exact numbers of the <data> elements inside the selected elements."""
    values = page.locator(f"{selector} data").evaluate_all("(all) => all.map((data) => Number(data.value))")
    return [float(value) for value in values]


def request_body(request: Request) -> dict[str, Any]:
    """The JSON body of a request that the page sent."""
    body: dict[str, Any] = json.loads(request.post_data or "{}")
    return body


def save_screenshot(page: Page, name: str) -> None:
    """Save a screenshot that CI keeps."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    with suppress(OSError):
        page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)


def _is_expected(message: ConsoleMessage, refused: list[int]) -> bool:
    """Chromium logs every error status to the console; statuses that the test expects are not complaints."""
    return any(f"status of {code}" in message.text for code in refused)
