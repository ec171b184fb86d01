"""The reward functions of sparserm_client.trainers, called as each trainer calls them, on a live server."""

import asyncio
import pickle
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from sparserm_client import Client, Sample, trainers

PROMPT, RESPONSES = "amber river", ["quiet stone", "glass", ""]
MESSAGES = [{"role": "user", "content": PROMPT}]
RENDERED = f"<|im_start|>user\n{PROMPT}<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture
def expected(address: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """The rewards that every function should return; the environment names the server."""
    monkeypatch.setenv("SPARSERM_URL", address)
    monkeypatch.setenv("SPARSERM_MODEL", "beta")
    with Client(address, model="beta") as client:
        rewards = client.rewards([Sample(PROMPT, response) for response in RESPONSES])
        yield [reward.reward for reward in rewards]
    trainers.close_clients()


def close(values: Any) -> Any:
    return pytest.approx(values, abs=1e-5)


def test_trl_plain_and_conversational(address: str, expected: list[float]) -> None:
    reward = pickle.loads(pickle.dumps(trainers.TrlReward(address, model="beta")))  # noqa: S301 # our own bytes
    assert reward.__name__ == "sparserm_beta"
    columns: dict[str, list[Any]] = {}
    metrics: dict[str, float] = {}
    extras = {
        "completion_ids": [[1]] * 3,
        "log_extra": columns.__setitem__,
        "log_metric": metrics.__setitem__,
    }
    assert reward(prompts=[PROMPT] * 3, completions=RESPONSES, **extras) == close(expected)
    assert len(columns["features"]) == len(columns["uncertainty"]) == 3
    assert columns["features"][0].count(",") == trainers.LOGGED_FEATURES - 1
    assert set(metrics) == {"uncertainty", "distance"}
    chats = [[{"role": "assistant", "content": response}] for response in RESPONSES]
    assert reward(prompts=[MESSAGES] * 3, completions=chats) == close(expected)
    reward.client.close()


def test_trl_awaited(address: str, expected: list[float]) -> None:
    async def score() -> list[float | None]:
        reward = pickle.loads(pickle.dumps(trainers.AsyncTrlReward(address, model="beta")))  # noqa: S301 # our own bytes
        async with reward.client:
            rewards: list[float | None] = await reward(prompts=[PROMPT] * 3, completions=RESPONSES)
        return rewards

    assert asyncio.run(score()) == close(expected)


def test_verl(expected: list[float]) -> None:
    result = trainers.compute_score("math", RESPONSES[0], "42", {"prompt": PROMPT})
    assert result["score"] == close(expected[0])
    assert all(isinstance(value, float) for value in result.values())
    messages = trainers.compute_score("math", RESPONSES[1], None, {"prompt": MESSAGES})
    assert messages["score"] == close(expected[1])


def test_verl_reads_the_server_from_its_reward_kwargs(
    address: str, expected: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARSERM_URL", "http://127.0.0.1:1")
    result = trainers.compute_score("x", RESPONSES[0], None, {"prompt": PROMPT}, url=address, model="beta")
    assert result["score"] == close(expected[0])


def test_openrlhf_s_python_hook(expected: list[float]) -> None:
    texts = [RENDERED + response for response in RESPONSES]
    result = trainers.reward_func(texts, [RENDERED] * 3, [None] * 3)
    assert result["rewards"].tolist() == close(expected)
    assert set(result) == {"rewards", "scores", "extra_logs"}


def test_slime_one_sample_and_many(address: str, expected: list[float]) -> None:
    args = SimpleNamespace(rm_url=address)
    rendered = [SimpleNamespace(prompt=RENDERED, response=response) for response in RESPONSES]
    chats = [SimpleNamespace(prompt=MESSAGES, response=response) for response in RESPONSES]
    assert asyncio.run(trainers.custom_rm(args, rendered)) == close(expected)
    assert asyncio.run(trainers.custom_rm(args, chats)) == close(expected)
    assert asyncio.run(trainers.custom_rm(args, rendered[1])) == close(expected[1])


def test_swift_blocking_and_awaited(expected: list[float]) -> None:
    messages = [[*MESSAGES, {"role": "assistant", "content": response}] for response in RESPONSES]
    extras = {"finish_reason": ["stop"] * 3}
    assert trainers.SwiftReward()(RESPONSES, messages=messages, **extras) == close(expected)
    assert trainers.SwiftReward()(RESPONSES, messages=[MESSAGES] * 3) == close(expected)
    for _ in range(2):
        assert asyncio.run(trainers.AsyncSwiftReward()(RESPONSES, messages=messages)) == close(expected)


def test_areal_and_rewardbench(expected: list[float]) -> None:
    assert trainers.reward_fn(RENDERED, RESPONSES[0], [1], [2], answer="x") == close(expected[0])
    results = trainers.RewardBenchPipeline("model", task="text-classification")(
        [f"{RENDERED}{response}<|im_end|>\n" for response in RESPONSES], batch_size=8
    )
    assert [result["score"] for result in results] == close(expected)


def test_skyrl(expected: list[float]) -> None:
    environment = trainers.skyrl_env(object)()
    environment.init(MESSAGES)
    step = environment.step(RESPONSES[0])
    assert step["reward"] == close(expected[0])
    assert step["done"]
