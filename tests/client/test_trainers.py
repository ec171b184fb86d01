"""The callables that trainers are pointed at, in each trainer's shape, against a live server."""

import asyncio
import pickle
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from sparserm_client import Ask, Client, trainers

PROMPT, SAID = "amber river", ["quiet stone", "glass", ""]
TURNS = [{"role": "user", "content": PROMPT}]
RENDERED = f"<|im_start|>user\n{PROMPT}<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture
def wanted(address: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """The rewards that every callable should give; the environment names the server."""
    monkeypatch.setenv("SPARSERM_URL", address)
    monkeypatch.setenv("SPARSERM_MODEL", "beta")
    with Client(address, model="beta") as client:
        yield [one.reward for one in client.rewards([Ask(PROMPT, said) for said in SAID])]
    trainers.forget()


def close(values: Any) -> Any:
    return pytest.approx(values, abs=1e-5)


def test_trl_plain_and_conversational(address: str, wanted: list[float]) -> None:
    reward = pickle.loads(pickle.dumps(trainers.TrlReward(address, model="beta")))  # noqa: S301 # our own bytes
    assert reward.__name__ == "sparserm_beta"
    columns: dict[str, list[Any]] = {}
    scalars: dict[str, float] = {}
    given = {"completion_ids": [[1]] * 3, "log_extra": columns.__setitem__, "log_metric": scalars.__setitem__}
    assert reward(prompts=[PROMPT] * 3, completions=SAID, **given) == close(wanted)
    assert len(columns["features"]) == len(columns["uncertainty"]) == 3
    assert columns["features"][0].count(",") == trainers.TOP - 1
    assert set(scalars) == {"uncertainty", "distance"}
    chats = [[{"role": "assistant", "content": said}] for said in SAID]
    assert reward(prompts=[TURNS] * 3, completions=chats) == close(wanted)
    reward.client.close()


def test_trl_awaited(address: str, wanted: list[float]) -> None:
    async def ask() -> list[float | None]:
        reward = trainers.AsyncTrlReward(address, model="beta")
        async with reward.client:
            return await reward(prompts=[PROMPT] * 3, completions=SAID)

    assert asyncio.run(ask()) == close(wanted)


def test_verl(wanted: list[float]) -> None:
    found = trainers.compute_score("math", SAID[0], "42", {"prompt": PROMPT})
    assert found["score"] == close(wanted[0])
    assert all(isinstance(value, float) for value in found.values())
    assert trainers.compute_score("math", SAID[1], None, {"prompt": TURNS})["score"] == close(wanted[1])


def test_verl_is_told_the_server_by_its_reward_kwargs(
    address: str, wanted: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARSERM_URL", "http://127.0.0.1:1")
    found = trainers.compute_score("x", SAID[0], None, {"prompt": PROMPT}, url=address, model="beta")
    assert found["score"] == close(wanted[0])


def test_openrlhf_s_python_hook(wanted: list[float]) -> None:
    found = trainers.reward_func([RENDERED + said for said in SAID], [RENDERED] * 3, [None] * 3)
    assert found["rewards"].tolist() == close(wanted)
    assert set(found) == {"rewards", "scores", "extra_logs"}


def test_slime_one_sample_and_many(address: str, wanted: list[float]) -> None:
    args = SimpleNamespace(rm_url=address)
    rendered = [SimpleNamespace(prompt=RENDERED, response=said) for said in SAID]
    turns = [SimpleNamespace(prompt=TURNS, response=said) for said in SAID]
    assert asyncio.run(trainers.custom_rm(args, rendered)) == close(wanted)
    assert asyncio.run(trainers.custom_rm(args, turns)) == close(wanted)
    assert asyncio.run(trainers.custom_rm(args, rendered[1])) == close(wanted[1])


def test_swift_in_both_ways(wanted: list[float]) -> None:
    messages = [[*TURNS, {"role": "assistant", "content": said}] for said in SAID]
    assert trainers.SwiftReward()(SAID, messages=messages, finish_reason=["stop"] * 3) == close(wanted)
    for _ in range(2):
        assert asyncio.run(trainers.AsyncSwiftReward()(SAID, messages=messages)) == close(wanted)


def test_areal_and_rewardbench(wanted: list[float]) -> None:
    assert trainers.reward_fn(RENDERED, SAID[0], [1], [2], answer="x") == close(wanted[0])
    rows = trainers.RewardBenchPipeline("model", task="text-classification")(
        [f"{RENDERED}{said}<|im_end|>\n" for said in SAID], batch_size=8
    )
    assert [row["score"] for row in rows] == close(wanted)


def test_skyrl(wanted: list[float]) -> None:
    environment = trainers.skyrl_env(object)()
    environment.init(TURNS)
    step = environment.step(SAID[0])
    assert step["reward"] == close(wanted[0])
    assert step["done"]
