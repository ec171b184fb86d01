"""All dialects give the same reward for the same conversation, and errors in their own format.

The files in golden/ hold a request and the response to it.

`python -m tests.serve.adapters.test_dialects` writes the responses in golden/ again.
"""

import asyncio
import base64
import json
import math
import struct
import tempfile
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.errors import SourceError
from app.reward import loading
from app.reward.engine import Engine
from app.serve.adapters import DIALECTS, select_routers
from app.settings import Settings
from tests.support import paths, tiny
from tests.support.servers import open_client

pytestmark = pytest.mark.anyio
GOLDEN_FILES = sorted(paths.GOLDEN.glob("*.json"))
PROMPT, RESPONSE = "amber river", "quiet stone"
PROMPT_TEXT = f"<|im_start|>user\n{PROMPT}<|im_end|>\n<|im_start|>assistant\n"
TEXT = f"{PROMPT_TEXT}{RESPONSE}<|im_end|>\n"
CHAT = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": RESPONSE}]
POLICY_OUTPUT = {"output": [{"type": "message", "content": [{"type": "output_text", "text": RESPONSE}]}]}
VARYING_FIELDS = {"id", "created"}
SAME_REWARD: list[tuple[str, dict[str, Any], Any]] = [
    ("/get_reward", {"query": [TEXT]}, lambda body: body["rewards"][0]),
    (
        "/get_reward",
        {"query": TEXT, "prompts": [PROMPT_TEXT], "labels": [None]},
        lambda body: body["rewards"][0],
    ),
    ("/v1/score/evaluation", {"model": "model", "messages": [TEXT]}, lambda body: body["scores"][0]),
    ("/slime", {"prompt": PROMPT_TEXT, "response": RESPONSE, "label": None}, lambda body: body),
    ("/slime", {"prompt": CHAT[:1], "response": RESPONSE, "label": "x"}, lambda body: body),
    ("/slime?key=score", {"prompt": PROMPT_TEXT, "response": RESPONSE}, lambda body: body["score"]),
    ("/classify", {"input": TEXT, "use_activation": False}, lambda body: body["data"][-1]["probs"][-1]),
    ("/classify", {"input": [TEXT], "activation": False}, lambda body: body["data"][0]["probs"][0]),
    ("/classify", {"messages": CHAT, "use_activation": False}, lambda body: body["data"][0]["probs"][0]),
    ("/classify", {"text": [TEXT]}, lambda body: body[0]["embedding"][0]),
    ("/classify", {"text": TEXT}, lambda body: body["embedding"][0]),
    ("/classify", {"input": [TEXT], "raw_scores": True}, lambda body: body["data"][0][0]["score"]),
    ("/pooling", {"input": TEXT}, lambda body: body["data"][0]["data"][0]),
    ("/pooling", {"messages": CHAT}, lambda body: body["data"][0]["data"][0]),
    ("/pooling", {"messages": [CHAT, CHAT]}, lambda body: body["data"][1]["data"][0]),
    ("/v1/embeddings", {"input": TEXT}, lambda body: body["data"][-1]["embedding"][-1]),
    (
        "/v1/embeddings",
        {"input": [TEXT], "encoding_format": "base64"},
        lambda body: struct.unpack("<f", base64.b64decode(body["data"][0]["embedding"]))[0],
    ),
    (
        "/score",
        {"queries": PROMPT, "documents": [RESPONSE], "use_activation": False},
        lambda body: body["data"][0]["score"],
    ),
    (
        "/v1/score",
        {"text_1": [PROMPT], "text_2": RESPONSE, "use_activation": False},
        lambda body: body["data"][0]["score"],
    ),
    (
        "/score",
        {"data_1": PROMPT, "data_2": RESPONSE, "activation": False},
        lambda body: body["data"][0]["score"],
    ),
    ("/v1/score", {"query": PROMPT, "items": [RESPONSE]}, lambda body: body["scores"][0][0]),
    (
        "/rerank",
        {"query": PROMPT, "documents": [RESPONSE], "raw_scores": True},
        lambda body: body["results"][0]["relevance_score"],
    ),
    (
        "/v2/rerank",
        {"query": PROMPT, "documents": [{"text": RESPONSE}], "use_activation": False},
        lambda body: body["results"][0]["relevance_score"],
    ),
    ("/rerank", {"query": PROMPT, "texts": [RESPONSE], "raw_scores": True}, lambda body: body[0]["score"]),
    ("/predict", {"inputs": TEXT, "raw_scores": True}, lambda body: body[0]["score"]),
    ("/predict", {"inputs": [PROMPT, RESPONSE], "raw_scores": True}, lambda body: body[0]["score"]),
    ("/predict", {"inputs": [[PROMPT, RESPONSE]], "raw_scores": True}, lambda body: body[0][0]["score"]),
    (
        "/verify",
        {"responses_create_params": {"input": CHAT[:1]}, "response": POLICY_OUTPUT},
        lambda body: body["reward"],
    ),
]  # fmt: skip
BAD_REQUESTS: list[tuple[str, Any, int, Any]] = [
    ("/get_reward", {}, 422, lambda body: body["error"]["param"] == "query"),
    (
        "/get_reward",
        {"query": ["x"], "model": "nobody"},
        404,
        lambda body: body["error"]["code"] == "unknown_model",
    ),
    ("/v1/score/evaluation", {"messages": []}, 400, lambda body: set(body) == {"detail"}),
    ("/slime", {"prompt": "x"}, 422, lambda body: body["error"]["param"] == "response"),
    ("/classify", {"input": []}, 400, lambda body: body["error"]["code"] == 400),
    ("/classify", {}, 400, lambda body: body["error"]["type"] == "BadRequestError"),
    (
        "/classify",
        {"input": "x", "model": "nobody"},
        404,
        lambda body: body["error"]["type"] == "NotFoundError",
    ),
    ("/pooling", {"messages": CHAT[:1] * 2}, 400, lambda body: "assistant" in body["error"]["message"]),
    ("/v1/embeddings", {"input": [[1, 2]]}, 400, lambda body: body["error"]["param"].startswith("input")),
    (
        "/score",
        {"queries": ["a", "b"], "documents": ["c"]},
        400,
        lambda body: body["error"]["param"] == "queries",
    ),
    ("/rerank", {"query": "x"}, 400, lambda body: body["error"]["param"] == "documents"),
    ("/rerank", {"query": "x", "texts": []}, 422, lambda body: body["error_type"] == "Validation"),
    ("/predict", {"inputs": [["a", "b", "c"]]}, 422, lambda body: body["error_type"] == "Validation"),
    ("/get_reward?mode=guess", {"query": ["x"]}, 422, lambda body: body["error"]["param"] == "mode"),
    (
        "/verify",
        {"response": POLICY_OUTPUT},
        422,
        lambda body: body["error"]["param"] == "responses_create_params",
    ),
]


