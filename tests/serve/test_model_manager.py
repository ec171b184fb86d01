"""Changing models under load: no request fails or mixes versions, and old weights are freed."""

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
from tests.support.servers import open_app_client, open_client

pytestmark = pytest.mark.anyio
ADMIN = {"X-API-Key": "admin-key"}
ITEMS = tiny.random_items(6)
INPUTS = [{"prompt": item.messages[0].content, "response": item.response} for item in ITEMS]


@pytest.fixture
def own_settings(settings: Settings, tmp_path: Path) -> Settings:
    """The test settings with a models folder of their own, and API keys."""
    shutil.copytree(settings.models_dir, tmp_path / "models")
    keys = SecretStr("score-key,admin=admin-key")
    return settings.model_copy(update={"models_dir": tmp_path / "models", "api_keys": keys})


@pytest.fixture
async def client(own_settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    async with open_client(loading.load_engine(own_settings, lambda *_: None), own_settings) as client:
        client.headers.update(ADMIN)
        yield client


def replace_on_disk(own_settings: Settings, name: str, seed: int) -> list[float]:
    """Replace a model on disk by one with another head; return the new rewards."""
    engine = loading.load_engine(own_settings, lambda *_: None)
    card = engine.models[name].card
    model = tiny.make_reward_model(
        name, engine.backbone, engine.text, layer=card.layer, pooling=card.readout, seed=seed
    )
    bundle.save_bundle(model, own_settings.models_dir / name)
    scores = tiny.score_items(
        loading.load_engine(own_settings, lambda *_: None), ITEMS, ScoreOptions((name,))
    )
    return [score.reward for (score,) in scores]


async def request_rewards(client: httpx.AsyncClient, name: str) -> list[float]:
    response = await client.post("/v1/rewards", json={"model": name, "inputs": INPUTS, "top_k": 0})
    assert response.status_code == 200, response.text
    return [row["reward"] for row in response.json()["data"]]


async def test_a_reload_under_load_fails_no_request_and_mixes_no_versions(
    client: httpx.AsyncClient, own_settings: Settings
) -> None:
    versions = [await request_rewards(client, "beta")]
    observed: list[list[float]] = []
    done = asyncio.Event()

    async def request_repeatedly() -> None:
        while not done.is_set():
            observed.append(await request_rewards(client, "beta"))

    tasks = [asyncio.create_task(request_repeatedly()) for _ in range(8)]
    for seed in (50, 51, 52):
        versions.append(await asyncio.to_thread(replace_on_disk, own_settings, "beta", seed))
        response = await client.post("/v1/models/beta/reload")
        assert response.json() == {"id": "beta", "change": "reloaded"}
        assert await request_rewards(client, "beta") == pytest.approx(versions[-1], abs=1e-5)
    done.set()
    await asyncio.gather(*tasks)
    for rewards in observed:
        assert any(rewards == pytest.approx(version, abs=1e-5) for version in versions)


async def test_a_model_is_unloaded_and_loaded_again(client: httpx.AsyncClient) -> None:
    before = await request_rewards(client, "gamma")
    assert (await client.post("/v1/models/gamma/unload")).status_code == 200
    assert (await client.post("/v1/rewards", json={"model": "gamma", "inputs": INPUTS})).status_code == 404
    assert "gamma" not in {card["id"] for card in (await client.get("/v1/models")).json()["data"]}
    assert 'model="gamma"' not in "\n".join(
        line for line in (await client.get("/metrics")).text.splitlines() if "model_info" in line
    )
    assert (await client.post("/v1/models/gamma/load")).json()["change"] == "loaded"
    assert await request_rewards(client, "gamma") == pytest.approx(before, abs=1e-5)


async def test_a_bundle_that_cannot_be_served_changes_nothing(
    client: httpx.AsyncClient, own_settings: Settings
) -> None:
    before = await request_rewards(client, "beta")
    weights = own_settings.models_dir / "beta" / "weights.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(weights).items()}
    tensors["head.w2"] = tensors["head.w2"] * 2
    save_file(tensors, weights)
    wrong_digest = await client.post("/v1/models/beta/reload")
    assert (wrong_digest.status_code, wrong_digest.json()["error"]["code"]) == (409, "bundle_refused")
    assert "sha256" in wrong_digest.json()["error"]["message"]
    tiny.rewrite_digests(own_settings.models_dir / "beta")
    wrong_rewards = await client.post("/v1/models/beta/reload")
    assert "probe 0 scores" in wrong_rewards.json()["error"]["message"]
    weights.unlink()
    assert (await client.post("/v1/models/beta/reload")).status_code == 409
    assert await request_rewards(client, "beta") == before


async def test_a_model_on_a_deeper_layer_requires_a_restart(own_settings: Settings) -> None:
    shallow = own_settings.model_copy(update={"models": "gamma"})
    async with open_client(loading.load_engine(shallow, lambda *_: None), shallow) as client:
        response = await client.post("/v1/models/alpha/load", headers=ADMIN)
    assert response.status_code == 409
    assert "restart" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("alpha/unload", 409),
        ("beta/load", 409),
        ("unknown/load", 404),
        ("unknown/reload", 404),
        ("..%2f..%2fetc/load", 404),
        ("%2e%2e/load", 404),
    ],
)
async def test_invalid_changes_are_refused(client: httpx.AsyncClient, path: str, status: int) -> None:
    assert (await client.post(f"/v1/models/{path}")).status_code == status


async def test_a_model_of_a_composite_cannot_be_unloaded(own_settings: Settings) -> None:
    (own_settings.models_dir / "composites.toml").write_text("[both]\nweights = {alpha = 1.0, beta = 1.0}\n")
    async with open_client(loading.load_engine(own_settings, lambda *_: None), own_settings) as client:
        response = await client.post("/v1/models/beta/unload", headers=ADMIN)
    assert "both" in response.json()["error"]["message"]


async def test_only_an_admin_key_changes_models(
    client: httpx.AsyncClient, engine: Engine, settings: Settings
) -> None:
    response = await client.post("/v1/models/beta/reload", headers={"X-API-Key": "score-key"})
    assert (response.status_code, response.json()["error"]["code"]) == (403, "forbidden")
    async with open_client(engine, settings) as client_without_keys:
        assert (await client_without_keys.post("/v1/models/beta/reload")).status_code == 403


async def test_old_weights_are_freed(own_settings: Settings) -> None:
    app = create_app(loading.load_engine(own_settings, lambda *_: None), own_settings, CollectorRegistry())
    old_weights = weakref.ref(app.state.engine.models["beta"].head.w1)
    async with open_app_client(app) as client:
        client.headers.update(ADMIN)
        before = await request_rewards(client, "beta")
        await asyncio.to_thread(replace_on_disk, own_settings, "beta", 60)
        assert (await client.post("/v1/models/beta/reload")).status_code == 200
        assert await request_rewards(client, "beta") != before
        gc.collect()
        assert old_weights() is None
