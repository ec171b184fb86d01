"""Every fault, fifty times and more, under innocent requests: each of those is answered, and rightly."""

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
from tests.faults.background_clients import Corpus, Heard, corpus, singing
from tests.faults.server_processes import DEATH, HANG, HUGE, JUMP, OVERFLOW, POISON, Server, running

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(900)]
TIMES = 50


@pytest.fixture(scope="module")
def songs(engine: Engine) -> Corpus:
    return corpus(engine)


@pytest.fixture
def server(settings: Settings, free_tcp_port: int) -> Iterator[Server]:
    hasty = settings.model_copy(
        update={"client_timeout_s": 1, "device_timeout_s": 3.0, "max_batch_tokens": 256}
    )
    with running(hasty, free_tcp_port) as found:
        yield found


def item(word: str, n: int) -> dict[str, str]:
    return {"prompt": f"amber {n}", "response": f"quiet {word} river"}


def enough(heard: Heard, more: int = TIMES) -> None:
    """Let the innocent go on until they have heard so much more."""
    least, until = heard.right + more, time.monotonic() + 60
    while heard.right < least:
        assert time.monotonic() < until, heard
        time.sleep(0.01)


@pytest.mark.parametrize("word", [POISON, OVERFLOW])
def test_an_item_that_fails_fails_alone(server: Server, songs: Corpus, word: str) -> None:
    known, wanted = songs[0]
    with singing(server.url, songs) as heard:
        for n in range(TIMES):
            rows = server.ask([known, item(word, n), known]).json()["data"]
            assert rows[1]["error"]["type"] == "internal_error"
            assert word not in rows[1]["error"]["message"]
            assert [rows[0]["reward"], rows[2]["reward"]] == pytest.approx([wanted, wanted], abs=1e-5)
        enough(heard)
    assert heard.wrong == []
    assert server.metric("sparserm_items_failed_total") == TIMES
    if word == OVERFLOW:
        assert server.metric("sparserm_non_finite_total") >= TIMES


def test_a_batch_that_does_not_fit_is_halved(server: Server, songs: Corpus) -> None:
    with singing(server.url, songs) as heard:
        for n in range(TIMES):
            rows = server.ask([item("stone", n), item(HUGE, n), item("glass", n)]).json()["data"]
            assert all("reward" in row for row in rows)
        enough(heard)
    assert heard.wrong == []
    assert server.metric("sparserm_batch_budget_tokens") <= 256


def test_a_clock_that_jumps_changes_nothing(server: Server, songs: Corpus) -> None:
    with singing(server.url, songs) as heard:
        for n in range(TIMES):
            assert "reward" in server.ask([item(JUMP, n)]).json()["data"][0]
        enough(heard)
    assert heard.wrong == []


def test_callers_that_hang_up_cost_nobody_else(server: Server, songs: Corpus) -> None:
    many = [item("stone " * 20, n) for n in range(200)]
    with singing(server.url, songs) as heard:
        for _ in range(TIMES):
            with pytest.raises(httpx.TransportError):
                server.http.post("/v1/rewards", json={"inputs": many}, timeout=0.05)
        enough(heard)
    assert heard.wrong == []
    time.sleep(1)
    assert server.metric("sparserm_backlog_tokens") == 0
    assert server.metric("sparserm_queue_items") == 0


HALVES: dict[str, bytes] = {
    "nothing": b"",
    "half a head": b"POST /v1/rewards HTTP/1.1\r\nHost: x\r\nContent-Le",
    "half a body": b"POST /v1/rewards HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{",
    "half a second request": b"GET /health HTTP/1.1\r\nHost: x\r\n\r\nGET /hea",
    "rubbish": b"\x16\x03\x01 hello\r\n\r\n",
}


@pytest.mark.parametrize("sent", HALVES)
def test_slow_and_half_open_connections_are_let_go(server: Server, songs: Corpus, sent: str) -> None:
    port = int(server.url.rpartition(":")[2])
    with singing(server.url, songs) as heard:
        sockets = [socket.create_connection(("127.0.0.1", port)) for _ in range(TIMES)]
        for one in sockets:
            one.sendall(HALVES[sent])
        for one in sockets:
            one.settimeout(10)
            with one, suppress(ConnectionResetError):
                while one.recv(65536):
                    pass
        enough(heard)
    assert heard.wrong == []


