"""Every control of the page."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Error, Page, Route

from tests.support import page_models, tiny
from tests.support.browsers import (
    VIEWS,
    open_scored_page,
    open_tab,
    read_values,
    request_body,
    wait_until_idle,
)
from tests.support.servers import run_server

CLOSE = 1e-6
DRAG = """(slider) => {
    for (const value of [3, 2, 1.5, 1, 0.5, 0.25, 0]) {
        slider.value = value;
        slider.dispatchEvent(new Event('input'));
    }
}"""
MESSAGES = [{"role": "user", "content": "amber?"}]


def test_conversation_is_composed_with_the_keyboard_only(page: Page) -> None:
    page.click("#add-message")
    page.keyboard.type("amber river")
    page.select_option("#messages select >> nth=1", "user")
    page.get_by_label("Remove turn 1").click()
    assert page.locator("#messages textarea").count() == 1
    page.click("#add-response")
    page.keyboard.type("quiet stone")
    assert page.inner_text("#status") == "Edited since the last scoring."
    with page.expect_request("**/v1/rewards") as request:
        page.keyboard.press("Control+Enter")
    [sent] = request_body(request.value)["inputs"]
    assert sent["messages"] == [{"role": "user", "content": "amber river"}]
    wait_until_idle(page)
    assert page.locator('.row[data-model="beta"]').count() == 3
    page.get_by_label("Remove response A").click()
    page.get_by_label("Remove response A").click()
    assert page.input_value("#responses textarea") == "quiet stone"
    assert page.get_by_label("Remove response A").count() == 0
    page.click("#score")
    wait_until_idle(page)
    open_tab(page, "contrast")
    assert "Add a second response" in page.inner_text("#panel")


def test_selected_models_and_length_control_are_sent(page: Page) -> None:
    for name in tiny.MODELS:
        page.uncheck(f'input[value="{name}"]', force=True)
    assert page.is_disabled("#score")
    page.check('input[value="both"]', force=True)
    page.check("#length-control")
    with page.expect_request("**/v1/rewards") as request:
        page.click("#score")
    assert request_body(request.value)["model"] == ["both"]
    assert request_body(request.value)["length_control"] is True
    wait_until_idle(page)
    assert page.inner_text("#chart h3") == "both"
    assert "Alpha and beta." in page.inner_text("#chart")
    assert "uncertainty penalty" in page.inner_text(".waterfall")


@pytest.mark.parametrize(
    ("text", "turns", "responses"),
    [
        ("\n\nHuman: amber?\n\nAssistant: river\n\nHuman: so?\n\nAssistant: stone", 3, ["stone"]),
        ("<|im_start|>user\namber?<|im_end|>\n<|im_start|>assistant\nstone<|im_end|>\n", 1, ["stone"]),
        ('{"prompt": "amber?", "chosen": "stone", "rejected": "orbit"}\n{"more": 1}', 1, ["stone", "orbit"]),
        (json.dumps([*MESSAGES, {"role": "assistant", "content": "stone"}]), 1, ["stone"]),
        (json.dumps({"inputs": [{"messages": MESSAGES, "responses": ["stone"]}]}), 1, ["stone"]),
        (
            json.dumps({
                side: [*MESSAGES, {"role": "assistant", "content": text}]
                for side, text in (("chosen", "stone"), ("rejected", "orbit"))
            }),
            1, ["stone", "orbit"],
        ),
    ],
    ids=["hh", "chatml", "jsonl", "messages", "request", "lists"],
)  # fmt: skip
def test_transcript_is_pasted(page: Page, text: str, turns: int, responses: list[str]) -> None:
    page.click("#paste")
    page.fill("dialog textarea", "amber")
    assert page.get_by_text("Use it").is_disabled()
    page.fill("dialog textarea", text)
    page.click("text=Use it")
    assert page.input_value("#messages textarea >> nth=0").strip() == "amber?"
    assert page.locator("#messages textarea").count() == turns
    assert (
        page.locator("#responses textarea").evaluate_all("(all) => all.map((area) => area.value)")
        == responses
    )


def test_profile_is_scored_as_its_own_model(page: Page, page_server_url: str) -> None:
    page.check('input[value="alpha@strict"]', force=True)
    with page.expect_request("**/v1/rewards") as request:
        page.click("#score")
    wait_until_idle(page)
    rows = httpx.post(f"{page_server_url}/v1/rewards", json=request_body(request.value)).json()["data"]
    expected = [row["reward"] for row in rows if row["model"] == "alpha@strict"]
    assert read_values(page, '.row[data-model="alpha@strict"]') == pytest.approx(expected, abs=CLOSE)
    page.click('.row[data-model="alpha@strict"][data-response="0"]')
    open_tab(page, "features")
    assert page.locator(".features .dot.selected").count() == tiny.K


def test_arrow_keys_move_between_tabs(page: Page) -> None:
    page.focus("#tab-breakdown")
    for view in (*VIEWS[1:], VIEWS[0]):
        page.keyboard.press("ArrowRight")
        assert page.get_attribute(f"#tab-{view}", "aria-selected") == "true"
        assert page.evaluate("document.activeElement.id") == f"tab-{view}"
        wait_until_idle(page)
    page.keyboard.press("ArrowLeft")
    assert page.get_attribute("#tab-server", "aria-selected") == "true"


def test_feature_shows_its_details_and_adds_a_slider(page: Page) -> None:
    page.get_by_label("By feature").check(force=True)
    assert page.locator(".waterfall li").count() == 2 + 12 + 1
    page.click("text=Show more")
    assert page.locator(".waterfall li").count() == 2 + tiny.K
    page.locator(".waterfall button.name", has_text="negation").click()
    details = page.inner_text(".details")
    assert "balanced accuracy 0.80" in details
    assert "negation" in page.inner_text(".details .words")
    assert "decile" in details
    assert page.get_attribute(".details a", "href") == "https://example.org/feature"
    page.click("text=Steer “negation”")
    assert page.locator(".sliders li").first.inner_text().startswith("negation")
    open_tab(page, "breakdown")
    page.get_by_label("By feature").check(force=True)
    page.locator(".waterfall button.name").nth(1).click()
    page.locator(".waterfall button.name").nth(1).click()
    assert page.locator(".details").count() == 0


def test_dragging_a_slider_sends_only_its_last_position(page: Page, page_server_url: str) -> None:
    open_tab(page, "steer")
    requests: list[dict[str, Any]] = []

    page.on("request", lambda request: requests.append(request_body(request)))
    page.get_by_label("Factor of doubt").evaluate(DRAG)
    wait_until_idle(page)
    assert [body["steer"] for body in requests if body] == [{"doubt": 0}]
    body = {**requests[0], "top_k": 0}
    rows = httpx.post(f"{page_server_url}/v1/rewards", json=body).json()["data"]
    shown = read_values(page, '.row[data-model="alpha"]')
    assert shown == pytest.approx([row["reward"] for row in rows], abs=CLOSE)
    assert page.locator(".unsteered").count() == 2
    before, after, difference = read_values(page, ".outcome li:first-child")
    assert after - before == pytest.approx(difference)
    page.select_option("select[aria-label='Add a slider']", "negation")
    page.focus("[aria-label='Factor of negation']")
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    wait_until_idle(page)
    assert requests[-1]["steer"] == {"doubt": 0, "negation": pytest.approx(1.15)}
    page.get_by_label("Reset negation").click()
    wait_until_idle(page)
    assert requests[-1]["steer"] == {"doubt": 0}
    page.click("text=Reset all")
    wait_until_idle(page)
    assert page.locator(".unsteered").count() == 0


def test_late_response_does_not_overwrite_a_newer_one(page: Page) -> None:
    held: list[Route] = []

    def hold(route: Route) -> None:
        if held:
            route.continue_()
        else:
            held.append(route)

    page.route("**/v1/rewards", hold)
    page.fill("#responses textarea >> nth=0", "amber")
    page.click("#score")
    page.fill("#responses textarea >> nth=0", "violet orbit")
    page.click("#score")
    page.wait_for_timeout(300)
    shown = read_values(page, "#chart")
    with suppress(Error):
        held[0].continue_()
    wait_until_idle(page)
    assert read_values(page, "#chart") == shown
    page.unroute("**/v1/rewards")
    page.click("#score")
    wait_until_idle(page)
    assert read_values(page, "#chart") == pytest.approx(shown, abs=CLOSE)


def test_compares_two_selected_responses(page: Page) -> None:
    page.click("#add-response")
    page.keyboard.type("amber river")
    page.click("#score")
    wait_until_idle(page)
    open_tab(page, "contrast")
    margin = read_values(page, ".verdict")[0]
    page.select_option("select[aria-label='First response']", "1")
    wait_until_idle(page)
    assert read_values(page, ".verdict")[0] == pytest.approx(-margin, abs=CLOSE)
    page.select_option("select[aria-label='Second response']", "2")
    wait_until_idle(page)
    assert "C by" in page.inner_text(".verdict")
    page.locator(".contrast").get_by_label("By feature").check(force=True)
    page.click("text=Show more")
    assert page.locator(".flat li").count() == tiny.K


def test_features_are_searched_sorted_and_expanded(page: Page) -> None:
    open_tab(page, "features")
    assert page.inner_text("#panel [role=status]") == f"{tiny.K} of {tiny.K} features"
    contributions = [abs(value) for value in read_values(page, ".features")]
    assert contributions == sorted(contributions, reverse=True)
    assert page.locator(".features .dot.selected").count() == tiny.K
    page.select_option("select[aria-label=Order]", "highest name accuracy")
    assert page.locator(".features li").first.inner_text().startswith(("negation", "doubt"))
    page.select_option("select[aria-label=Direction]", "-1")
    assert page.inner_text("#panel [role=status]") == f"{tiny.K // 2} of {tiny.K} features"
    page.select_option("select[aria-label=Direction]", "")
    page.fill("input[type=search]", "doubt")
    assert page.locator(".features li").count() == 2
    page.locator(".features button.name").first.click()
    assert page.locator(".features .distribution .mark").all_inner_texts() == ["A", "B"]


def test_server_tab_shows_metrics_and_stops_polling_when_left(page: Page, page_server_url: str) -> None:
    open_tab(page, "server")
    page.wait_for_selector(".figures-grid dd")
    line = next(
        line
        for line in httpx.get(f"{page_server_url}/metrics").text.splitlines()
        if line.startswith("sparserm_tokens_saved_total")
    )
    assert f"{int(float(line.split()[1])):,} tokens" in page.inner_text(".figures-grid")
    assert page.locator(".drift td", has_text="page").count() >= 1
    open_tab(page, "breakdown")
    urls: list[str] = []
    page.on("request", lambda request: urls.append(request.url))
    page.wait_for_timeout(2500)
    assert not [url for url in urls if url.endswith(("/metrics", "/drift"))]


def test_response_that_cannot_be_scored_does_not_affect_others(browser: Browser, tmp_path: Path) -> None:
    engine, settings = page_models.build_models(tmp_path)
    page_models.make_token_overflow(engine)
    with run_server(engine, settings) as address, open_scored_page(browser, address) as page:
        page.fill("#responses textarea >> nth=0", f"stone {page_models.OVERFLOW_WORD}")
        page.click("#score")
        wait_until_idle(page)
        assert "NaN or infinity" in page.inner_text('.row[data-model="alpha"][data-response="0"]')
        assert len(read_values(page, '.row[data-model="alpha"][data-response="1"]')) == 1
        for view in VIEWS:
            open_tab(page, view)
        open_tab(page, "contrast")
        assert "NaN or infinity" in page.inner_text("#panel")


def test_refusal_shows_the_server_s_message(browser: Browser, page_server_url: str) -> None:
    with open_scored_page(browser, page_server_url, refused=[422]) as page:
        page.fill("#responses textarea >> nth=0", "")
        page.click("#score")
        wait_until_idle(page)
        assert "responses[0]" in page.inner_text("#problem")


def test_steering_one_model_does_not_abort_another_model_s_request(page: Page) -> None:
    open_tab(page, "steer")
    page.fill("[aria-label='Factor of doubt']", "0")
    page.click('.row[data-model="beta"][data-response="0"]')
    page.fill("[aria-label='Factor of doubt']", "0")
    wait_until_idle(page)
    assert page.locator(".unsteered").count() == 4
    page.click("#score")
    wait_until_idle(page)
    assert page.locator(".unsteered").count() == 4


def test_an_example_is_scored_and_compared_in_words(page: Page, page_server_url: str) -> None:
    page.click("text=Refusal or steps")
    wait_until_idle(page)
    assert page.get_attribute("#tab-contrast", "aria-selected") == "true"
    assert "locksmith" in page.input_value("#responses textarea >> nth=0")
    rewards = read_values(page, '.row[data-model="alpha"]')
    assert len(rewards) == 2
    assert page.inner_text(".contrast .why") != ""
    page.click("text=Too close to call")
    wait_until_idle(page)
    assert "chewing gum" in page.input_value("#messages textarea >> nth=0")
    assert read_values(page, '.row[data-model="alpha"]') != pytest.approx(rewards)
    assert httpx.get(f"{page_server_url}/health").status_code == 200
