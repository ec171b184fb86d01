"""API keys from the file and the setting: roles, rotation without a restart, and errors in the file."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from pydantic import SecretStr
from starlette.routing import BaseRoute, Route
from typer.testing import CliRunner

from app import cli
from app.errors import UnprotectedServer
from app.reward.engine import Engine
from app.serve.application import create_app
from app.serve.middleware import api_keys
from app.serve.middleware.api_keys import ApiKeys, Role
from app.settings import Settings
from tests.support.servers import open_client

pytestmark = pytest.mark.anyio


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    return tmp_path / "keys"


def write_keys(key_file: Path, *lines: str) -> None:
    """Replace the key file by a new one, as key rotation does."""
    new_file = key_file.with_suffix(".new")
    new_file.write_text("\n".join(["# roles and keys", "", *lines]) + "\n")
    new_file.replace(key_file)


def test_each_role_includes_the_lower_ones() -> None:
    keys = ApiKeys(("worker", "score=other", "metrics=watcher", "admin=boss=1"))
    assert keys.find_role(["worker"]) is keys.find_role(["other"]) is Role.SCORE
    assert keys.find_role(["watcher"]) is Role.METRICS
    assert keys.find_role(["watcher", "boss=1"]) is Role.ADMIN
    assert keys.find_role(["boss"]) is keys.find_role([]) is keys.find_role([""]) is None
    assert Role.METRICS < Role.SCORE < Role.ADMIN


def test_a_changed_file_is_reloaded_and_an_invalid_one_is_ignored(
    key_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_keys, "RELOAD_INTERVAL_S", 0)
    score_key, score_line = api_keys.generate_key(Role.SCORE, "run 7")
    admin_key, admin_line = api_keys.generate_key(Role.ADMIN)
    write_keys(key_file, score_line)
    keys = ApiKeys((), key_file)
    assert keys.required
    assert keys.find_role([score_key]) is Role.SCORE
    assert score_key not in key_file.read_text()
    write_keys(key_file, admin_line)
    assert keys.find_role([score_key]) is None
    assert keys.find_role([admin_key]) is Role.ADMIN
    write_keys(key_file, "score not-a-digest")
    assert keys.find_role([admin_key]) is Role.ADMIN
    key_file.unlink()
    assert keys.find_role([admin_key]) is Role.ADMIN


def test_an_error_names_the_line_but_not_its_content(key_file: Path) -> None:
    write_keys(key_file, "score my-secret-in-plain")
    with pytest.raises(UnprotectedServer, match="line 3") as raised:
        ApiKeys((), key_file)
    assert "my-secret" not in str(raised.value)


def test_the_command_prints_a_line_that_grants_its_role(key_file: Path) -> None:
    result = CliRunner().invoke(cli.app, ["keys", "new", "--role", "metrics", "--name", "prometheus"])
    write_keys(key_file, result.stdout.strip())
    key = result.stderr.rpartition(": ")[2].strip()
    assert ApiKeys((), key_file).find_role([key]) is Role.METRICS
    assert CliRunner().invoke(cli.app, ["keys", "new", "--role", "unknown"]).exit_code == 2


@pytest.fixture
def routes(engine: Engine, settings: Settings) -> list[tuple[str, str]]:
    """Methods and paths of all routes of the app, also those outside the OpenAPI description."""
    return list(_walk_routes(create_app(engine, settings, CollectorRegistry()).routes))


def _walk_routes(routes: list[BaseRoute]) -> Iterator[tuple[str, str]]:
    for route in routes:
        if isinstance(route, Route):
            for method in route.methods or {"GET"}:
                yield method, route.path.replace("{id}", "alpha").replace("{latent}", "1")
        else:
            yield from _walk_routes(vars(route)["original_router"].routes)


# The web page asks for a key itself; test_auth checks that only its own files are public.
PUBLIC = {("GET", "/health"), ("GET", "/ready"), ("GET", "/"), ("GET", "/page/{name:path}")}
PREFIXES = ("", "/m/alpha", "/k/wrong", "/k/wrong/m/alpha", "/m/alpha/k/wrong", "//", "/k", "/m/k")


async def test_no_route_is_reachable_without_a_key(
    engine: Engine, settings: Settings, routes: list[tuple[str, str]]
) -> None:
    assert len(routes) > 30
    settings_with_keys = settings.model_copy(update={"api_keys": SecretStr("k1,admin=k2,metrics=k3")})
    async with open_client(engine, settings_with_keys) as client:
        for method, path in set(routes) - PUBLIC:
            for prefix in PREFIXES:
                response = await client.request(method, prefix + path)
                assert response.status_code == 401, (method, prefix, path)


async def test_a_metrics_key_grants_metrics_only(engine: Engine, settings: Settings) -> None:
    settings_with_keys = settings.model_copy(update={"api_keys": SecretStr("k1,metrics=k3")})
    async with open_client(engine, settings_with_keys) as client:
        metrics_key = {"X-API-Key": "k3"}
        assert (await client.get("/metrics", headers=metrics_key)).status_code == 200
        assert (await client.get("/v1/models", headers=metrics_key)).status_code == 403
        assert (
            await client.post("/get_reward", json={"query": ["a"]}, headers=metrics_key)
        ).status_code == 403
        assert (await client.get("/metrics", headers={"X-API-Key": "k1"})).status_code == 200


async def test_a_request_without_a_key_is_refused_before_its_body_is_read(
    engine: Engine, settings: Settings
) -> None:
    settings_with_keys = settings.model_copy(update={"api_keys": SecretStr("k1")})
    async with open_client(engine, settings_with_keys) as client:
        response = await client.post("/v1/rewards", content=b"x" * 10**6)
        assert response.status_code == 401
        assert response.json()["error"]["code"] == "unauthorized"
