"""The Python client: typed rewards, one request for calls made together, and no sample lost on a restart."""

import asyncio
import inspect
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from math import isnan
from pathlib import Path
from typing import Any

import httpx
import pytest
import sparserm_client
from sparserm_client import AsyncClient, Client, RequestFailed, RetryPolicy, Reward, Sample, _wire, trainers

from app.reward.engine import Engine
from app.types import ScoreOptions
from tests.support import tiny

SAMPLE = Sample("amber river", "quiet stone")
MODELS = ["alpha", "beta", "gamma"]


def test_rewards_are_typed_and_in_order(address: str) -> None:
    with Client(address, model="alpha") as client:
        samples = [Sample("amber river", word) for word in tiny.WORDS]
        rewards = client.rewards(samples, top_k=2)
        one_by_one = [client.rewards([sample])[0].reward for sample in samples]
        assert [reward.reward for reward in rewards] == pytest.approx(one_by_one, abs=1e-5)
        assert all(len(reward.features) == 2 and reward.model == "alpha" for reward in rewards)
        chat = Sample([{"role": "user", "content": "amber river"}], "quiet stone")
        assert client.rewards([chat]) == client.rewards([SAMPLE])
        assert client.rewards([Sample("amber river", "")])[0].reward != rewards[0].reward
        assert client.rewards([]) == []


def test_scores_rendered_text_as_the_server_scores_its_turns(address: str) -> None:
    prompt = "<|im_start|>user\namber river<|im_end|>\n<|im_start|>assistant\n"
    with Client(address) as client:
        [reward] = client.rewards([SAMPLE])
        expected = pytest.approx([reward.reward], abs=1e-5)
        assert client.rendered_rewards([f"{prompt}quiet stone"], [prompt]) == expected
        assert client.rendered_rewards([f"{prompt}quiet stone"]) == expected


def test_several_models_score_each_sample_in_one_request(address: str) -> None:
    samples = [Sample("amber river", word) for word in tiny.WORDS]
    before = rewards_requests(address)
    with Client(address) as client:
        by_model = client.rewards_by_model(samples, MODELS, top_k=1)
        assert rewards_requests(address) - before == 1
        assert [list(rewards) for rewards in by_model] == [MODELS] * len(samples)
        assert client.rewards_by_model([], MODELS) == []
    for name in MODELS:
        with Client(address, model=name) as client:
            alone = [reward.reward for reward in client.rewards(samples)]
        rewards = [rewards[name] for rewards in by_model]
        assert [reward.reward for reward in rewards] == pytest.approx(alone, abs=1e-5)
        assert all(reward.model == name and len(reward.features) == 1 for reward in rewards)


def test_a_model_named_twice_is_scored_once_and_none_is_refused(address: str) -> None:
    with Client(address) as client:
        [rewards] = client.rewards_by_model([SAMPLE], ["beta", "alpha", "beta"])
        assert list(rewards) == ["beta", "alpha"]
        invalid: list[list[str] | str] = [[], "alpha"]
        for models in invalid:
            with pytest.raises(ValueError, match="at least one model name"):
                client.rewards_by_model([SAMPLE], models)
        with pytest.raises(RequestFailed, match="no model") as failure:
            client.rewards_by_model([SAMPLE], ["alpha", "unknown"])
    assert failure.value.status == 404


def test_the_async_client_scores_several_models_as_the_blocking_one(address: str) -> None:
    samples = [Sample("amber river", word) for word in tiny.WORDS]

    async def score() -> Any:
        async with AsyncClient(address, model="beta") as client:
            return await asyncio.gather(
                client.rewards_by_model(samples, MODELS, top_k=2), client.rewards(samples, top_k=2)
            )

    by_model, by_default = asyncio.run(score())
    with Client(address, model="beta") as client:
        expected = client.rewards_by_model(samples, MODELS, top_k=2)
        assert [values(rewards) for rewards in by_model] == [close(values(rewards)) for rewards in expected]
        assert [reward.reward for reward in by_default] == close(
            [rewards["beta"].reward for rewards in expected]
        )