def test_readers_that_stop_reading_are_let_go(server: Server, songs: Corpus) -> None:
    port = int(server.url.rpartition(":")[2])
    asked = request(server, [item("stone", n) for n in range(2000)], top_k=16)
    with singing(server.url, songs) as heard:
        for _ in range(TIMES // 10):
            sockets = [socket.socket() for _ in range(10)]
            for one in sockets:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                one.connect(("127.0.0.1", port))
                one.sendall(asked)
            deadline = time.monotonic() + 120
            while server.metric("sparserm_requests_in_flight") > 6:
                assert time.monotonic() < deadline
                time.sleep(0.1)
            for one in sockets:
                one.close()
        enough(heard)
    assert heard.wrong == []


def request(server: Server, inputs: list[dict[str, str]], *, top_k: int) -> bytes:
    """A request as it goes over the wire, for sockets that are not used as they should be."""
    body = httpx.Request("POST", server.url, json={"inputs": inputs, "top_k": top_k}).content
    head = f"POST /v1/rewards HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\nConnection: close\r\n"
    return f"{head}Content-Type: application/json\r\n\r\n".encode() + body


@pytest.mark.parametrize("word", [DEATH, HANG])
def test_a_lost_device_ends_the_process_and_its_successor_goes_on(
    settings: Settings, free_tcp_port: int, songs: Corpus, word: str
) -> None:
    hasty = settings.model_copy(update={"device_timeout_s": 2.0, "drain_timeout_s": 1})

    def inject(server: Server) -> None:
        answer = server.ask([item(word, 0)])
        assert answer.status_code == 503
        server.process.join(20)
        assert server.process.exitcode == EXIT_DEVICE_LOST

    _restarted(hasty, free_tcp_port, songs, inject)


def test_a_killed_server_loses_nothing(settings: Settings, free_tcp_port: int, songs: Corpus) -> None:
    def inject(server: Server) -> None:
        server.process.kill()
        server.process.join()

    _restarted(settings, free_tcp_port, songs, inject)


def test_a_stopped_server_answers_what_it_took(settings: Settings, free_tcp_port: int, songs: Corpus) -> None:
    many = [item("stone", n) for n in range(100)]

    def inject(server: Server) -> None:
        with socket.create_connection(("127.0.0.1", free_tcp_port)) as taken:
            taken.sendall(request(server, many, top_k=0))
            time.sleep(0.05)
            assert server.process.pid is not None
            os.kill(server.process.pid, signal.SIGTERM)
            answer = b""
            while part := taken.recv(65536):
                answer += part
        assert answer.count(b'"reward"') == 100
        server.process.join(30)
        assert server.process.exitcode in (0, -signal.SIGTERM)

    _restarted(settings, free_tcp_port, songs, inject)


def _restarted(settings: Settings, port: int, songs: Corpus, inject: Callable[[Server], None]) -> None:
    """Fifty lives of a server under callers that are patient; this test supervises."""
    known, wanted = songs[0]
    with ExitStack() as voices:
        heard = voices.enter_context(singing(f"http://127.0.0.1:{port}", songs, voices=3, patient=True))
        for _ in range(TIMES):
            with running(settings, port) as server:
                [row] = server.ask([known]).json()["data"]
                assert row["reward"] == pytest.approx(wanted, abs=1e-5)
                inject(server)
        with running(settings, port):
            enough(heard)
            voices.close()
    assert heard.wrong == []


DAMAGES: dict[str, Callable[[Path], object]] = {
    "half a file": lambda folder: _cut(folder / "weights.safetensors"),
    "no manifest digest": lambda folder: (folder / "SHA256SUMS").unlink(),
    "another head": lambda folder: _turn(folder / "weights.safetensors"),
    "no probes": lambda folder: (folder / "probes.json").write_text("["),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_bundle_is_refused_and_the_old_one_serves_on(
    settings: Settings, free_tcp_port: int, songs: Corpus, tmp_path: Path, damage: str
) -> None:
    shutil.copytree(settings.models_dir, tmp_path / "models")
    folder, whole = tmp_path / "models" / "alpha", tmp_path / "whole"
    shutil.copytree(folder, whole)
    kept = settings.model_copy(
        update={"models_dir": tmp_path / "models", "api_keys": SecretStr("worker,admin=boss")}
    )
    with (
        running(kept, free_tcp_port) as server,
        singing(f"{server.url}/k/worker", songs) as heard,
    ):
        for _ in range(TIMES):
            DAMAGES[damage](folder)
            answer = server.http.post("/v1/models/alpha/reload")
            assert (answer.status_code, answer.json()["error"]["code"]) == (409, "bundle_refused")
            shutil.rmtree(folder)
            shutil.copytree(whole, folder)
            answer = server.http.post("/v1/models/alpha/reload")
            assert answer.status_code == 200, answer.text
        enough(heard)
    assert heard.wrong == []


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _turn(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-100] ^= 0x40
    file.write_bytes(content)
