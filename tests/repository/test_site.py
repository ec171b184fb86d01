"""The site built from docs/: no warnings, every page included, nothing loaded from other hosts."""

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


class QuietRequestHandler(SimpleHTTPRequestHandler):
    """Serves files without logging requests."""

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; any warning fails, such as a broken link or a page missing in the navigation."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture(scope="module")
def site_url(site: Path) -> Iterator[str]:
    """The URL of a server of the built site."""
    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(QuietRequestHandler, directory=str(site))
    )
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_site_contains_every_page_and_loads_nothing_from_other_hosts(site: Path) -> None:
    for page in DOCS.glob("*.md"):
        text = (site / page.with_suffix(".html").name).read_text()
        assert not re.findall(r'<(?:script|link|img|iframe)\b[^>]*(?:src|href)="?(?:https?:|//)[^>]*', text)
        assert "not run:" not in re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)


def test_styles_load_nothing_from_other_hosts(site: Path) -> None:
    stylesheets = list((site / "assets").rglob("*.css"))
    assert stylesheets
    for stylesheet in stylesheets:
        assert not re.findall(r"url\(.?(?:https?:|//)|@import", stylesheet.read_text()), stylesheet


@pytest.mark.heavy
def test_site_can_be_navigated_and_searched_in_a_browser(browser: Browser, site_url: str) -> None:
    with browsers.open_page(browser, site_url) as page:
        browsers.save_screenshot(page, "site-index")
        page.click(".md-content a[href='quickstart.html']")
        page.wait_for_selector("h1:has-text('Quickstart')")
        browsers.save_screenshot(page, "site-quickstart")
        page.locator("input[name=query]").press_sequentially("uncertainty")
        page.wait_for_selector(".md-search-result__link")
        page.goto(f"{site_url}/page.html")
        assert page.locator("img[src='page.png']").evaluate("(image) => image.naturalWidth") > 0
        page.set_viewport_size({"width": 360, "height": 740})
        page.goto(f"{site_url}/explanations.html")
        overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert page.evaluate(overflow) <= 0
        browsers.save_screenshot(page, "site-phone")
