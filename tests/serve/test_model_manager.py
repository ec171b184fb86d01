"""Hot changes: models come, change and go under load; nothing fails, nothing mixes, nothing is kept."""

import asyncio
import gc
import shutil
import weakref
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from prometheus_client import CollectorRegistry
from pydantic import SecretStr
from safetensors.torch import load_file, save_file

from app.reward import bundle, loading
from app.reward.engine import Engine
from app.serve.application import create_app
from app.settings import Settings
from app.types import ScoreOptions
from tests.support import tiny
from tests.support.servers import server, serving

pytestmark = pytest.mark.anyio
ADMIN = {"X-API-Key": "boss"}
EXCHANGES = tiny.random_items(6)
INPUTS = [{"prompt": e.messages[0].content, "response": e.response} for e in EXCHANGES]


@pytest.fixture
def kept(settings: Settings, tmp_path: Path) -> Settings:
    """The tiny world with a models folder of its own, and keys."""
    shutil.copytree(settings.models_dir, tmp_path / "models")
    keys = SecretStr("worker,admin=boss")
    return settings.model_copy(update={"models_dir": tmp_path / "models", "api_keys": keys})


@pytest.fixture
async def client(kept: Settings) -> AsyncIterator[httpx.AsyncClient]:
    async with server(loading.load_engine(kept, lambda *_: None), kept) as client:
        client.headers.update(ADMIN)
        yield client


def retrained(kept: Settings, name: str, seed: int) -> list[float]:
    """Another head for a model on disk; the rewards it gives."""
    engine = loading.load_engine(kept, lambda *_: None)
    card = engine.models[name].card
    made = tiny.make_reward_model(
        name, engine.backbone, engine.text, layer=card.layer, readout=card.readout, seed=seed
    )
    bundle.save_bundle(made, kept.models_dir / name)
    found = tiny.score_items(loading.load_engine(kept, lambda *_: None), EXCHANGES, ScoreOptions((name,)))
    return [score.reward for (score,) in found]


async def rewards(client: httpx.AsyncClient, name: str) -> list[float]:
    answer = await client.post("/v1/rewards", json={"model": name, "inputs": INPUTS, "top_k": 0})
    assert answer.status_code == 200, answer.text
    return [row["reward"] for row in answer.json()["data"]]


async def test_a_reload_under_load_fails_nothing_and_mixes_nothing(
    client: httpx.AsyncClient, kept: Settings
) -> None:
    versions = [await rewards(client, "beta")]
    seen: list[list[float]] = []
    done = asyncio.Event()

    async def ask_on() -> None:
        while not done.is_set():
            seen.append(await rewards(client, "beta"))

    asking = [asyncio.create_task(ask_on()) for _ in range(8)]
    for seed in (50, 51, 52):
        versions.append(await asyncio.to_thread(retrained, kept, "beta", seed))
        answer = await client.post("/v1/models/beta/reload")
        assert answer.json() == {"id": "beta", "change": "reloaded"}
        assert await rewards(client, "beta") == pytest.approx(versions[-1], abs=1e-5)
    done.set()
    await asyncio.gather(*asking)
    for found in seen:
        assert any(found == pytest.approx(version, abs=1e-5) for version in versions)


async def test_a_model_goes_and_comes_back(client: httpx.AsyncClient) -> None:
    before = await rewards(client, "gamma")
    assert (await client.post("/v1/models/gamma/unload")).status_code == 200
    assert (await client.post("/v1/rewards", json={"model": "gamma", "inputs": INPUTS})).status_code == 404
    assert "gamma" not in {card["id"] for card in (await client.get("/v1/models")).json()["data"]}
    assert 'model="gamma"' not in "\n".join(
        line for line in (await client.get("/metrics")).text.splitlines() if "model_info" in line
    )
    assert (await client.post("/v1/models/gamma/load")).json()["change"] == "loaded"
    assert await rewards(client, "gamma") == pytest.approx(before, abs=1e-5)


async def test_what_cannot_be_served_changes_nothing(client: httpx.AsyncClient, kept: Settings) -> None:
    before = await rewards(client, "beta")
    weights = kept.models_dir / "beta" / "weights.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(weights).items()}
    tensors["head.w2"] = tensors["head.w2"] * 2
    save_file(tensors, weights)
    half = await client.post("/v1/models/beta/reload")
    assert (half.status_code, half.json()["error"]["code"]) == (409, "bundle_refused")
    assert "sha256" in half.json()["error"]["message"]
    tiny.rewrite_digests(kept.models_dir / "beta")
    wrong = await client.post("/v1/models/beta/reload")
    assert "probe 0 scores" in wrong.json()["error"]["message"]
    weights.unlink()
    assert (await client.post("/v1/models/beta/reload")).status_code == 409
    assert await rewards(client, "beta") == before


async def test_a_deeper_model_asks_for_a_restart(kept: Settings) -> None:
    shallow = kept.model_copy(update={"models": "gamma"})
    async with server(loading.load_engine(shallow, lambda *_: None), shallow) as client:
        answer = await client.post("/v1/models/alpha/load", headers=ADMIN)
    assert answer.status_code == 409
    assert "restart" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("alpha/unload", 409),
        ("beta/load", 409),
        ("nobody/load", 404),
        ("nobody/reload", 404),
        ("..%2f..%2fetc/load", 404),
        ("%2e%2e/load", 404),
    ],
)
async def test_changes_that_make_no_sense_are_refused(
    client: httpx.AsyncClient, path: str, status: int
) -> None:
    assert (await client.post(f"/v1/models/{path}")).status_code == status


async def test_a_head_of_a_composite_stays(kept: Settings) -> None:
    (kept.models_dir / "composites.toml").write_text("[both]\nweights = {alpha = 1.0, beta = 1.0}\n")
    async with server(loading.load_engine(kept, lambda *_: None), kept) as client:
        answer = await client.post("/v1/models/beta/unload", headers=ADMIN)
    assert "both" in answer.json()["error"]["message"]


async def test_only_an_admin_changes_models(
    client: httpx.AsyncClient, engine: Engine, settings: Settings
) -> None:
    answer = await client.post("/v1/models/beta/reload", headers={"X-API-Key": "worker"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "forbidden")
    async with server(engine, settings) as keyless:
        assert (await keyless.post("/v1/models/beta/reload")).status_code == 403


async def test_old_weights_are_freed(kept: Settings) -> None:
    app = create_app(loading.load_engine(kept, lambda *_: None), kept, CollectorRegistry())
    old = weakref.ref(app.state.engine.models["beta"].head.w1)
    async with serving(app) as client:
        client.headers.update(ADMIN)
        before = await rewards(client, "beta")
        await asyncio.to_thread(retrained, kept, "beta", 60)
        assert (await client.post("/v1/models/beta/reload")).status_code == 200
        assert await rewards(client, "beta") != before
        gc.collect()
        assert old() is None
