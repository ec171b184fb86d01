"""Authentication: every way a trainer can send a key, and what is refused without one."""

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
from tests.support.servers import open_client

pytestmark = pytest.mark.anyio
KEY = "open sesame/1"
BODY = {"query": ["amber"]}


@pytest.fixture
async def client(engine: Engine, settings: Settings) -> Any:
    settings_with_keys = settings.model_copy(update={"api_keys": SecretStr(f"other, {KEY}")})
    async with open_client(engine, settings_with_keys) as client:
        yield client


def basic_credentials(user: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/get_reward", {"Authorization": f"Bearer {KEY}"}),
        ("/get_reward", {"authorization": f"bearer {KEY}"}),
        ("/get_reward", {"X-API-Key": KEY}),
        ("/get_reward", basic_credentials("me", KEY)),
        ("/get_reward", basic_credentials(KEY, "")),
        ("/k/other/get_reward", {}),
        ("/k/other/m/beta/get_reward", {}),
        ("/m/beta/k/other/get_reward", {}),
        ("/m/beta/get_reward", {"X-API-Key": "other"}),
    ],
)
async def test_a_key_is_accepted_wherever_it_is_sent(
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
async def test_a_request_without_a_known_key_is_refused(
    path: str, headers: dict[str, str], client: httpx.AsyncClient
) -> None:
    response = await client.post(path, json=BODY, headers=headers)
    assert response.status_code == 401
    assert response.json()["error"]["code"] == "unauthorized"
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.headers["x-request-id"]


async def test_only_the_health_probes_are_public(client: httpx.AsyncClient) -> None:
    schema = (await client.get("/openapi.json", headers={"X-API-Key": KEY})).json()
    for path, methods in schema["paths"].items():
        for method in methods:
            response = await client.request(method, path.format(id="alpha", latent=1))
            assert (response.status_code == 401) == (path not in ("/health", "/ready")), path
    assert (await client.get("/metrics")).status_code == 401
    assert (await client.get("/docs")).status_code == 401


async def test_the_web_page_is_public_and_nothing_else(client: httpx.AsyncClient) -> None:
    index = await client.get("/")
    assert index.status_code == 200
    parts = re.findall(r'(?:src|href)="(page/[^"]+)"', index.text)
    assert len(parts) >= 4
    for part in parts:
        assert (await client.get(f"/{part}")).status_code == 200
    for closed in ("/page", "/v1/models", "/page/../v1/models", "/docs"):
        assert (await client.get(closed)).status_code == 401, closed
    for nothing in ("/page/", "/page/__init__.py", "/page/%2e%2e%2fgate.py", "/page/..%2fgate.py"):
        assert (await client.get(nothing)).status_code == 404, nothing


def test_other_hosts_than_loopback_require_a_key_or_an_explicit_setting() -> None:
    for host, keys, allow_no_keys in (
        ("127.0.0.1", "", False), ("::1", "", False), ("localhost", "", False),
        ("0.0.0.0", "k", False), ("0.0.0.0", "", True),  # noqa: S104 # that is what is tested
    ):  # fmt: skip
        require_keys_beyond_loopback(
            Settings(host=host, api_keys=SecretStr(keys), allow_no_keys=allow_no_keys)
        )
    for host in ("0.0.0.0", "192.168.1.4", "my.host"):  # noqa: S104 # that is what is tested
        with pytest.raises(UnprotectedServer, match="SPARSERM_API_KEYS"):
            require_keys_beyond_loopback(Settings(host=host))


def test_serve_refuses_to_start_without_keys_before_loading() -> None:
    result = CliRunner().invoke(cli.app, ["serve", "--host", "0.0.0.0"])  # noqa: S104 # that is what is tested
    assert result.exit_code != 0
    assert "SPARSERM_ALLOW_NO_KEYS" in result.output