@pytest.fixture
async def client(engine: Engine, settings: Settings) -> Any:
    async with open_client(engine, settings) as client:
        yield client


async def post_reward(client: httpx.AsyncClient, **fields: Any) -> float:
    body = {"inputs": [{"prompt": PROMPT, "response": RESPONSE}], **fields}
    return float((await client.post("/v1/rewards", json=body)).json()["data"][0]["reward"])


@pytest.mark.parametrize(
    ("path", "body", "read_reward"), SAME_REWARD, ids=lambda v: v if isinstance(v, str) else ""
)
async def test_every_dialect_gives_the_same_reward(
    path: str, body: Any, read_reward: Any, client: httpx.AsyncClient
) -> None:
    response = await client.post(path, json=body)
    assert response.status_code == 200, response.text
    assert read_reward(response.json()) == pytest.approx(await post_reward(client), abs=1e-5)


@pytest.mark.parametrize(("path", "body", "status", "is_expected"), BAD_REQUESTS, ids=lambda v: str(v)[:20])
async def test_errors_have_the_format_of_the_dialect(
    path: str, body: Any, status: int, is_expected: Any, client: httpx.AsyncClient
) -> None:
    response = await client.post(path, json=body)
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert is_expected(response.json()), response.text


@pytest.mark.parametrize("file", GOLDEN_FILES, ids=lambda file: file.stem)
async def test_golden_requests_get_golden_responses(file: Path, client: httpx.AsyncClient) -> None:
    golden = json.loads(await asyncio.to_thread(file.read_text))
    response = await client.request(golden["method"], golden["path"], json=golden["request"])
    assert response.status_code == golden["status"], response.text
    assert bodies_match(response.json(), golden["answer"]), response.text


def test_every_dialect_has_a_golden_file() -> None:
    assert {file.stem.partition(".")[0] for file in GOLDEN_FILES} == set(DIALECTS)


async def test_rejects_invalid_and_too_large_bodies_in_the_format_of_the_dialect(
    engine: Engine, settings: Settings
) -> None:
    limited = settings.model_copy(update={"max_body_bytes": 2000})
    for content, statuses in (("{", (400, 422)), (json.dumps({"inputs": "x" * 3000}), (413,))):
        async with open_client(engine, limited) as client:
            tei = await client.post("/predict", content=content, headers={"Content-Type": "application/json"})
            vllm = await client.post(
                "/classify", content=content, headers={"Content-Type": "application/json"}
            )
        assert tei.status_code in statuses
        assert tei.json()["error_type"] == "Validation"
        assert vllm.status_code in statuses
        assert vllm.json()["error"]["code"] == vllm.status_code


async def test_an_empty_query_gets_empty_lists(client: httpx.AsyncClient) -> None:
    response = (await client.post("/get_reward", json={"query": [], "prompts": [], "labels": []})).json()
    assert response["rewards"] == response["scores"] == []
    assert all(value == [] for value in response["extra_logs"].values())


async def test_extra_logs_always_have_the_same_keys_with_numbers(client: httpx.AsyncClient) -> None:
    keys = set()
    for text in (TEXT, "no markup at all", ""):
        response = (await client.post("/get_reward", json={"query": [text]})).json()
        assert all(isinstance(value, float) for values in response["extra_logs"].values() for value in values)
        assert 0 <= response["scores"][0] <= 1
        keys.add(tuple(response["extra_logs"]))
    assert len(keys) == 1


