"""The site of docs/: built strictly, every page in it, nothing fetched from elsewhere."""

import functools
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser

from tests.support import browsers
from tests.support.documentation import DOCS
from tests.support.paths import ROOT


class Quiet(SimpleHTTPRequestHandler):
    """A server of files that does not chatter."""

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; a broken link, a page that is not in the navigation or any other warning fails."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def shown(site: Path) -> Iterator[str]:
    """Where the site is served."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_every_page_is_in_the_site_and_loads_nothing_from_elsewhere(site: Path) -> None:
    for page in DOCS.glob("*.md"):
        text = (site / page.with_suffix(".html").name).read_text()
        assert not re.findall(r'<(?:script|link|img|iframe)\b[^>]*(?:src|href)="?(?:https?:|//)[^>]*', text)
        assert "not run:" not in re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)


def test_styles_load_nothing_from_elsewhere(site: Path) -> None:
    sheets = list((site / "assets").rglob("*.css"))
    assert sheets
    for sheet in sheets:
        assert not re.findall(r"url\(.?(?:https?:|//)|@import", sheet.read_text()), sheet


@pytest.mark.heavy
def test_the_site_reads_well_in_a_browser(browser: Browser, shown: str) -> None:
    with browsers.open_page(browser, shown) as page:
        assert page.locator("img[src='journey.svg']").evaluate("(one) => one.naturalWidth") > 0
        browsers.save_screenshot(page, "site-index")
        page.click(".md-content a[href='quickstart.html']")
        page.wait_for_selector("h1:has-text('Quickstart')")
        browsers.save_screenshot(page, "site-quickstart")
        page.locator("input[name=query]").press_sequentially("uncertainty")
        page.wait_for_selector(".md-search-result__link")
        page.set_viewport_size({"width": 360, "height": 740})
        page.goto(f"{shown}/explanations.html")
        wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert page.evaluate(wide) <= 0
        browsers.save_screenshot(page, "site-phone")
