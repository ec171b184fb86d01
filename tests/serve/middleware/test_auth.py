"""Keys: every way a trainer can carry one, and what is closed without."""

import base64
import re
from typing import Any

import httpx
import pytest
from pydantic import SecretStr
from typer.testing import CliRunner

from app import cli
from app.errors import UnprotectedServer
from app.reward.engine import Engine
from app.serve.middleware.auth import require_keys_beyond_loopback
from app.settings import Settings
from tests.support.servers import server

pytestmark = pytest.mark.anyio
KEY = "open sesame/1"
BODY = {"query": ["amber"]}


@pytest.fixture
async def client(engine: Engine, settings: Settings) -> Any:
    kept = settings.model_copy(update={"api_keys": SecretStr(f"other, {KEY}")})
    async with server(engine, kept) as client:
        yield client


def basic(user: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/get_reward", {"Authorization": f"Bearer {KEY}"}),
        ("/get_reward", {"authorization": f"bearer {KEY}"}),
        ("/get_reward", {"X-API-Key": KEY}),
        ("/get_reward", basic("me", KEY)),
        ("/get_reward", basic(KEY, "")),
        ("/k/other/get_reward", {}),
        ("/k/other/m/beta/get_reward", {}),
        ("/m/beta/k/other/get_reward", {}),
        ("/m/beta/get_reward", {"X-API-Key": "other"}),
    ],
)
async def test_a_key_opens_in_every_way(
    path: str, headers: dict[str, str], client: httpx.AsyncClient
) -> None:
    assert (await client.post(path, json=BODY, headers=headers)).status_code == 200


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/get_reward", {}),
        ("/get_reward", {"Authorization": "Bearer nonsense"}),
        ("/get_reward", {"Authorization": "Bearer"}),
        ("/get_reward", {"Authorization": "Basic ???"}),
        ("/get_reward", {"X-API-Key": ""}),
        ("/k/nonsense/get_reward", {"X-API-Key": KEY}),
        ("/v1/rewards", {}),
        ("/m/alpha/get_reward", {}),
    ],
)
async def test_without_a_known_key_nothing_opens(
    path: str, headers: dict[str, str], client: httpx.AsyncClient
) -> None:
    answer = await client.post(path, json=BODY, headers=headers)
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "unauthorized"
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.headers["x-request-id"]


async def test_only_the_probes_stay_open(client: httpx.AsyncClient) -> None:
    described = (await client.get("/openapi.json", headers={"X-API-Key": KEY})).json()
    for path, methods in described["paths"].items():
        for method in methods:
            answer = await client.request(method, path.format(id="alpha", latent=1))
            assert (answer.status_code == 401) == (path not in ("/health", "/ready")), path
    assert (await client.get("/metrics")).status_code == 401
    assert (await client.get("/docs")).status_code == 401


async def test_the_page_is_open_and_nothing_behind_it(client: httpx.AsyncClient) -> None:
    front = await client.get("/")
    assert front.status_code == 200
    parts = re.findall(r'(?:src|href)="(page/[^"]+)"', front.text)
    assert len(parts) >= 4
    for part in parts:
        assert (await client.get(f"/{part}")).status_code == 200
    for closed in ("/page", "/v1/models", "/page/../v1/models", "/docs"):
        assert (await client.get(closed)).status_code == 401, closed
    for nothing in ("/page/", "/page/__init__.py", "/page/%2e%2e%2fgate.py", "/page/..%2fgate.py"):
        assert (await client.get(nothing)).status_code == 404, nothing


def test_beyond_loopback_there_must_be_a_key_or_a_second_word() -> None:
    for host, keys, without in (
        ("127.0.0.1", "", False), ("::1", "", False), ("localhost", "", False),
        ("0.0.0.0", "k", False), ("0.0.0.0", "", True),  # noqa: S104 # that is what is tested
    ):  # fmt: skip
        require_keys_beyond_loopback(Settings(host=host, api_keys=SecretStr(keys), allow_no_keys=without))
    for host in ("0.0.0.0", "192.168.1.4", "my.host"):  # noqa: S104 # that is what is tested
        with pytest.raises(UnprotectedServer, match="SPARSERM_API_KEYS"):
            require_keys_beyond_loopback(Settings(host=host))


def test_serve_refuses_before_it_loads_anything() -> None:
    result = CliRunner().invoke(cli.app, ["serve", "--host", "0.0.0.0"])  # noqa: S104 # that is what is tested
    assert result.exit_code != 0
    assert "SPARSERM_ALLOW_NO_KEYS" in result.output