async def test_applies_a_sigmoid_where_the_original_server_does(client: httpx.AsyncClient) -> None:
    raw_reward = await post_reward(client)
    expected = pytest.approx(1 / (1 + math.exp(-raw_reward)), abs=1e-6)
    requests: list[tuple[str, dict[str, Any], Any]] = [
        ("/classify", {"input": TEXT}, lambda body: body["data"][0]["probs"][0]),
        (
            "/classify",
            {"input": [TEXT], "raw_scores": False},
            lambda body: body["data"][0][0]["score"],
        ),
        ("/score", {"text_1": PROMPT, "text_2": RESPONSE}, lambda body: body["data"][0]["score"]),
        (
            "/rerank",
            {"query": PROMPT, "documents": [RESPONSE]},
            lambda body: body["results"][0]["relevance_score"],
        ),
        ("/predict", {"inputs": TEXT}, lambda body: body[0]["score"]),
        (
            "/pooling",
            {"input": TEXT, "use_activation": True},
            lambda body: body["data"][0]["data"][0],
        ),
    ]
    for path, body, read_score in requests:
        assert read_score((await client.post(path, json=body)).json()) == expected


async def test_reranking_returns_the_best_first(client: httpx.AsyncClient) -> None:
    documents = [*tiny.WORDS[:6], ""]
    body = {"query": PROMPT, "documents": documents, "top_n": 3}
    results = (await client.post("/rerank", json=body)).json()["results"]
    scores = [row["relevance_score"] for row in results]
    assert len(results) == 3
    assert scores == sorted(scores, reverse=True)
    assert [row["document"]["text"] for row in results] == [documents[row["index"]] for row in results]


async def test_takes_the_model_from_the_body_the_path_or_the_default(client: httpx.AsyncClient) -> None:
    rewards = {name: await post_reward(client, model=name) for name in ("alpha", "beta")}
    assert rewards["alpha"] != rewards["beta"]
    for path, body, model in (
        ("/get_reward", {"query": [TEXT]}, "alpha"),
        ("/get_reward", {"query": [TEXT], "model": "beta"}, "beta"),
        ("/m/beta/get_reward", {"query": [TEXT]}, "beta"),
        ("/m/beta/get_reward", {"query": [TEXT], "model": "alpha"}, "alpha"),
        ("/m/beta/get_reward", {"query": [TEXT], "model": "/some/path"}, "beta"),
    ):
        response = (await client.post(path, json=body)).json()
        assert response["rewards"][0] == pytest.approx(rewards[model], abs=1e-5), path
    assert (await client.post("/m/nobody/get_reward", json={"query": [TEXT]})).status_code == 404
    assert (await client.get("/m/nobody/info")).json()["error_type"] == "Validation"
    assert (await client.get("/m/beta/info")).json()["model_id"] == "beta"


async def test_takes_the_mode_from_the_url_and_counts_it(client: httpx.AsyncClient) -> None:
    body = {"query": [TEXT], "prompts": [PROMPT_TEXT]}
    rewards = [
        (await client.post(f"/get_reward?mode={mode}", json=body)).json()["rewards"][0]
        for mode in ("retemplate", "split", "as-is")
    ]
    assert len(set(rewards)) == 3
    series = (await client.get("/metrics")).text
    assert 'sparserm_rendered_total{family="chatml",mode="retemplate",route="/get_reward"} 1.0' in series
    assert 'sparserm_rendered_total{family="none",mode="as-is",route="/get_reward"} 1.0' in series


async def test_serves_only_the_dialects_in_the_settings(engine: Engine, settings: Settings) -> None:
    async with open_client(engine, settings.model_copy(update={"dialects": "openrlhf, tei"})) as client:
        assert (await client.post("/get_reward", json={"query": []})).status_code == 200
        assert (await client.post("/slime", json={"prompt": "a", "response": "b"})).status_code == 404
    with pytest.raises(SourceError, match="no dialect 'klingon'"):
        select_routers(("klingon",))


def bodies_match(left: Any, right: Any) -> bool:
    """Return whether two bodies are equal, except for ids, times and the last digits of numbers."""
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(
            k in VARYING_FIELDS or bodies_match(left[k], right[k]) for k in left
        )
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(bodies_match(a, b) for a, b in zip(left, right, strict=True))
    if isinstance(left, float) and isinstance(right, float):
        return left == pytest.approx(right, abs=1e-3)
    return bool(left == right)


async def _write_golden_files() -> None:
    with tempfile.TemporaryDirectory() as folder:
        settings = tiny.build_models(Path(folder))
        async with open_client(loading.load_engine(settings, lambda *_: None), settings) as client:
            for file in GOLDEN_FILES:
                golden = json.loads(await asyncio.to_thread(file.read_text))
                response = await client.request(golden["method"], golden["path"], json=golden["request"])
                golden |= {"status": response.status_code, "answer": response.json()}
                content = json.dumps(golden, indent=1, ensure_ascii=False) + "\n"
                await asyncio.to_thread(file.write_text, content)


if __name__ == "__main__":
    asyncio.run(_write_golden_files())
