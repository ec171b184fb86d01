"""The native API: what is asked is answered, what is wrong is refused by name, and nothing breaks."""

import asyncio
import json
import math
from typing import Any

import httpx
import pytest
import torch

from app.backbone.prefix_cache import PrefixCache
from app.reward.engine import Engine
from app.settings import Settings
from app.types import Explain, ScoreOptions
from benchmarks.server import parse_samples
from tests.support import tiny
from tests.support.servers import open_client

pytestmark = pytest.mark.anyio
PAIR = {"prompt": "amber river", "response": "quiet stone"}


@pytest.fixture
async def client(engine: Engine, settings: Settings) -> Any:
    async with open_client(engine, settings) as client:
        yield client


async def rewards(client: httpx.AsyncClient, **body: Any) -> Any:
    answer = await client.post("/v1/rewards", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_a_reward_comes_with_features_that_sum_to_it(client: httpx.AsyncClient) -> None:
    answer = await rewards(client, inputs=[PAIR], top_k=1000)
    (row,) = answer["data"]
    total = row["baseline_reward"] + sum(f["contribution"] for f in row["features"]) + row["residual"]
    assert row["model"] == "alpha"
    assert len(row["features"]) == tiny.K
    assert abs(row["residual"]) <= 1e-5
    assert row["reward"] == pytest.approx(total, abs=1e-9)
    assert 0 <= row["percentile"] <= 100
    assert 0 <= row["distance"] <= 100


async def test_five_features_by_default_largest_first(client: httpx.AsyncClient) -> None:
    (row,) = (await rewards(client, inputs=[PAIR]))["data"]
    sizes = [abs(f["contribution"]) for f in row["features"]]
    assert len(sizes) == 5
    assert sizes == sorted(sizes, reverse=True)


async def test_every_form_of_input_scores_the_same(
    client: httpx.AsyncClient, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "prefix_cache", PrefixCache(0))
    user = {"role": "user", "content": "amber river"}
    forms = [
        PAIR,
        {"prompt": "amber river", "responses": ["quiet stone"]},
        {"messages": [user, {"role": "assistant", "content": "quiet stone"}]},
        {"messages": [user], "response": "quiet stone"},
        {"messages": [user], "responses": ["quiet stone"]},
    ]
    answer = await rewards(client, inputs=forms)
    offline = tiny.score_items(
        engine, [tiny.make_item("amber river", "quiet stone")], ScoreOptions(("alpha",))
    )[0][0].reward
    assert [row["reward"] for row in answer["data"]] == pytest.approx([offline] * len(forms), abs=1e-5)
    assert answer["usage"]["computed_tokens"] == answer["usage"]["prompt_tokens"] // 5 + (
        answer["usage"]["response_tokens"] // 5 + 1
    )


async def test_one_flat_row_a_response_and_model(client: httpx.AsyncClient) -> None:
    inputs = [{"prompt": "seven", "responses": ["maple", "orbit"]}, PAIR]
    answer = await rewards(client, model=["gamma", "alpha"], inputs=inputs)
    rows = [(r["index"], r["input"], r["response"], r["model"]) for r in answer["data"]]
    assert answer["models"] == ["gamma", "alpha"]
    assert rows == [
        (0, 0, 0, "gamma"), (1, 0, 0, "alpha"), (2, 0, 1, "gamma"),
        (3, 0, 1, "alpha"), (4, 1, 0, "gamma"), (5, 1, 0, "alpha"),
    ]  # fmt: skip


@pytest.mark.parametrize("model", list(tiny.MODELS))
async def test_token_credits_sum_to_the_reward(client: httpx.AsyncClient, model: str) -> None:
    (row,) = (await rewards(client, model=model, inputs=[PAIR], explain="tokens"))["data"]
    assert sum(t["credit"] for t in row["tokens"]) == pytest.approx(
        row["reward"] - row["baseline_reward"], abs=1e-5
    )
    assert "".join(t["text"] for t in row["tokens"]).startswith("quiet stone")


async def test_a_contribution_carries_what_a_reader_needs_and_no_more(client: httpx.AsyncClient) -> None:
    (row,) = (await rewards(client, inputs=[PAIR]))["data"]
    told = {"model", "id", "sign", "label", "label_score", "url"}
    told |= {"contribution", "projection", "activation", "fired"}
    assert all(set(feature) == told for feature in row["features"])
    listed = (await client.get(f"/v1/models/{row['model']}/features")).json()["data"]
    assert {"difference", "stability", "agreement"} <= set(listed[0])


async def test_no_explanation_when_none_is_asked_for(client: httpx.AsyncClient) -> None:
    (row,) = (await rewards(client, inputs=[PAIR], explain="none"))["data"]
    assert row["features"] == []
    assert "tokens" not in row