def test_turns_are_typed_and_requested_by_call(address: str) -> None:
    chat = [
        {"role": "user", "content": "amber river"}, {"role": "assistant", "content": "quiet stone"},
        {"role": "user", "content": "seven"},
    ]  # fmt: skip
    sample = Sample(chat, "maple orbit")
    with Client(address, model="alpha") as client:
        [earlier] = client.rewards([Sample(chat[:1], "quiet stone")])
        [reward] = client.rewards([sample], turns=True)
        [by_model] = client.rewards_by_model([sample], MODELS, turns=True)
        assert client.rewards([sample], top_k=1)[0].turns == ()
    first, last = reward.turns
    assert (first.message, last.message, last.reward) == (1, 3, reward.reward)
    assert first.reward == pytest.approx(earlier.reward, abs=1e-5)
    assert last.change == pytest.approx(last.reward - first.reward, abs=1e-9)
    assert reward.features == ()
    assert all([turn.message for turn in by_model[name].turns] == [1, 3] for name in MODELS)

    async def score() -> Any:
        async with AsyncClient(address, model="alpha") as client:
            return await asyncio.gather(client.rewards([sample], turns=True), client.rewards([sample]))

    [with_turns], [without] = asyncio.run(score())
    assert [turn.reward for turn in with_turns.turns] == close([turn.reward for turn in reward.turns])
    assert without.turns == ()


def test_passages_are_typed_and_come_with_features(address: str) -> None:
    sample = Sample("amber river", ". ".join(tiny.WORDS))
    with Client(address, model="delta") as client:
        [reward] = client.rewards([sample], top_k=1)
        [without] = client.rewards([sample])
        [by_model] = client.rewards_by_model([sample], ["alpha", "delta"], turns=True)
        body = {"model": "delta", "inputs": [sample.as_input()], "top_k": 1}
        [row] = client.post("/v1/rewards", body)["data"]
    assert 1 <= len(reward.passages) <= 3
    assert [asdict(passage) for passage in reward.passages] == row["passages"]
    assert all(passage.text in sample.response for passage in reward.passages)
    assert without.passages == by_model["alpha"].passages == ()
    assert [p.text for p in by_model["delta"].passages] == [p.text for p in reward.passages]


def test_a_response_that_cannot_be_scored_has_an_error_for_each_model() -> None:
    failed = {"model": "alpha", "error": {"message": "not a finite number", "code": "non_finite"}}
    scored = {
        "model": "beta", "reward": 0.5, "uncertainty": 0.1, "percentile": None, "distance": 3.0,
        "features": [], "truncated": False,
    }  # fmt: skip
    [[alpha, beta]] = _wire.parse_rewards({"data": [failed, scored]}, samples=1, models=2)
    assert (alpha.model, alpha.error, isnan(alpha.reward)) == ("alpha", "not a finite number", True)
    with pytest.raises(RequestFailed, match="not a finite number"):
        alpha.raise_for_error()
    assert (beta.error, beta.raise_for_error().reward) == (None, 0.5)
    with pytest.raises(RequestFailed, match=r"sent 2 rewards for 2 samples and 2 model\(s\)"):
        _wire.parse_rewards({"data": [failed, scored]}, samples=2, models=2)


def test_a_rejected_request_raises_at_once_with_the_server_s_reason(address: str) -> None:
    with (
        Client(address, model="unknown") as client,
        pytest.raises(RequestFailed, match="no model") as failure,
    ):
        client.rewards([SAMPLE])
    assert failure.value.status == 404
    with Client(address) as client, pytest.raises(RequestFailed, match="surrogate"):
        client.rewards([Sample("amber", "\ud800")])


def test_attempts_end_after_retry_for_s() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    started = time.monotonic()
    with (
        Client(f"http://127.0.0.1:{port}", retry_for_s=1.0) as client,
        pytest.raises(RequestFailed, match="retry_for_s=1 seconds") as failure,
    ):
        client.rewards([SAMPLE])
    assert failure.value.status is None
    assert time.monotonic() - started < 5


def test_delays_respect_retry_after_and_grow_to_a_maximum() -> None:
    policy = RetryPolicy(1000)
    assert policy.next_delay_s(httpx.Response(429, headers={"Retry-After": "7"})) >= 7
    delays = [policy.next_delay_s(httpx.Response(503)) for _ in range(12)]
    assert delays[0] < 2
    assert 7 < delays[-1] < 23


