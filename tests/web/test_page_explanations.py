"""What the page says about features of responses, the merged directions and passages."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page

from app.train.assembly import REMAINDER_LABEL
from tests.support import page_models, tiny
from tests.support.browsers import (
    PHONE,
    open_scored_page,
    open_tab,
    read_values,
    request_body,
    save_screenshot,
    wait_until_idle,
)
from tests.support.servers import run_server

CLOSE = 1e-6
SENTENCES = "Studies have found no effect. Some people disagree! Nobody has seen all of them."


@pytest.fixture(scope="module")
def response_server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a server with a model of features of responses that reads passages."""
    with run_server(*page_models.build_response_model(tmp_path_factory.mktemp("responses"))) as url:
        yield url


@pytest.fixture
def response_page(browser: Browser, response_server_url: str) -> Iterator[Page]:
    """The page of that server after the first scoring."""
    with open_scored_page(browser, response_server_url) as page:
        page.fill("#responses textarea >> nth=0", SENTENCES)
        score_again(page, response_server_url)
        yield page


def score_again(page: Page, address: str) -> list[dict[str, Any]]:
    """Score on the page; return the rows of the API for the same request."""
    with page.expect_request("**/v1/rewards") as request:
        page.click("#score")
    wait_until_idle(page)
    answer = httpx.post(f"{address}/v1/rewards", json=request_body(request.value))
    return list(answer.raise_for_status().json()["data"])


def test_passages_are_those_of_the_api_and_only_of_models_that_read_them(
    page: Page, page_server_url: str
) -> None:
    page.fill("#responses textarea >> nth=0", SENTENCES)
    page.fill("#responses textarea >> nth=1", "abc")
    rows = {(row["model"], row["response"]): row for row in score_again(page, page_server_url)}
    page.click('.row[data-model="delta"][data-response="0"]')
    passages = rows["delta", 0]["passages"]
    assert page.locator(".passage-text").all_text_contents() == [passage["text"] for passage in passages]
    expected = [value for passage in passages for value in (passage["reward"], passage["weight"])]
    assert read_values(page, ".passages") == pytest.approx(expected, abs=CLOSE)
    text = page.inner_text(".passages")
    weight = passages[0]["weight"]
    assert f"weight {100 * weight:.{1 if weight < 0.1 else 0}f} %" in text
    assert "scores each sentence, and the worst count most" in text
    assert "70 % of the weight in the reward, the whole response has 30 %" in text
    assert "passages" not in rows["delta", 1]
    for row in ('[data-model="delta"][data-response="1"]', '[data-model="alpha"][data-response="0"]'):
        page.click(f".row{row}")
        assert page.locator(".waterfall li").count() > 2
        assert page.inner_text(".passages") == ""


def test_passages_follow_steering(response_page: Page) -> None:
    before = read_values(response_page, ".passages")
    open_tab(response_page, "steer")
    response_page.fill(".sliders input >> nth=0", "0")
    wait_until_idle(response_page)
    open_tab(response_page, "breakdown")
    after = read_values(response_page, ".passages")
    assert len(after) >= 2
    assert after != pytest.approx(before, abs=CLOSE)


def test_features_of_responses_fire_on_whole_responses(response_page: Page, response_server_url: str) -> None:
    [row, _] = score_again(response_page, response_server_url)
    first = next(feature for feature in row["features"] if feature["sign"])
    response_page.locator(".waterfall button.name", has_text=f"#{first['id']}").first.click()
    details = response_page.inner_text(".details")
    assert f"its latent {'fired' if first['fired'] else 'did not fire'} on this response" in details
    side = "preferred" if first["sign"] > 0 else "rejected"
    assert f"fires on a response as a whole. Selected because it fires on more of the {side}" in details
    assert "It has no name." in details
    open_tab(response_page, "contrast")
    response_page.locator(".waterfall button.name", has_text="#").first.click()
    details = response_page.inner_text(".details")
    assert "Difference of the projections" in details
    assert "the activations of its latent" in details
    assert "on this response" not in details


def test_merged_directions_have_no_side_and_no_latent(response_page: Page) -> None:
    open_tab(response_page, "features")
    response_page.fill("input[type=search]", REMAINDER_LABEL)
    [feature] = response_page.locator(".features li").all()
    assert "remainder" in feature.inner_text()
    feature.locator("button.name").click()
    text = feature.inner_text()
    assert "It merges all that is orthogonal to the selected directions" in text
    assert not [word for word in ("fire", "preferred", "rejected", "latent", "#") if word in text]
    assert feature.locator(".distribution .mark").count() == 2
    feature.locator("text=Steer this feature").click()
    assert response_page.locator(".sliders .name").first.inner_text().strip() == REMAINDER_LABEL
    open_tab(response_page, "features")
    for sign in ("1", "-1"):
        response_page.select_option("select[aria-label=Direction]", sign)
        assert REMAINDER_LABEL not in response_page.inner_text(".features")
    assert response_page.locator(".features li").count() == tiny.K // 2 - 1


def test_passages_fit_on_a_phone(browser: Browser, response_server_url: str) -> None:
    with open_scored_page(browser, response_server_url, viewport=PHONE) as page:
        page.fill("#responses textarea >> nth=0", SENTENCES)
        score_again(page, response_server_url)
        assert page.locator(".passage-text").count() >= 1
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        save_screenshot(page, "passages-phone")