async def test_steering_is_applied_and_reported(client: httpx.AsyncClient) -> None:
    (plain,) = (await rewards(client, inputs=[PAIR]))["data"]
    latent = str(plain["features"][0]["id"])
    steered = await rewards(client, inputs=[PAIR], steer={latent: 0})
    assert steered["steer"] == {latent: 0}
    assert steered["data"][0]["reward"] != plain["reward"]


async def test_compare_explains_the_margin(client: httpx.AsyncClient) -> None:
    body = {"pairs": [{"prompt": "seven", "chosen": "maple orbit", "rejected": "glass"}], "top_k": 1000}
    (row,) = (await client.post("/v1/compare", json=body)).json()["data"]
    assert row["margin"] == pytest.approx(row["chosen_reward"] - row["rejected_reward"], abs=1e-9)
    assert sum(f["contribution"] for f in row["features"]) == pytest.approx(row["margin"], abs=1e-5)
    assert row["probability"] == pytest.approx(1 / (1 + math.exp(-row["margin"] / 0.75)), abs=1e-9)


async def test_a_conversation_that_is_too_long_loses_its_oldest_words(client: httpx.AsyncClient) -> None:
    long = {"prompt": "amber river " * 50_000, "response": "quiet stone"}
    answer = await rewards(client, inputs=[long])
    (row,) = answer["data"]
    assert row["truncated"]
    assert row["response_tokens"] == 2 + len("quiet") - 1
    assert row["prompt_tokens"] + row["response_tokens"] + 1 == 256
    refused = await client.post("/v1/rewards", json={"inputs": [long], "truncate": False})
    assert refused.status_code == 422
    assert "256" in refused.json()["error"]["message"]
    assert refused.json()["error"]["param"] == "inputs[0]"


async def test_cards_and_features(client: httpx.AsyncClient) -> None:
    listed = (await client.get("/v1/models")).json()["data"]
    assert [card["id"] for card in listed] == list(tiny.MODELS)
    assert (await client.get("/v1/models/beta")).json()["readout"] == "end"
    page = (await client.get("/v1/models/beta/features?offset=14&limit=5")).json()
    assert (page["total"], len(page["data"])) == (tiny.K, 2)
    latent = page["data"][0]["id"]
    assert (await client.get(f"/v1/models/beta/features/{latent}")).json() == page["data"][0]
    assert (await client.get("/v1/models/nobody")).json()["error"]["code"] == "unknown_model"
    assert (await client.get("/v1/models/beta/features/999")).json()["error"]["code"] == "unknown_latent"


async def test_a_feature_tells_how_its_projections_spread(client: httpx.AsyncClient, engine: Engine) -> None:
    listed = (await client.get("/v1/models/beta/features")).json()["data"]
    model = engine.models["beta"]
    spread = torch.tensor([feature["deciles"] for feature in listed], dtype=torch.float64)
    assert torch.allclose(model.head.standardise(spread.T).T, model.calibration.standardised_deciles)
    assert (spread.diff(dim=1) > 0).all()


async def test_health_ready_version_docs(client: httpx.AsyncClient) -> None:
    for path in ("/health", "/ready", "/version", "/docs", "/openapi.json"):
        assert (await client.get(path)).status_code == 200, path


