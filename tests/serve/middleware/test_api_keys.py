"""Keys by file and by setting: roles, rotation without a restart, and what a bad line says."""

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
from tests.support.servers import server

pytestmark = pytest.mark.anyio


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys"


def write(file: Path, *lines: str) -> None:
    """A new file in the place of the old one, as rotation does it."""
    fresh = file.with_suffix(".new")
    fresh.write_text("\n".join(["# who may what", "", *lines]) + "\n")
    fresh.replace(file)


def test_each_role_opens_what_stands_before_it() -> None:
    known = ApiKeys(("worker", "score=other", "metrics=watcher", "admin=boss=1"))
    assert known.role_of(["worker"]) is known.role_of(["other"]) is Role.SCORE
    assert known.role_of(["watcher"]) is Role.METRICS
    assert known.role_of(["watcher", "boss=1"]) is Role.ADMIN
    assert known.role_of(["boss"]) is known.role_of([]) is known.role_of([""]) is None
    assert Role.METRICS < Role.SCORE < Role.ADMIN


def test_a_file_is_read_again_and_a_broken_one_changes_nothing(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_keys, "LOOK_AGAIN_S", 0)
    first, line = api_keys.generate_key(Role.SCORE, "run 7")
    second, other = api_keys.generate_key(Role.ADMIN)
    write(file, line)
    known = ApiKeys((), file)
    assert known.required
    assert known.role_of([first]) is Role.SCORE
    assert first not in file.read_text()
    write(file, other)
    assert known.role_of([first]) is None
    assert known.role_of([second]) is Role.ADMIN
    write(file, "score not-a-digest")
    assert known.role_of([second]) is Role.ADMIN
    file.unlink()
    assert known.role_of([second]) is Role.ADMIN


def test_a_bad_line_is_named_and_its_content_is_not(file: Path) -> None:
    write(file, "score my-secret-in-plain")
    with pytest.raises(UnprotectedServer, match="line 3") as raised:
        ApiKeys((), file)
    assert "my-secret" not in str(raised.value)


def test_the_command_makes_a_line_that_opens(file: Path) -> None:
    made = CliRunner().invoke(cli.app, ["keys", "new", "--role", "metrics", "--name", "prometheus"])
    write(file, made.stdout.strip())
    key = made.stderr.rpartition(": ")[2].strip()
    assert ApiKeys((), file).role_of([key]) is Role.METRICS
    assert CliRunner().invoke(cli.app, ["keys", "new", "--role", "king"]).exit_code == 2


@pytest.fixture
def routes(engine: Engine, settings: Settings) -> list[tuple[str, str]]:
    """Every path and method the app has, hidden ones too."""
    return list(_walk(create_app(engine, settings, CollectorRegistry()).routes))


def _walk(routes: list[BaseRoute]) -> Iterator[tuple[str, str]]:
    for route in routes:
        if isinstance(route, Route):
            for method in route.methods or {"GET"}:
                yield method, route.path.replace("{id}", "alpha").replace("{latent}", "1")
        else:
            yield from _walk(vars(route)["original_router"].routes)


# The page asks for a key itself; test_gate holds that it is nothing but its own files.
OPEN = {("GET", "/health"), ("GET", "/ready"), ("GET", "/"), ("GET", "/page/{name:path}")}
PREFIXES = ("", "/m/alpha", "/k/wrong", "/k/wrong/m/alpha", "/m/alpha/k/wrong", "//", "/k", "/m/k")


async def test_without_a_key_no_route_opens_by_any_way(
    engine: Engine, settings: Settings, routes: list[tuple[str, str]]
) -> None:
    assert len(routes) > 30
    kept = settings.model_copy(update={"api_keys": SecretStr("k1,admin=k2,metrics=k3")})
    async with server(engine, kept) as client:
        for method, path in set(routes) - OPEN:
            for prefix in PREFIXES:
                answer = await client.request(method, prefix + path)
                assert answer.status_code == 401, (method, prefix, path)


async def test_a_key_for_metrics_opens_metrics_only(engine: Engine, settings: Settings) -> None:
    kept = settings.model_copy(update={"api_keys": SecretStr("k1,metrics=k3")})
    async with server(engine, kept) as client:
        watcher = {"X-API-Key": "k3"}
        assert (await client.get("/metrics", headers=watcher)).status_code == 200
        assert (await client.get("/v1/models", headers=watcher)).status_code == 403
        assert (await client.post("/get_reward", json={"query": ["a"]}, headers=watcher)).status_code == 403
        assert (await client.get("/metrics", headers={"X-API-Key": "k1"})).status_code == 200


async def test_a_body_without_a_key_is_refused_unread(engine: Engine, settings: Settings) -> None:
    kept = settings.model_copy(update={"api_keys": SecretStr("k1")})
    async with server(engine, kept) as client:
        answer = await client.post("/v1/rewards", content=b"x" * 10**6)
        assert answer.status_code == 401
        assert answer.json()["error"]["code"] == "unauthorized"
