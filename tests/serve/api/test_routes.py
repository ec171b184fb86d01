"""The native API: rewards, comparisons, model cards and features, and errors that name the field."""

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


async def post_rewards(client: httpx.AsyncClient, **body: Any) -> Any:
    response = await client.post("/v1/rewards", json=body)
    assert response.status_code == 200, response.text
    return response.json()


async def test_features_and_residual_sum_to_the_reward(client: httpx.AsyncClient) -> None:
    response = await post_rewards(client, inputs=[PAIR], top_k=1000)
    (row,) = response["data"]
    total = row["baseline_reward"] + sum(f["contribution"] for f in row["features"]) + row["residual"]
    assert row["model"] == "alpha"
    assert len(row["features"]) == tiny.K
    assert abs(row["residual"]) <= 1e-5
    assert row["reward"] == pytest.approx(total, abs=1e-9)
    assert 0 <= row["percentile"] <= 100
    assert 0 <= row["distance"] <= 100


async def test_returns_five_features_by_default_with_the_largest_first(client: httpx.AsyncClient) -> None:
    (row,) = (await post_rewards(client, inputs=[PAIR]))["data"]
    sizes = [abs(f["contribution"]) for f in row["features"]]
    assert len(sizes) == 5
    assert sizes == sorted(sizes, reverse=True)


async def test_all_forms_of_input_have_the_same_score(
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
    response = await post_rewards(client, inputs=forms)
    expected = tiny.score_items(
        engine, [tiny.make_item("amber river", "quiet stone")], ScoreOptions(("alpha",))
    )[0][0].reward
    assert [row["reward"] for row in response["data"]] == pytest.approx([expected] * len(forms), abs=1e-5)
    assert response["usage"]["computed_tokens"] == response["usage"]["prompt_tokens"] // 5 + (
        response["usage"]["response_tokens"] // 5 + 1
    )


async def test_returns_one_flat_row_per_response_and_model(client: httpx.AsyncClient) -> None:
    inputs = [{"prompt": "seven", "responses": ["maple", "orbit"]}, PAIR]
    response = await post_rewards(client, model=["gamma", "alpha"], inputs=inputs)
    rows = [(r["index"], r["input"], r["response"], r["model"]) for r in response["data"]]
    assert response["models"] == ["gamma", "alpha"]
    assert rows == [
        (0, 0, 0, "gamma"), (1, 0, 0, "alpha"), (2, 0, 1, "gamma"),
        (3, 0, 1, "alpha"), (4, 1, 0, "gamma"), (5, 1, 0, "alpha"),
    ]  # fmt: skip


@pytest.mark.parametrize("model", list(tiny.MODELS))
async def test_token_credits_sum_to_the_reward(client: httpx.AsyncClient, model: str) -> None:
    (row,) = (await post_rewards(client, model=model, inputs=[PAIR], explain="tokens"))["data"]
    assert sum(t["credit"] for t in row["tokens"]) == pytest.approx(
        row["reward"] - row["baseline_reward"], abs=1e-5
    )
    assert "".join(t["text"] for t in row["tokens"]).startswith("quiet stone")


CHAT = [
    {"role": "user", "content": "amber river"}, {"role": "assistant", "content": "quiet stone"},
    {"role": "user", "content": "seven"}, {"role": "assistant", "content": "maple orbit violet"},
]  # fmt: skip


@pytest.mark.parametrize("control", ["on", "off"])
async def test_turns_have_the_rewards_of_the_conversation_cut_after_them(
    client: httpx.AsyncClient, control: str
) -> None:
    options = {"model": ["alpha", "beta"], "length_control": control == "on"}
    rows = (await post_rewards(client, inputs=[{"messages": CHAT}], explain="turns", **options))["data"]
    cut = (await post_rewards(client, inputs=[{"messages": CHAT[:2]}], **options))["data"]
    for row, earlier in zip(rows, cut, strict=True):
        assert [turn["message"] for turn in row["turns"]] == [1, 3]
        expected = [earlier["reward"], row["reward"]]
        assert [turn["reward"] for turn in row["turns"]] == pytest.approx(expected, abs=1e-5)
        total = row["baseline_reward"] + sum(turn["change"] for turn in row["turns"])
        assert total + row["length_correction"] == pytest.approx(row["reward"], abs=1e-9)
        assert bool(row["length_correction"]) == (control == "on")
        assert len(row["features"]) == 5
        assert "turns" not in earlier


