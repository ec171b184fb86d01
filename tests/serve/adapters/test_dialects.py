"""Every dialect: golden requests and answers, one reward for one conversation, errors in its own words.

`python -m tests.serve.adapters.test_dialects` writes the answers of tests/dialects/ again.
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
GOLDEN = sorted(paths.GOLDEN.glob("*.json"))
PROMPT, RESPONSE = "amber river", "quiet stone"
ASKED = f"<|im_start|>user\n{PROMPT}<|im_end|>\n<|im_start|>assistant\n"
TEXT = f"{ASKED}{RESPONSE}<|im_end|>\n"
CHAT = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": RESPONSE}]
SAID = {"output": [{"type": "message", "content": [{"type": "output_text", "text": RESPONSE}]}]}
NEW = {"id", "created"}
SAME: list[tuple[str, dict[str, Any], Any]] = [
    ("/get_reward", {"query": [TEXT]}, lambda a: a["rewards"][0]),
    ("/get_reward", {"query": TEXT, "prompts": [ASKED], "labels": [None]}, lambda a: a["rewards"][0]),
    ("/v1/score/evaluation", {"model": "model", "messages": [TEXT]}, lambda a: a["scores"][0]),
    ("/slime", {"prompt": ASKED, "response": RESPONSE, "label": None}, lambda a: a),
    ("/slime", {"prompt": CHAT[:1], "response": RESPONSE, "label": "x"}, lambda a: a),
    ("/slime?key=score", {"prompt": ASKED, "response": RESPONSE}, lambda a: a["score"]),
    ("/classify", {"input": TEXT, "use_activation": False}, lambda a: a["data"][-1]["probs"][-1]),
    ("/classify", {"input": [TEXT], "activation": False}, lambda a: a["data"][0]["probs"][0]),
    ("/classify", {"messages": CHAT, "use_activation": False}, lambda a: a["data"][0]["probs"][0]),
    ("/classify", {"text": [TEXT]}, lambda a: a[0]["embedding"][0]),
    ("/classify", {"text": TEXT}, lambda a: a["embedding"][0]),
    ("/classify", {"input": [TEXT], "raw_scores": True}, lambda a: a["data"][0][0]["score"]),
    ("/pooling", {"input": TEXT}, lambda a: a["data"][0]["data"][0]),
    ("/pooling", {"messages": CHAT}, lambda a: a["data"][0]["data"][0]),
    ("/pooling", {"messages": [CHAT, CHAT]}, lambda a: a["data"][1]["data"][0]),
    ("/v1/embeddings", {"input": TEXT}, lambda a: a["data"][-1]["embedding"][-1]),
    (
        "/v1/embeddings",
        {"input": [TEXT], "encoding_format": "base64"},
        lambda a: struct.unpack("<f", base64.b64decode(a["data"][0]["embedding"]))[0],
    ),
    (
        "/score",
        {"queries": PROMPT, "documents": [RESPONSE], "use_activation": False},
        lambda a: a["data"][0]["score"],
    ),
    (
        "/v1/score",
        {"text_1": [PROMPT], "text_2": RESPONSE, "use_activation": False},
        lambda a: a["data"][0]["score"],
    ),
    (
        "/score",
        {"data_1": PROMPT, "data_2": RESPONSE, "activation": False},
        lambda a: a["data"][0]["score"],
    ),
    ("/v1/score", {"query": PROMPT, "items": [RESPONSE]}, lambda a: a["scores"][0][0]),
    (
        "/rerank",
        {"query": PROMPT, "documents": [RESPONSE], "raw_scores": True},
        lambda a: a["results"][0]["relevance_score"],
    ),
    (
        "/v2/rerank",
        {"query": PROMPT, "documents": [{"text": RESPONSE}], "use_activation": False},
        lambda a: a["results"][0]["relevance_score"],
    ),
    ("/rerank", {"query": PROMPT, "texts": [RESPONSE], "raw_scores": True}, lambda a: a[0]["score"]),
    ("/predict", {"inputs": TEXT, "raw_scores": True}, lambda a: a[0]["score"]),
    ("/predict", {"inputs": [PROMPT, RESPONSE], "raw_scores": True}, lambda a: a[0]["score"]),
    ("/predict", {"inputs": [[PROMPT, RESPONSE]], "raw_scores": True}, lambda a: a[0][0]["score"]),
    (
        "/verify",
        {"responses_create_params": {"input": CHAT[:1]}, "response": SAID},
        lambda a: a["reward"],
    ),
]  # fmt: skip
WRONG: list[tuple[str, Any, int, Any]] = [
    ("/get_reward", {}, 422, lambda a: a["error"]["param"] == "query"),
    (
        "/get_reward",
        {"query": ["x"], "model": "nobody"},
        404,
        lambda a: a["error"]["code"] == "unknown_model",
    ),
    ("/v1/score/evaluation", {"messages": []}, 400, lambda a: set(a) == {"detail"}),
    ("/slime", {"prompt": "x"}, 422, lambda a: a["error"]["param"] == "response"),
    ("/classify", {"input": []}, 400, lambda a: a["error"]["code"] == 400),
    ("/classify", {}, 400, lambda a: a["error"]["type"] == "BadRequestError"),
    ("/classify", {"input": "x", "model": "nobody"}, 404, lambda a: a["error"]["type"] == "NotFoundError"),
    ("/pooling", {"messages": CHAT[:1] * 2}, 400, lambda a: "assistant" in a["error"]["message"]),
    ("/v1/embeddings", {"input": [[1, 2]]}, 400, lambda a: a["error"]["param"].startswith("input")),
    ("/score", {"queries": ["a", "b"], "documents": ["c"]}, 400, lambda a: a["error"]["param"] == "queries"),
    ("/rerank", {"query": "x"}, 400, lambda a: a["error"]["param"] == "documents"),
    ("/rerank", {"query": "x", "texts": []}, 422, lambda a: a["error_type"] == "Validation"),
    ("/predict", {"inputs": [["a", "b", "c"]]}, 422, lambda a: a["error_type"] == "Validation"),
    ("/get_reward?mode=guess", {"query": ["x"]}, 422, lambda a: a["error"]["param"] == "mode"),
    ("/verify", {"response": SAID}, 422, lambda a: a["error"]["param"] == "responses_create_params"),
]


@pytest.fixture
async def client(engine: Engine, settings: Settings) -> Any:
    async with open_client(engine, settings) as client:
        yield client


async def reward(client: httpx.AsyncClient, **more: Any) -> float:
    body = {"inputs": [{"prompt": PROMPT, "response": RESPONSE}], **more}
    return float((await client.post("/v1/rewards", json=body)).json()["data"][0]["reward"])


@pytest.mark.parametrize(("path", "body", "found"), SAME, ids=lambda v: v if isinstance(v, str) else "")
async def test_every_dialect_gives_the_same_reward(
    path: str, body: Any, found: Any, client: httpx.AsyncClient
) -> None:
    answer = await client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    assert found(answer.json()) == pytest.approx(await reward(client), abs=1e-5)


@pytest.mark.parametrize(("path", "body", "status", "holds"), WRONG, ids=lambda v: str(v)[:20])
async def test_errors_are_said_in_the_dialect(
    path: str, body: Any, status: int, holds: Any, client: httpx.AsyncClient
) -> None:
    answer = await client.post(path, json=body)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert holds(answer.json()), answer.text


@pytest.mark.parametrize("file", GOLDEN, ids=lambda file: file.stem)
async def test_golden_requests_get_golden_answers(file: Path, client: httpx.AsyncClient) -> None:
    golden = json.loads(await asyncio.to_thread(file.read_text))
    answer = await client.request(golden["method"], golden["path"], json=golden["request"])
    assert answer.status_code == golden["status"], answer.text
    assert alike(answer.json(), golden["answer"]), answer.text


def test_every_dialect_has_a_golden_file() -> None:
    assert {file.stem.partition(".")[0] for file in GOLDEN} == set(DIALECTS)


async def test_broken_and_oversized_bodies_are_refused_in_the_dialect(
    engine: Engine, settings: Settings
) -> None:
    small = settings.model_copy(update={"max_body_bytes": 2000})
    for text, statuses in (("{", (400, 422)), (json.dumps({"inputs": "x" * 3000}), (413,))):
        async with open_client(engine, small) as client:
            tei = await client.post("/predict", content=text, headers={"Content-Type": "application/json"})
            vllm = await client.post("/classify", content=text, headers={"Content-Type": "application/json"})
        assert tei.status_code in statuses
        assert tei.json()["error_type"] == "Validation"
        assert vllm.status_code in statuses
        assert vllm.json()["error"]["code"] == vllm.status_code


async def test_an_empty_query_gets_empty_lists(client: httpx.AsyncClient) -> None:
    answer = (await client.post("/get_reward", json={"query": [], "prompts": [], "labels": []})).json()
    assert answer["rewards"] == answer["scores"] == []
    assert all(value == [] for value in answer["extra_logs"].values())


async def test_extra_logs_are_numbers_under_the_same_keys(client: httpx.AsyncClient) -> None:
    keys = set()
    for text in (TEXT, "no markup at all", ""):
        answer = (await client.post("/get_reward", json={"query": [text]})).json()
        assert all(isinstance(value, float) for values in answer["extra_logs"].values() for value in values)
        assert 0 <= answer["scores"][0] <= 1
        keys.add(tuple(answer["extra_logs"]))
    assert len(keys) == 1


async def test_a_sigmoid_where_the_server_would_put_one(client: httpx.AsyncClient) -> None:
    raw = await reward(client)
    even = pytest.approx(1 / (1 + math.exp(-raw)), abs=1e-6)
    asked: list[tuple[str, dict[str, Any], Any]] = [
        ("/classify", {"input": TEXT}, lambda a: a["data"][0]["probs"][0]),
        ("/classify", {"input": [TEXT], "raw_scores": False}, lambda a: a["data"][0][0]["score"]),
        ("/score", {"text_1": PROMPT, "text_2": RESPONSE}, lambda a: a["data"][0]["score"]),
        (
            "/rerank",
            {"query": PROMPT, "documents": [RESPONSE]},
            lambda a: a["results"][0]["relevance_score"],
        ),
        ("/predict", {"inputs": TEXT}, lambda a: a[0]["score"]),
        ("/pooling", {"input": TEXT, "use_activation": True}, lambda a: a["data"][0]["data"][0]),
    ]
    for path, body, found in asked:
        assert found((await client.post(path, json=body)).json()) == even


async def test_reranking_puts_the_best_first(client: httpx.AsyncClient) -> None:
    documents = [*tiny.WORDS[:6], ""]
    body = {"query": PROMPT, "documents": documents, "top_n": 3}
    results = (await client.post("/rerank", json=body)).json()["results"]
    scores = [row["relevance_score"] for row in results]
    assert len(results) == 3
    assert scores == sorted(scores, reverse=True)
    assert [row["document"]["text"] for row in results] == [documents[row["index"]] for row in results]


async def test_the_model_comes_from_the_body_or_the_path_or_by_default(client: httpx.AsyncClient) -> None:
    mine = {name: await reward(client, model=name) for name in ("alpha", "beta")}
    assert mine["alpha"] != mine["beta"]
    for path, body, wanted in (
        ("/get_reward", {"query": [TEXT]}, "alpha"),
        ("/get_reward", {"query": [TEXT], "model": "beta"}, "beta"),
        ("/m/beta/get_reward", {"query": [TEXT]}, "beta"),
        ("/m/beta/get_reward", {"query": [TEXT], "model": "alpha"}, "alpha"),
        ("/m/beta/get_reward", {"query": [TEXT], "model": "/some/path"}, "beta"),
    ):
        answer = (await client.post(path, json=body)).json()
        assert answer["rewards"][0] == pytest.approx(mine[wanted], abs=1e-5), path
    assert (await client.post("/m/nobody/get_reward", json={"query": [TEXT]})).status_code == 404
    assert (await client.get("/m/nobody/info")).json()["error_type"] == "Validation"
    assert (await client.get("/m/beta/info")).json()["model_id"] == "beta"


async def test_the_mode_comes_from_the_url_and_is_counted(client: httpx.AsyncClient) -> None:
    body = {"query": [TEXT], "prompts": [ASKED]}
    rewards = [
        (await client.post(f"/get_reward?mode={mode}", json=body)).json()["rewards"][0]
        for mode in ("retemplate", "split", "as-is")
    ]
    assert len(set(rewards)) == 3
    series = (await client.get("/metrics")).text
    assert 'sparserm_rendered_total{family="chatml",mode="retemplate",route="/get_reward"} 1.0' in series
    assert 'sparserm_rendered_total{family="none",mode="as-is",route="/get_reward"} 1.0' in series


async def test_dialects_can_be_switched_off(engine: Engine, settings: Settings) -> None:
    async with open_client(engine, settings.model_copy(update={"dialects": "openrlhf, tei"})) as client:
        assert (await client.post("/get_reward", json={"query": []})).status_code == 200
        assert (await client.post("/slime", json={"prompt": "a", "response": "b"})).status_code == 404
    with pytest.raises(SourceError, match="no dialect 'klingon'"):
        select_routers(("klingon",))


def alike(left: Any, right: Any) -> bool:
    """Equal but for ids, times and the last digits of numbers."""
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(k in NEW or alike(left[k], right[k]) for k in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(alike(a, b) for a, b in zip(left, right, strict=True))
    if isinstance(left, float) and isinstance(right, float):
        return left == pytest.approx(right, abs=1e-3)
    return bool(left == right)


async def _rewrite() -> None:
    with tempfile.TemporaryDirectory() as folder:
        settings = tiny.build_models(Path(folder))
        async with open_client(loading.load_engine(settings, lambda *_: None), settings) as client:
            for file in GOLDEN:
                golden = json.loads(await asyncio.to_thread(file.read_text))
                answer = await client.request(golden["method"], golden["path"], json=golden["request"])
                golden |= {"status": answer.status_code, "answer": answer.json()}
                text = json.dumps(golden, indent=1, ensure_ascii=False) + "\n"
                await asyncio.to_thread(file.write_text, text)


if __name__ == "__main__":
    asyncio.run(_rewrite())
