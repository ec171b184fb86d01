"""Injects each fault at least fifty times; background clients must get correct answers to all requests."""

import os
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

from app.reward.engine import Engine
from app.serve.process import EXIT_DEVICE_LOST
from app.settings import Settings
from tests.faults.background_clients import (
    ClientLog,
    ExpectedRewards,
    background_clients,
    compute_expected_rewards,
)
from tests.faults.server_processes import (
    CLOCK_JUMP_WORD,
    DEVICE_LOST_WORD,
    HANG_WORD,
    OUT_OF_MEMORY_WORD,
    OVERFLOW_WORD,
    RAISE_WORD,
    FaultyServer,
    run_faulty_server,
)

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(900)]
REPEATS = 50


@pytest.fixture(scope="module")
def inputs(engine: Engine) -> ExpectedRewards:
    return compute_expected_rewards(engine)


@pytest.fixture
def server(settings: Settings, free_tcp_port: int) -> Iterator[FaultyServer]:
    short_timeouts = settings.model_copy(
        update={"client_timeout_s": 1, "device_timeout_s": 3.0, "max_batch_tokens": 256}
    )
    with run_faulty_server(short_timeouts, free_tcp_port) as faulty_server:
        yield faulty_server


def make_input(word: str, n: int) -> dict[str, str]:
    return {"prompt": f"amber {n}", "response": f"quiet {word} river"}


def wait_for_rewards(log: ClientLog, more: int = REPEATS) -> None:
    """Wait until the background clients have received `more` further correct rewards."""
    target, deadline = log.correct + more, time.monotonic() + 60
    while log.correct < target:
        assert time.monotonic() < deadline, log
        time.sleep(0.01)


@pytest.mark.parametrize("word", [RAISE_WORD, OVERFLOW_WORD])
def test_failing_item_does_not_affect_others(
    server: FaultyServer, inputs: ExpectedRewards, word: str
) -> None:
    known, expected = inputs[0]
    with background_clients(server.url, inputs) as log:
        for n in range(REPEATS):
            rows = server.request_rewards([known, make_input(word, n), known]).json()["data"]
            assert rows[1]["error"]["type"] == "internal_error"
            assert word not in rows[1]["error"]["message"]
            assert [rows[0]["reward"], rows[2]["reward"]] == pytest.approx([expected, expected], abs=1e-5)
        wait_for_rewards(log)
    assert log.failures == []
    assert server.metric("sparserm_items_failed_total") == REPEATS
    if word == OVERFLOW_WORD:
        assert server.metric("sparserm_non_finite_total") >= REPEATS


def test_batch_that_runs_out_of_memory_is_halved(server: FaultyServer, inputs: ExpectedRewards) -> None:
    with background_clients(server.url, inputs) as log:
        for n in range(REPEATS):
            rows = server.request_rewards(
                [make_input("stone", n), make_input(OUT_OF_MEMORY_WORD, n), make_input("glass", n)]
            ).json()["data"]
            assert all("reward" in row for row in rows)
        wait_for_rewards(log)
    assert log.failures == []
    assert server.metric("sparserm_batch_budget_tokens") <= 256


def test_wall_clock_jumps_change_nothing(server: FaultyServer, inputs: ExpectedRewards) -> None:
    with background_clients(server.url, inputs) as log:
        for n in range(REPEATS):
            assert "reward" in server.request_rewards([make_input(CLOCK_JUMP_WORD, n)]).json()["data"][0]
        wait_for_rewards(log)
    assert log.failures == []


def test_clients_that_disconnect_do_not_affect_others(server: FaultyServer, inputs: ExpectedRewards) -> None:
    inputs_of_request = [make_input("stone " * 20, n) for n in range(200)]
    with background_clients(server.url, inputs) as log:
        for _ in range(REPEATS):
            with pytest.raises(httpx.TransportError):
                server.http.post("/v1/rewards", json={"inputs": inputs_of_request}, timeout=0.05)
        wait_for_rewards(log)
    assert log.failures == []
    time.sleep(1)
    assert server.metric("sparserm_backlog_tokens") == 0
    assert server.metric("sparserm_queue_items") == 0


INCOMPLETE_REQUESTS: dict[str, bytes] = {
    "nothing": b"",
    "half of the headers": b"POST /v1/rewards HTTP/1.1\r\nHost: x\r\nContent-Le",
    "half of the body": b"POST /v1/rewards HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{",
    "half of a second request": b"GET /health HTTP/1.1\r\nHost: x\r\n\r\nGET /hea",
    "not HTTP": b"\x16\x03\x01 hello\r\n\r\n",
}


@pytest.mark.parametrize("sent", INCOMPLETE_REQUESTS)
def test_slow_and_half_open_connections_are_closed(
    server: FaultyServer, inputs: ExpectedRewards, sent: str
) -> None:
    port = int(server.url.rpartition(":")[2])
    with background_clients(server.url, inputs) as log:
        sockets = [socket.create_connection(("127.0.0.1", port)) for _ in range(REPEATS)]
        for connection in sockets:
            connection.sendall(INCOMPLETE_REQUESTS[sent])
        for connection in sockets:
            connection.settimeout(10)
            with connection, suppress(ConnectionResetError):
                while connection.recv(65536):
                    pass
        wait_for_rewards(log)
    assert log.failures == []


