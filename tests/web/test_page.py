"""The page in a browser: numbers match the API, hostile text never runs, keys stay local, links work."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page
from pydantic import SecretStr

from app.reward import loading
from app.reward.engine import Engine
from app.settings import Settings
from tests.support import page_models, tiny
from tests.support.browsers import (
    DESKTOP,
    PHONE,
    VIEWS,
    open_page,
    open_scored_page,
    open_tab,
    read_values,
    save_screenshot,
    wait_until_idle,
)
from tests.support.paths import MODELS
from tests.support.servers import run_server

CLOSE = 1e-6
KEY = "a-key-of-mine"
SERIOUS = {"serious", "critical"}


def api_rows(address: str, path: str = "v1/rewards", **body: Any) -> list[dict[str, Any]]:
    """The API's own answer for the page's example."""
    prompt = {"messages": [{"role": "user", "content": "Does sugar make children hyperactive?"}]}
    truth = "Studies have found no such effect."
    myth = "Yes, a single sweet makes any child hyperactive for a day."
    if path == "v1/compare":
        body["pairs"] = [{**prompt, "chosen": truth, "rejected": myth}]
    else:
        body["inputs"] = [{**prompt, "responses": [truth, myth]}]
    answer = httpx.post(f"{address}/{path}", json=body)
    return list(answer.raise_for_status().json()["data"])


def test_rewards_match_the_api(page: Page, page_server_url: str) -> None:
    rows = api_rows(page_server_url, model=sorted(tiny.MODELS))
    for row in rows:
        bar = f'.row[data-model="{row["model"]}"][data-response="{row["response"]}"]'
        assert read_values(page, bar) == pytest.approx([row["reward"]], abs=CLOSE)
        shown = page.inner_text(f"{bar} .figures").replace("−", "-")
        assert f"{row['reward']:+.2f}" in shown
        assert f"±{row['uncertainty']:.2f}" in shown
        assert page.inner_text(f"{bar} .rank").startswith(str(min(max(round(row["percentile"]), 1), 99)))
    assert page.locator("#chart button.row").count() == len(rows)


@pytest.mark.parametrize("model", [*tiny.MODELS, "both"])
@pytest.mark.parametrize("grouping", ["By feature", "By concept"])
def test_waterfall_sums_to_the_reward(page: Page, page_server_url: str, model: str, grouping: str) -> None:
    page.check('input[value="both"]', force=True)
    page.check("#length-control")
    page.click("#score")
    wait_until_idle(page)
    page.click(f'.row[data-model="{model}"][data-response="1"]')
    page.get_by_label(grouping).check(force=True)
    row = api_rows(page_server_url, model=model, top_k=1000, length_control=True)[1]
    parts = row["features"] if grouping == "By feature" else row["concepts"]
    baseline, *steps, reward = read_values(page, ".waterfall")
    assert (baseline, reward) == pytest.approx((row["baseline_reward"], row["reward"]), abs=CLOSE)
    assert steps[:3] == pytest.approx([part["contribution"] for part in parts[:3]], abs=CLOSE)
    assert baseline + sum(steps) == pytest.approx(reward, abs=CLOSE)
    bars = page.locator(".waterfall .fill").evaluate_all(
        "(all) => all.map((bar) => bar.getBoundingClientRect()).map(({left, right}) => [left, right])"
    )
    previous_end = bars[0][1] if baseline > 0 else bars[0][0]
    for value, (left, right) in zip(steps, bars[1:-1], strict=True):
        start, end = (left, right) if value > 0 else (right, left)
        assert start == pytest.approx(previous_end, abs=1.5)
        previous_end = end
    assert previous_end == pytest.approx(bars[-1][1] if reward > 0 else bars[-1][0], abs=1.5)


def test_token_token_creditand_comparison_match_the_api(page: Page, page_server_url: str) -> None:
    open_tab(page, "tokens")
    for row in api_rows(page_server_url, model="alpha", explain="tokens"):
        text = page.locator(".token-text").nth(row["response"])
        assert text.inner_text() == "".join(token["text"] for token in row["tokens"])
        text.focus()
        for token in row["tokens"][:3]:
            page.keyboard.press("ArrowRight")
            token_credit = read_values(page, f"details:nth-of-type({row['response'] + 1}) .readout")
            assert token_credit == pytest.approx([token["credit"]], abs=CLOSE)
    open_tab(page, "contrast")
    [pair] = api_rows(page_server_url, "v1/compare", model="alpha", top_k=1000)
    margin, probability = read_values(page, ".verdict")
    assert (margin, probability) == pytest.approx((pair["margin"], pair["probability"]), abs=CLOSE)
    assert sum(read_values(page, ".waterfall")) == pytest.approx(margin, abs=CLOSE)
    assert page.inner_text(".contrast .why") == pair["why"]
    [shaded] = api_rows(page_server_url, "v1/compare", model="alpha", top_k=0, explain="tokens")
    for number, side in enumerate(("chosen_tokens", "rejected_tokens")):
        side_text = "".join(token["text"] for token in shaded[side])
        shown_text = page.locator(".contrast .shaded").nth(number).text_content()
        assert shown_text is not None
        assert shown_text.endswith(side_text)
    shares = [token["credit"] for side in ("chosen_tokens", "rejected_tokens") for token in shaded[side]]
    assert sum(shares) == pytest.approx(margin, abs=CLOSE)
    named = [concept["name"] for concept in pair["concepts"] if concept["name"]]
    shown_names = page.locator(".contrast .waterfall .name").all_text_contents()
    assert all(any(shown.startswith(name) for shown in shown_names) for name in named)
    page.locator(".contrast").get_by_label("By feature").check(force=True)
    shown = read_values(page, ".contrast .waterfall")
    assert sum(shown) == pytest.approx(margin, abs=CLOSE)
    assert shown[:3] == pytest.approx([part["contribution"] for part in pair["features"][:3]], abs=CLOSE)


def test_copied_code_returns_the_same_rewards(page: Page) -> None:
    shown = read_values(page, '.row[data-response="0"]')
    page.click("#show-code")
    assert "null" not in page.inner_text("dialog")
    curl, python = page.locator("dialog pre").all_inner_texts()
    answer = subprocess.run(["bash", "-c", curl], capture_output=True, check=True)
    rows = [row for row in json.loads(answer.stdout)["data"] if row["response"] == 0]
    assert [row["reward"] for row in rows] == pytest.approx(shown, abs=CLOSE)
    printed = subprocess.run([sys.executable, "-c", python], capture_output=True, check=True, text=True)
    lines = [line.split() for line in printed.stdout.splitlines()]
    assert [float(line[2]) for line in lines if line[1] == "0"] == pytest.approx(shown, abs=CLOSE)


def test_copied_code_quotes_special_characters(page: Page) -> None:
    page.fill("#responses textarea >> nth=0", 'it\'s "true" $HOME `x` \\ null\n\ttrue ✓')
    page.click("#score")
    wait_until_idle(page)
    shown = read_values(page, '.row[data-model="alpha"]')
    page.click("#show-code")
    snippets = page.locator("dialog pre").all_inner_texts()
    for code, program in zip(snippets, ("bash", sys.executable), strict=True):
        out = subprocess.run([program, "-c", code], capture_output=True, check=True, text=True).stdout
        assert all(str(value)[:8] in out for value in shown)


def test_link_restores_the_state_and_is_not_sent_to_the_server(
    browser: Browser, page_server_url: str
) -> None:
    with open_scored_page(browser, page_server_url) as page:
        page.fill("#responses textarea >> nth=1", "a secret of mine")
        page.uncheck('input[value="gamma"]', force=True)
        page.click("#score")
        wait_until_idle(page)
        page.click('.row[data-model="beta"][data-response="1"]')
        open_tab(page, "steer")
        page.fill(".sliders input >> nth=0", "0")
        wait_until_idle(page)
        before = read_values(page, "#chart")
        page.click("#show-link")
        link = page.inner_text("dialog pre")
    fragment = link.removeprefix(f"{page_server_url}/")
    assert fragment.startswith("#")
    with open_page(browser, page_server_url, fragment) as page:
        urls: list[str] = []
        page.on("request", lambda request: urls.append(request.url))
        page.reload()
        page.wait_for_selector(".sliders output")
        wait_until_idle(page)
        assert page.input_value("#responses textarea >> nth=1") == "a secret of mine"
        assert page.get_attribute('.row[data-model="beta"][data-response="1"]', "aria-pressed") == "true"
        assert read_values(page, "#chart") == pytest.approx(before, abs=CLOSE)
        assert page.locator(".sliders output").first.inner_text() == "×0.00"
    assert all(fragment[1:30] not in url.partition("#")[0] for url in urls)


@pytest.mark.parametrize("fragment", ["#nonsense", "#e30", "#" + "A" * 5000])
def test_invalid_link_shows_the_example(browser: Browser, page_server_url: str, fragment: str) -> None:
    with open_scored_page(browser, page_server_url, fragment) as page:
        assert "sugar" in page.input_value("#messages textarea")


def test_hostile_markup_is_shown_as_text_and_never_runs(browser: Browser, tmp_path: Path) -> None:
    with (
        run_server(*page_models.build_hostile_models(tmp_path)) as address,
        open_scored_page(browser, address) as page,
    ):
        for box in page.locator("textarea").all():
            box.fill(f"</textarea>{page_models.HOSTILE_NAME}")
        page.check(f'input[value="c{page_models.HOSTILE_NAME}"]', force=True)
        page.click("#score")
        wait_until_idle(page)
        page.locator("button.row").last.click()
        for view in VIEWS:
            open_tab(page, view)
            for toggle in page.locator("button.name[aria-expanded=false]").all()[:3]:
                toggle.click()
        assert page.locator("img, iframe, object, script:not([src]), a[href^=javascript]").count() == 0
        assert page_models.HOSTILE_NAME in page.inner_text("#chart")
        save_screenshot(page, "hostile")


def test_content_security_policy_blocks_markup(browser: Browser, page_server_url: str) -> None:
    set_inner_html = "() => { try { document.body.innerHTML = '<p>'; } catch (error) { return error.name; } }"
    complaints: list[str] = []
    with open_scored_page(browser, page_server_url, complaints=complaints) as page:
        assert page.evaluate(set_inner_html) == "TypeError"
    assert [text for text in complaints if "CSP require-trusted-types-for" in text]


def test_key_is_requested_stored_in_the_tab_and_forgotten(
    browser: Browser, engine: Any, settings: Settings
) -> None:
    locked = settings.model_copy(update={"api_keys": SecretStr(KEY)})
    with run_server(engine, locked) as address, open_page(browser, address, refused=[401]) as page:
        page.fill("#key", "another")
        page.click("text=Unlock")
        page.wait_for_selector("text=The server rejected the key")
        page.fill("#key", KEY)
        page.press("#key", "Enter")
        page.wait_for_selector("#chart .row")
        wait_until_idle(page)
        assert page.evaluate("Object.values(sessionStorage)") == [KEY]
        assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
        page.click("#show-code")
        code = page.inner_text("dialog")
        assert "$SPARSERM_KEY" in code
        assert KEY not in code
        curl = page.locator("dialog pre").first.inner_text()
        result = subprocess.run(
            ["bash", "-c", curl], capture_output=True, check=True, env={**os.environ, "SPARSERM_KEY": KEY}
        )
        assert json.loads(result.stdout)["data"]
        page.keyboard.press("Escape")
        page.click("#forget-key")
        page.wait_for_selector("#key")
        assert page.evaluate("sessionStorage.length") == 0
        page.keyboard.press("Escape")
        page.wait_for_selector("text=The server requires an API key")


def test_key_in_the_path_opens_the_page_and_is_not_copied(
    browser: Browser, engine: Any, settings: Settings
) -> None:
    locked = settings.model_copy(update={"api_keys": SecretStr(KEY)})
    with run_server(engine, locked) as address, open_scored_page(browser, address, f"k/{KEY}/") as page:
        page.click("#show-code")
        assert KEY not in page.inner_text("dialog")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_is_accessible_on_desktop_and_phone(
    browser: Browser, page_server_url: str, scheme: str, size: dict[str, int]
) -> None:
    with open_scored_page(browser, page_server_url, viewport=size, color_scheme=scheme) as page:
        for view in VIEWS:
            open_tab(page, view)
            if page.locator("button.name").count():
                page.locator("button.name").first.click()
            save_screenshot(page, f"{view}-{scheme}-{size['width']}")
            _assert_no_serious_violations(page)
            assert page.evaluate("document.documentElement.scrollWidth") <= size["width"], view
        for button in ("#paste", "#show-code", "#show-link"):
            page.click(button)
            _assert_no_serious_violations(page)
            page.keyboard.press("Escape")


def _assert_no_serious_violations(page: Page) -> None:
    violations = Axe().run(page).response["violations"]
    assert not [
        (violation["id"], violation["nodes"][0]["html"])
        for violation in violations
        if violation["impact"] in SERIOUS
    ]


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "kind", ["tiny", pytest.param("shipped", marks=[pytest.mark.real, pytest.mark.heavy])]
)
def test_stays_fast_with_four_models_and_eight_long_responses(
    browser: Browser, tmp_path: Path, kind: str
) -> None:
    """The bounds are generous, for slow machines; the measured times are printed."""
    if kind == "tiny":
        engine, settings = page_models.build_models(tmp_path, max_tokens=2048)
    else:
        settings = Settings(models_dir=MODELS, device="cpu", request_timeout_s=1000)
        engine = loading.load_engine(settings, lambda *_: None)
    with run_server(engine, settings) as address, open_scored_page(browser, address) as page:
        page.set_default_timeout(600_000)
        if kind == "tiny":
            page.check('input[value="both"]', force=True)
        for _ in range(6):
            page.click("#add-response")
        long_text = "".join(f" {tiny.WORDS[i % len(tiny.WORDS)]}" for i in range(_word_count(engine)))
        for i in range(8):
            page.fill(f"#responses textarea >> nth={i}", f"{tiny.WORDS[i]}{long_text}")
        with page.expect_response("**/v1/rewards") as answer:
            page.click("#score")
        answer.value.finished()
        started = time.perf_counter()
        page.wait_for_selector("#chart section:nth-of-type(4) button.row:nth-of-type(8)")
        seconds = {"render": time.perf_counter() - started}
        assert answer.value.json()["data"][0]["response_tokens"] >= 1900
        for view in VIEWS:
            open_tab(page, view)
            page.wait_for_selector(f"#panel[aria-labelledby=tab-{view}]")
            if view == "tokens":
                page.wait_for_selector(".token-text")
            seconds[view] = max(_time_to_next_frame(page, f'.row[data-response="{i}"]') for i in (3, 5))
        seconds["type"] = _time_to_next_frame(page, "#responses textarea", "input")
        print({name: round(1000 * value) for name, value in seconds.items()}, "ms")  # noqa: T201
    assert seconds.pop("render") < 2
    assert max(seconds.values()) < 0.5, seconds


def _word_count(engine: Engine) -> int:
    """How many words make almost two thousand tokens."""
    [encoded] = engine.encode([tiny.make_item("amber", " ".join(tiny.WORDS * 40))])
    return 1950 * len(tiny.WORDS) * 40 // (encoded.response_end - encoded.response_start)


def _time_to_next_frame(page: Page, selector: str, event: str = "click") -> float:
    """Seconds from an event to the next rendered frame."""
    script = """(element, event) => new Promise((done) => {
        const started = performance.now();
        event === 'click' ? element.click() : element.dispatchEvent(new InputEvent(event, {bubbles: true}));
        requestAnimationFrame(() => setTimeout(() => done((performance.now() - started) / 1000)));
    })"""
    return float(page.locator(selector).first.evaluate(script, event))