async def test_each_of_several_responses_has_the_turns_before_it(client: httpx.AsyncClient) -> None:
    inputs = [{"messages": CHAT[:3], "responses": ["maple", "glass"]}, PAIR]
    first, second, other = (await post_rewards(client, inputs=inputs, explain="turns", top_k=0))["data"]
    assert first["turns"][0]["reward"] == pytest.approx(second["turns"][0]["reward"], abs=1e-5)
    assert [turn["message"] for turn in second["turns"]] == [1, 3]
    assert [(turn["message"], turn["reward"]) for turn in other["turns"]] == [(1, other["reward"])]
    assert first["features"] == []


async def test_a_contribution_has_exactly_the_fields_of_the_schema(client: httpx.AsyncClient) -> None:
    (row,) = (await post_rewards(client, inputs=[PAIR]))["data"]
    fields = {"model", "id", "sign", "label", "label_score", "label_items", "url"}
    fields |= {"contribution", "projection", "activation", "fired"}
    assert all(set(feature) == fields for feature in row["features"])
    listed = (await client.get(f"/v1/models/{row['model']}/features")).json()["data"]
    assert {"difference", "stability", "agreement"} <= set(listed[0])


async def test_explain_none_returns_no_explanation(client: httpx.AsyncClient) -> None:
    (row,) = (await post_rewards(client, inputs=[PAIR], explain="none"))["data"]
    assert row["features"] == []
    assert "tokens" not in row


async def test_steering_changes_the_reward_and_is_reported(client: httpx.AsyncClient) -> None:
    (plain,) = (await post_rewards(client, inputs=[PAIR]))["data"]
    latent = str(plain["features"][0]["id"])
    steered = await post_rewards(client, inputs=[PAIR], steer={latent: 0})
    assert steered["steer"] == {latent: 0}
    assert steered["data"][0]["reward"] != plain["reward"]


async def test_compare_returns_features_that_sum_to_the_margin(client: httpx.AsyncClient) -> None:
    body = {"pairs": [{"prompt": "seven", "chosen": "maple orbit", "rejected": "glass"}], "top_k": 1000}
    (row,) = (await client.post("/v1/compare", json=body)).json()["data"]
    assert row["margin"] == pytest.approx(row["chosen_reward"] - row["rejected_reward"], abs=1e-9)
    assert sum(f["contribution"] for f in row["features"]) == pytest.approx(row["margin"], abs=1e-5)
    assert row["probability"] == pytest.approx(1 / (1 + math.exp(-row["margin"] / 0.75)), abs=1e-9)


async def test_truncates_the_start_of_a_conversation_that_is_too_long(client: httpx.AsyncClient) -> None:
    too_long = {"prompt": "amber river " * 50_000, "response": "quiet stone"}
    response = await post_rewards(client, inputs=[too_long])
    (row,) = response["data"]
    assert row["truncated"]
    assert row["response_tokens"] == 2 + len("quiet") - 1
    assert row["prompt_tokens"] + row["response_tokens"] + 1 == 256
    rejected = await client.post("/v1/rewards", json={"inputs": [too_long], "truncate": False})
    assert rejected.status_code == 422
    assert "256" in rejected.json()["error"]["message"]
    assert rejected.json()["error"]["param"] == "inputs[0]"


async def test_lists_models_and_pages_of_features(client: httpx.AsyncClient) -> None:
    listed = (await client.get("/v1/models")).json()["data"]
    assert [card["id"] for card in listed] == sorted(tiny.MODELS)
    assert (await client.get("/v1/models/beta")).json()["readout"] == "end"
    assert {(card["sae_input"], card["head_kind"]) for card in listed} == {("tokens", "network")}
    reading = {"weighting": "worst", "sharpness": 2.0, "share": 0.7}
    assert {card["id"]: card["passages"] for card in listed if card["passages"]} == {"delta": reading}
    page = (await client.get("/v1/models/beta/features?offset=14&limit=5")).json()
    assert (page["total"], len(page["data"])) == (tiny.K, 2)
    latent = page["data"][0]["id"]
    assert (await client.get(f"/v1/models/beta/features/{latent}")).json() == page["data"][0]
    assert (await client.get("/v1/models/nobody")).json()["error"]["code"] == "unknown_model"
    assert (await client.get("/v1/models/beta/features/999")).json()["error"]["code"] == "unknown_latent"