def test_a_client_can_be_pickled_after_use(address: str) -> None:
    with Client(address, model="beta") as client:
        [before] = client.rewards([SAMPLE])
        with pickle.loads(pickle.dumps(client)) as copy:  # noqa: S301 # our own bytes
            assert copy.rewards([SAMPLE]) == [before]


def test_calls_made_at_the_same_time_are_one_request(address: str) -> None:
    async def score() -> Any:
        async with AsyncClient(address) as client:
            calls = (client.rewards([Sample("amber", word)] * 2) for word in tiny.WORDS)
            return await asyncio.gather(*calls)

    before = rewards_requests(address)
    scored = asyncio.run(score())
    assert rewards_requests(address) - before == 1
    with Client(address) as client:
        for word, rewards in zip(tiny.WORDS, scored, strict=True):
            expected = client.rewards([Sample("amber", word)])[0].reward
            assert [reward.reward for reward in rewards] == close([expected] * 2)


def test_an_async_client_outlives_its_loop_and_raises_a_failure_in_every_call(address: str) -> None:
    async def score(client: AsyncClient) -> list[Any]:
        async with client:
            calls = (client.rewards([SAMPLE]) for _ in range(3))
            return await asyncio.gather(*calls, return_exceptions=True)

    client = AsyncClient(address, model="alpha")
    assert asyncio.run(score(client)) == asyncio.run(score(client))
    failures = asyncio.run(score(AsyncClient(address, model="unknown")))
    assert [type(failure) for failure in failures] == [RequestFailed] * 3


def test_both_clients_have_the_same_methods() -> None:
    def methods(kind: type) -> dict[str, list[str]]:
        public = {name: value for name, value in vars(kind).items() if not name.startswith("_")}
        parts = {**public, "__init__": kind.__init__}  # type: ignore[misc] # only its parameters are read
        return {
            name: [str(p) for p in inspect.signature(part).parameters.values()]
            for name, part in parts.items()
        }

    assert methods(Client) == methods(AsyncClient)


@pytest.mark.parametrize("module", [sparserm_client, trainers])
def test_public_names_are_sorted_and_exist(module: Any) -> None:
    constants = sorted(name for name in module.__all__ if name.isupper())
    classes = sorted(name for name in module.__all__ if name[0].isupper() and not name.isupper())
    functions = sorted(name for name in module.__all__ if name.islower())
    assert module.__all__ == [*constants, *classes, *functions]
    assert all(hasattr(module, name) for name in module.__all__)


def close(numbers: Any) -> Any:
    return pytest.approx(numbers, abs=1e-5)


def values(rewards: dict[str, Reward]) -> dict[str, float]:
    return {name: reward.reward for name, reward in rewards.items()}


def rewards_requests(address: str) -> float:
    """How many requests to /v1/rewards the server has answered."""
    counter = 'sparserm_requests_total{code="200",method="POST",route="/v1/rewards"'
    lines = httpx.get(f"{address}/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(counter))


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
    return subprocess.Popen(program, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.mark.heavy
def test_a_killed_and_restarted_server_loses_no_sample(root: Path, engine: Engine) -> None:
    samples = [Sample("amber river", f"{word} {n}") for n in range(40) for word in tiny.WORDS]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    rewards: list[float] = []

    def train() -> None:
        with Client(f"http://127.0.0.1:{port}", retry_for_s=120) as client:
            rewards.extend(client.rewards([sample])[0].reward for sample in samples)

    first = serve(root, port)
    trainer = threading.Thread(target=train)
    trainer.start()
    while len(rewards) < 50:
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.wait()
    scored_before_the_kill = len(rewards)
    second = serve(root, port)
    trainer.join(timeout=150)
    second.terminate()
    second.wait()
    assert scored_before_the_kill < len(samples)
    items = [tiny.make_item(str(sample.prompt), sample.response) for sample in samples]
    expected = [score.reward for (score,) in tiny.score_items(engine, items, ScoreOptions(("alpha",)))]
    assert rewards == pytest.approx(expected, abs=1e-5)