BAD: dict[str, tuple[Any, int, str]] = {
    "malformed": (b"{", 400, "body"),
    "not an object": (b"[]", 422, "body"),
    "bad utf-8": (b'{"inputs": "\xff"}', 400, ""),
    "nested too deep": (b'{"inputs":' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400, ""),
    "no inputs": ({}, 422, "inputs"),
    "empty inputs": ({"inputs": []}, 422, "inputs"),
    "inputs not a list": ({"inputs": "x"}, 422, "inputs"),
    "unknown field": ({"inputs": [PAIR], "colour": 1}, 422, "colour"),
    "unknown field inside": ({"inputs": [{**PAIR, "x": 1}]}, 422, "inputs[0].x"),
    "no response": ({"inputs": [{"prompt": "x"}]}, 422, "inputs[0]"),
    "both kinds of prompt": (
        {"inputs": [{**PAIR, "messages": [{"role": "user", "content": "x"}]}]},
        422,
        "inputs[0]",
    ),
    "prompt is a number": ({"inputs": [{"prompt": 3, "response": "x"}]}, 422, "inputs[0].prompt"),
    "empty response": ({"inputs": [PAIR, {**PAIR, "response": ""}]}, 422, "inputs[1].response"),
    "empty among responses": (
        {"inputs": [{"prompt": "x", "responses": ["a", ""]}]},
        422,
        "inputs[0].responses[1]",
    ),
    "empty responses": ({"inputs": [{"prompt": "x", "responses": []}]}, 422, "inputs[0].responses"),
    "only an assistant": (
        {"inputs": [{"messages": [{"role": "assistant", "content": "x"}]}]},
        422,
        "inputs[0]",
    ),
    "unknown role": (
        {"inputs": [{"messages": [{"role": "king", "content": "x"}], "response": "y"}]},
        422,
        "role",
    ),
    "lone surrogate": (b'{"inputs":[{"prompt":"\\ud800","response":"x"}]}', 422, "inputs[0].prompt"),
    "surrogate in a field name": (b'{"inputs":[{"prompt":"a","response":"x"}],"\\ud800":1}', 422, ""),
    "a megabyte": ({"inputs": [{**PAIR, "response": "a" * (1 << 20)}]}, 422, "inputs[0].response"),
    "unknown model": ({"inputs": [PAIR], "model": "nobody"}, 404, "model"),
    "no models": ({"inputs": [PAIR], "model": []}, 422, "model"),
    "unknown latent": ({"inputs": [PAIR], "steer": {"999": 1}}, 422, "steer.999"),
    "unknown cluster": ({"inputs": [PAIR], "steer": {"x": 1}}, 422, "steer.x"),
    "unknown profile": ({"inputs": [PAIR], "model": "alpha@x"}, 404, "model"),
    "NaN factor": (b'{"inputs":[{"prompt":"a","response":"b"}],"steer":{"1":NaN}}', 422, "steer"),
    "infinite factor": (b'{"inputs":[{"prompt":"a","response":"b"}],"steer":{"1":1e999}}', 422, "steer"),
    "huge factor": ({"inputs": [PAIR], "steer": {"1": 1e9}}, 422, "steer"),
    "too many items": ({"inputs": [PAIR] * 20_000}, 422, "inputs"),
    "negative top_k": ({"inputs": [PAIR], "top_k": -1}, 422, "top_k"),
    "unknown explain": ({"inputs": [PAIR], "explain": "because"}, 422, "explain"),
}


@pytest.mark.parametrize("name", list(BAD))
async def test_bad_input_is_refused_by_name(client: httpx.AsyncClient, name: str) -> None:
    body, status, param = BAD[name]
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = await client.post("/v1/rewards", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert param in (error["param"] or "")
    assert (await client.post("/v1/rewards", json={"inputs": [PAIR]})).status_code == 200


async def test_limits_are_named(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/rewards", json={"inputs": [PAIR] * 20_000})
    assert "16384" in answer.json()["error"]["message"]


async def test_a_body_that_is_too_large_is_not_read(engine: Engine, settings: Settings) -> None:
    small = settings.model_copy(update={"max_body_bytes": 2048})
    async with open_client(engine, small) as client:
        answer = await client.post("/v1/rewards", json={"inputs": [{**PAIR, "prompt": "x" * 4000}]})
    assert answer.status_code == 413
    assert "2048" in answer.json()["error"]["message"]


async def test_unknown_routes_and_methods_use_the_envelope(client: httpx.AsyncClient) -> None:
    assert (await client.get("/nowhere")).json()["error"]["type"] == "not_found_error"
    answer = await client.get("/v1/rewards")
    assert (answer.status_code, answer.json()["error"]["code"]) == (405, "http_405")


async def test_errors_never_repeat_the_text(client: httpx.AsyncClient) -> None:
    text = "lantern-lantern-lantern"
    answer = await client.post("/v1/rewards", json={"inputs": [{"prompt": [text], "response": text}]})
    assert text not in answer.text


async def test_concurrent_requests_share_passes_and_keep_their_scores(
    client: httpx.AsyncClient, engine: Engine
) -> None:
    exchanges = tiny.random_items(48)
    offline = [
        s[0].reward for s in tiny.score_items(engine, exchanges, ScoreOptions(("alpha",), Explain.NONE))
    ]
    bodies = [{"inputs": [{"prompt": e.messages[0].content, "response": e.response}]} for e in exchanges]
    answers = await asyncio.gather(*(client.post("/v1/rewards", json=body) for body in bodies))
    served = [answer.json()["data"][0]["reward"] for answer in answers]
    assert served == pytest.approx(offline, abs=1e-5)
    text = (await client.get("/metrics")).text
    [passes] = [sample.value for sample in parse_samples(text, "sparserm_batch_items_count")]
    assert passes < len(exchanges)


async def test_request_ids_are_kept_or_given(client: httpx.AsyncClient) -> None:
    kept = await client.get("/health", headers={"X-Request-Id": "abc-1"})
    given = await client.get("/health", headers={"X-Request-Id": "a" * 500})
    assert kept.headers["x-request-id"] == "abc-1"
    assert len(given.headers["x-request-id"]) == 32
