"""`sparserm serve` as a real process with real sockets and signals."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from app import cli
from app.reward.engine import Engine
from app.settings import Settings
from app.types import ScoreOptions
from tests.support import tiny

SPARSERM = str(Path(sys.executable).with_name("sparserm"))


def server_environment(settings: Settings) -> dict[str, str]:
    paths = {"SPARSERM_MODELS_DIR": str(settings.models_dir), "SPARSERM_CACHE_DIR": str(settings.cache_dir)}
    return {
        **os.environ,
        **paths,
        "SPARSERM_DEVICE": "cpu",
        "SPARSERM_DTYPE": "float32",
        "SPARSERM_MAX_TOKENS": "256",
    }


@contextmanager
def run_server(settings: Settings, port: int) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    """`sparserm serve` on a loopback port, until the block ends."""
    command = [SPARSERM, "serve", "--port", str(port)]
    with (
        subprocess.Popen(
            command, env=server_environment(settings), stderr=subprocess.PIPE, text=True
        ) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client,
    ):
        try:
            _wait_until_ready(process, client)
            yield process, client
        finally:
            process.kill()


def _wait_until_ready(process: subprocess.Popen[str], client: httpx.Client) -> None:
    for _ in range(1500):
        assert process.poll() is None, process.stderr and process.stderr.read()
        try:
            if client.get("/ready").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise TimeoutError("the server did not become ready")


def test_scores_are_the_same_in_process_and_over_http(
    settings: Settings, engine: Engine, free_tcp_port: int
) -> None:
    items = tiny.random_items(12)
    offline = [scores[0].reward for scores in tiny.score_items(engine, items, ScoreOptions(("beta",)))]
    inputs = [{"prompt": item.messages[0].content, "response": item.response} for item in items]
    with run_server(settings, free_tcp_port) as (_, client):
        body = client.post("/v1/rewards", json={"model": "beta", "inputs": inputs}).json()
    assert [row["reward"] for row in body["data"]] == pytest.approx(offline, abs=1e-5)


def test_a_stop_signal_lets_requests_in_flight_finish(settings: Settings, free_tcp_port: int) -> None:
    inputs = [{"prompt": "amber river " * 60, "response": f"stone {n} " * 40} for n in range(300)]
    with run_server(settings, free_tcp_port) as (process, client), ThreadPoolExecutor(1) as pool:
        response = pool.submit(client.post, "/v1/rewards", json={"inputs": inputs, "top_k": 0})
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        assert len(response.result().json()["data"]) == 300
        assert process.wait(30) in (0, -signal.SIGTERM)


def test_items_of_a_client_that_disconnects_are_dropped(settings: Settings, free_tcp_port: int) -> None:
    inputs = [{"prompt": "amber river " * 60, "response": f"stone {n} " * 40} for n in range(1000)]
    with run_server(settings, free_tcp_port) as (_, client):
        with pytest.raises(httpx.ReadTimeout):
            client.post("/v1/rewards", json={"inputs": inputs}, timeout=0.5)
        later = client.post("/v1/rewards", json={"inputs": inputs[:1]})
        dropped = next(
            line
            for line in client.get("/metrics").text.splitlines()
            if line.startswith("sparserm_dropped_total")
        )
    assert later.status_code == 200
    assert float(dropped.split()[1]) > 0


def test_a_failed_start_prints_one_sentence(settings: Settings, tmp_path: Path) -> None:
    environment = {**server_environment(settings), "SPARSERM_MODELS_DIR": str(tmp_path)}
    result = subprocess.run([SPARSERM, "serve"], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "make one with `sparserm train`" in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr


def test_an_invalid_setting_is_named(settings: Settings) -> None:
    environment = {**server_environment(settings), "SPARSERM_MAX_BATCH_TOKENS": "many"}
    result = subprocess.run([SPARSERM, "serve"], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "SPARSERM_MAX_BATCH_TOKENS" in result.stderr
    assert "Traceback" not in result.stderr


def test_models_are_listed_and_shown(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in server_environment(settings).items():
        monkeypatch.setenv(name, value)
    listed = CliRunner().invoke(cli.app, ["models", "list"])
    assert all(name in listed.output for name in tiny.MODELS)
    shown = CliRunner().invoke(cli.app, ["models", "show", "beta"])
    assert json.loads(shown.output)["readout"] == "end"
    assert CliRunner().invoke(cli.app, ["models", "show", "unknown"]).exit_code == 1