def test_clients_that_stop_reading_are_disconnected(server: FaultyServer, inputs: ExpectedRewards) -> None:
    port = int(server.url.rpartition(":")[2])
    raw_request = build_raw_request(server, [make_input("stone", n) for n in range(2000)], top_k=16)
    with background_clients(server.url, inputs) as log:
        for _ in range(REPEATS // 10):
            sockets = [socket.socket() for _ in range(10)]
            for connection in sockets:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                connection.connect(("127.0.0.1", port))
                connection.sendall(raw_request)
            deadline = time.monotonic() + 120
            while server.metric("sparserm_requests_in_flight") > 6:
                assert time.monotonic() < deadline
                time.sleep(0.1)
            for connection in sockets:
                connection.close()
        wait_for_rewards(log)
    assert log.failures == []


def build_raw_request(server: FaultyServer, inputs: list[dict[str, str]], *, top_k: int) -> bytes:
    """The bytes of a request, for tests that use sockets directly."""
    body = httpx.Request("POST", server.url, json={"inputs": inputs, "top_k": top_k}).content
    head = f"POST /v1/rewards HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\nConnection: close\r\n"
    return f"{head}Content-Type: application/json\r\n\r\n".encode() + body


@pytest.mark.parametrize("word", [DEVICE_LOST_WORD, HANG_WORD])
def test_lost_device_ends_the_process_and_a_new_one_continues(
    settings: Settings, free_tcp_port: int, inputs: ExpectedRewards, word: str
) -> None:
    short_timeouts = settings.model_copy(update={"device_timeout_s": 2.0, "drain_timeout_s": 1})

    def inject(server: FaultyServer) -> None:
        answer = server.request_rewards([make_input(word, 0)])
        assert answer.status_code == 503
        server.process.join(20)
        assert server.process.exitcode == EXIT_DEVICE_LOST

    _restart_repeatedly(short_timeouts, free_tcp_port, inputs, inject)


def test_killed_server_loses_no_request(
    settings: Settings, free_tcp_port: int, inputs: ExpectedRewards
) -> None:
    def inject(server: FaultyServer) -> None:
        server.process.kill()
        server.process.join()

    _restart_repeatedly(settings, free_tcp_port, inputs, inject)


def test_stopped_server_answers_accepted_requests(
    settings: Settings, free_tcp_port: int, inputs: ExpectedRewards
) -> None:
    inputs_of_request = [make_input("stone", n) for n in range(100)]

    def inject(server: FaultyServer) -> None:
        with socket.create_connection(("127.0.0.1", free_tcp_port)) as connection:
            connection.sendall(build_raw_request(server, inputs_of_request, top_k=0))
            time.sleep(0.05)
            assert server.process.pid is not None
            os.kill(server.process.pid, signal.SIGTERM)
            answer = b""
            while part := connection.recv(65536):
                answer += part
        assert answer.count(b'"reward"') == 100
        server.process.join(30)
        assert server.process.exitcode in (0, -signal.SIGTERM)

    _restart_repeatedly(settings, free_tcp_port, inputs, inject)


def _restart_repeatedly(
    settings: Settings, port: int, inputs: ExpectedRewards, inject: Callable[[FaultyServer], None]
) -> None:
    """Start, fail and restart a server fifty times while clients retry."""
    known, expected = inputs[0]
    with ExitStack() as clients:
        log = clients.enter_context(
            background_clients(f"http://127.0.0.1:{port}", inputs, count=3, retry=True)
        )
        for _ in range(REPEATS):
            with run_faulty_server(settings, port) as server:
                [row] = server.request_rewards([known]).json()["data"]
                assert row["reward"] == pytest.approx(expected, abs=1e-5)
                inject(server)
        with run_faulty_server(settings, port):
            wait_for_rewards(log)
            clients.close()
    assert log.failures == []


BUNDLE_DAMAGES: dict[str, Callable[[Path], object]] = {
    "half a file": lambda folder: _truncate(folder / "weights.safetensors"),
    "no manifest digest": lambda folder: (folder / "SHA256SUMS").unlink(),
    "another head": lambda folder: _flip_bit(folder / "weights.safetensors"),
    "no probes": lambda folder: (folder / "probes.json").write_text("["),
}


@pytest.mark.parametrize("damage", BUNDLE_DAMAGES)
def test_damaged_bundle_is_refused_and_the_loaded_one_stays(
    settings: Settings, free_tcp_port: int, inputs: ExpectedRewards, tmp_path: Path, damage: str
) -> None:
    shutil.copytree(settings.models_dir, tmp_path / "models")
    folder, intact = tmp_path / "models" / "alpha", tmp_path / "whole"
    shutil.copytree(folder, intact)
    changed_settings = settings.model_copy(
        update={"models_dir": tmp_path / "models", "api_keys": SecretStr("worker,admin=boss")}
    )
    with (
        run_faulty_server(changed_settings, free_tcp_port) as server,
        background_clients(f"{server.url}/k/worker", inputs) as log,
    ):
        for _ in range(REPEATS):
            BUNDLE_DAMAGES[damage](folder)
            answer = server.http.post("/v1/models/alpha/reload")
            assert (answer.status_code, answer.json()["error"]["code"]) == (409, "bundle_refused")
            shutil.rmtree(folder)
            shutil.copytree(intact, folder)
            answer = server.http.post("/v1/models/alpha/reload")
            assert answer.status_code == 200, answer.text
        wait_for_rewards(log)
    assert log.failures == []


def _truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _flip_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-100] ^= 0x40
    file.write_bytes(content)
