"""The Python client: typed answers, one request for many askers, and a restart that loses nothing."""

import asyncio
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from sparserm_client import Ask, AskFailed, AsyncClient, Client, Patience

from app.reward.engine import Engine
from app.types import ScoreOptions as Wanted
from tests.support import tiny

ASK = Ask("amber river", "quiet stone")


def test_rewards_are_typed_and_in_order(address: str) -> None:
    with Client(address, model="alpha") as client:
        asks = [Ask("amber river", word) for word in tiny.WORDS]
        found = client.rewards(asks, top_k=2)
        alone = [client.rewards([ask])[0].reward for ask in asks]
        assert [one.reward for one in found] == pytest.approx(alone, abs=1e-5)
        assert all(len(one.features) == 2 and one.model == "alpha" for one in found)
        chat = Ask([{"role": "user", "content": "amber river"}], "quiet stone")
        assert client.rewards([chat]) == client.rewards([ASK])
        assert client.rewards([Ask("amber river", "")])[0].reward != found[0].reward
        assert client.rewards([]) == []


def test_rendered_text_scores_the_same(address: str) -> None:
    prompt = "<|im_start|>user\namber river<|im_end|>\n<|im_start|>assistant\n"
    with Client(address) as client:
        [plain] = client.rewards([ASK])
        assert client.rendered([f"{prompt}quiet stone"], [prompt]) == pytest.approx([plain.reward], abs=1e-5)
        assert client.rendered([f"{prompt}quiet stone"]) == pytest.approx([plain.reward], abs=1e-5)


def test_refusals_are_raised_at_once_with_their_reason(address: str) -> None:
    with Client(address, model="nobody") as client, pytest.raises(AskFailed, match="no model") as raised:
        client.rewards([ASK])
    assert raised.value.status == 404
    with Client(address) as client, pytest.raises(AskFailed, match="surrogate"):
        client.rewards([Ask("amber", "\ud800")])


def test_patience_ends() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    started = time.monotonic()
    with (
        Client(f"http://127.0.0.1:{port}", patience_s=1.0) as client,
        pytest.raises(AskFailed, match="patience"),
    ):
        client.rewards([ASK])
    assert time.monotonic() - started < 5


def test_the_server_s_wish_is_heard_and_waits_grow() -> None:
    patience = Patience(1000)
    assert patience.wait(httpx.Response(429, headers={"Retry-After": "7"})) >= 7
    waits = [patience.wait(httpx.Response(503)) for _ in range(12)]
    assert waits[0] < 2
    assert 7 < waits[-1] < 23


def test_a_client_can_be_pickled_after_use(address: str) -> None:
    with Client(address, model="beta") as client:
        [before] = client.rewards([ASK])
        with pickle.loads(pickle.dumps(client)) as again:  # noqa: S301 # our own bytes
            assert again.rewards([ASK]) == [before]


def test_what_is_asked_at_once_travels_together(address: str) -> None:
    async def ask() -> Any:
        async with AsyncClient(address) as client:
            return await asyncio.gather(*(client.rewards([Ask("amber", word)] * 2) for word in tiny.WORDS))

    def requests() -> float:
        lines = httpx.get(f"{address}/metrics").text.splitlines()
        return sum(
            float(line.split()[-1])
            for line in lines
            if line.startswith('sparserm_requests_total{code="200",method="POST",route="/v1/rewards"')
        )

    before = requests()
    found = asyncio.run(ask())
    assert requests() - before == 1
    with Client(address) as client:
        for word, pair in zip(tiny.WORDS, found, strict=True):
            assert [one.reward for one in pair] == pytest.approx(
                [client.rewards([Ask("amber", word)])[0].reward] * 2, abs=1e-5
            )


def test_an_async_client_outlives_its_loop_and_tells_every_asker_of_a_failure(address: str) -> None:
    async def ask(client: AsyncClient) -> list[Any]:
        async with client:
            asked = (client.rewards([ASK]) for _ in range(3))
            return await asyncio.gather(*asked, return_exceptions=True)

    client = AsyncClient(address, model="alpha")
    assert asyncio.run(ask(client)) == asyncio.run(ask(client))
    failures = asyncio.run(ask(AsyncClient(address, model="nobody")))
    assert [type(one) for one in failures] == [AskFailed] * 3


def serve(folder: Path, port: int) -> "subprocess.Popen[bytes]":
    environment = {
        **os.environ,
        "SPARSERM_MODELS_DIR": str(folder / "models"),
        "SPARSERM_CACHE_DIR": str(folder / "cache"),
        "SPARSERM_DEVICE": "cpu",
        "SPARSERM_DTYPE": "float32",
        "SPARSERM_MAX_TOKENS": "256",
    }
    program = [sys.executable, "-c", "from app.cli import app; app()", "serve", "--port", str(port)]
    nowhere = subprocess.DEVNULL
    return subprocess.Popen(program, env=environment, stdout=nowhere, stderr=nowhere)


@pytest.mark.heavy
def test_a_killed_and_restarted_server_loses_no_sample(root: Path, engine: Engine) -> None:
    asks = [Ask("amber river", f"{word} {n}") for n in range(40) for word in tiny.WORDS]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    found: list[float] = []

    def train() -> None:
        with Client(f"http://127.0.0.1:{port}", patience_s=120) as client:
            found.extend(client.rewards([ask])[0].reward for ask in asks)

    first = serve(root, port)
    trainer = threading.Thread(target=train)
    trainer.start()
    while len(found) < 50:
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.wait()
    at_the_kill = len(found)
    second = serve(root, port)
    trainer.join(timeout=150)
    second.terminate()
    second.wait()
    assert at_the_kill < len(asks)
    scored = tiny.scores(
        engine, [tiny.exchange(str(ask.prompt), ask.response) for ask in asks], Wanted(("alpha",))
    )
    assert found == pytest.approx([one.reward for (one,) in scored], abs=1e-5)