async def test_a_feature_has_the_deciles_of_its_projections(
    client: httpx.AsyncClient, engine: Engine
) -> None:
    listed = (await client.get("/v1/models/beta/features")).json()["data"]
    model = engine.models["beta"]
    deciles = torch.tensor([feature["deciles"] for feature in listed], dtype=torch.float64)
    assert torch.allclose(model.head.standardise(deciles.T).T, model.calibration.standardised_deciles)
    assert (deciles.diff(dim=1) > 0).all()


async def test_health_readiness_version_and_docs_are_available(client: httpx.AsyncClient) -> None:
    for path in ("/health", "/ready", "/version", "/docs", "/openapi.json"):
        assert (await client.get(path)).status_code == 200, path


BAD_REQUESTS: dict[str, tuple[Any, int, str]] = {
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


@pytest.mark.parametrize("name", list(BAD_REQUESTS))
async def test_rejects_bad_input_and_names_the_field(client: httpx.AsyncClient, name: str) -> None:
    body, status, param = BAD_REQUESTS[name]
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    response = await client.post("/v1/rewards", content=content, headers={"Content-Type": "application/json"})
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert param in (error["param"] or "")
    assert (await client.post("/v1/rewards", json={"inputs": [PAIR]})).status_code == 200


async def test_the_error_of_too_many_items_names_the_limit(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/rewards", json={"inputs": [PAIR] * 20_000})
    assert "16384" in response.json()["error"]["message"]


async def test_rejects_a_body_over_the_limit(engine: Engine, settings: Settings) -> None:
    limited = settings.model_copy(update={"max_body_bytes": 2048})
    async with open_client(engine, limited) as client:
        response = await client.post("/v1/rewards", json={"inputs": [{**PAIR, "prompt": "x" * 4000}]})
    assert response.status_code == 413
    assert "2048" in response.json()["error"]["message"]


async def test_unknown_routes_and_methods_have_the_common_error_format(client: httpx.AsyncClient) -> None:
    assert (await client.get("/nowhere")).json()["error"]["type"] == "not_found_error"
    response = await client.get("/v1/rewards")
    assert (response.status_code, response.json()["error"]["code"]) == (405, "http_405")


async def test_errors_never_contain_text_of_the_request(client: httpx.AsyncClient) -> None:
    text = "lantern-lantern-lantern"
    response = await client.post("/v1/rewards", json={"inputs": [{"prompt": [text], "response": text}]})
    assert text not in response.text


async def test_concurrent_requests_share_batches_and_keep_their_scores(
    client: httpx.AsyncClient, engine: Engine
) -> None:
    items = tiny.random_items(48)
    expected = [
        scores[0].reward for scores in tiny.score_items(engine, items, ScoreOptions(("alpha",), Explain.NONE))
    ]
    bodies = [{"inputs": [{"prompt": item.messages[0].content, "response": item.response}]} for item in items]
    responses = await asyncio.gather(*(client.post("/v1/rewards", json=body) for body in bodies))
    served = [response.json()["data"][0]["reward"] for response in responses]
    assert served == pytest.approx(expected, abs=1e-5)
    text = (await client.get("/metrics")).text
    [batches] = [sample.value for sample in parse_samples(text, "sparserm_batch_items_count")]
    assert batches < len(items)


async def test_request_ids_are_kept_if_short_and_otherwise_created(client: httpx.AsyncClient) -> None:
    short = await client.get("/health", headers={"X-Request-Id": "abc-1"})
    too_long = await client.get("/health", headers={"X-Request-Id": "a" * 500})
    assert short.headers["x-request-id"] == "abc-1"
    assert len(too_long.headers["x-request-id"]) == 32
