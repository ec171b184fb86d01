"""Rewards for trainers that call a Python function instead of a server: each shape once, ready to be named.

Functions that a trainer can only name read SPARSERM_URL, SPARSERM_MODEL and SPARSERM_KEY; docs/trainers.md
has the flag or the YAML for each.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sparserm_client import HERE, Ask, AsyncClient, Client, Reward, Share

TOP = 3
_kept: dict[tuple[tuple[str, Any], ...], Client] = {}


class TrlReward:
    """A reward function for TRL's GRPO, RLOO and online DPO trainers; it can be pickled.

    Where the trainer offers it, the features of each reward are logged beside the completions. A completion
    that the server could not score gets None, which TRL leaves out.
    """

    def __init__(self, url: str = HERE, **choices: Any) -> None:
        self.client = Client(url, **choices)
        self.__name__ = _name(self.client.server.model)

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], **given: Any
    ) -> list[float | None]:
        """One reward a completion."""
        found = self.client.rewards(_asks(prompts, completions), top_k=TOP)
        _log(found, given)
        return [None if one.error else one.reward for one in found]


class AsyncTrlReward:
    """The same for trainers that await their reward functions."""

    def __init__(self, url: str = HERE, **choices: Any) -> None:
        self.client = AsyncClient(url, **choices)
        self.__name__ = _name(self.client.server.model)

    async def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], **given: Any
    ) -> list[float | None]:
        """One reward a completion."""
        found = await self.client.rewards(_asks(prompts, completions), top_k=TOP)
        _log(found, given)
        return [None if one.error else one.reward for one in found]


class SwiftReward:
    """An outcome reward for ms-swift: `orms["sparserm"] = SwiftReward` in a plugin."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.client = _client()

    def __call__(self, completions: Sequence[str], messages: Sequence[Any] = (), **_: Any) -> list[float]:
        """One reward a completion; the prompt is what stands before it in `messages`."""
        return [one.known for one in self.client.rewards(_swift_asks(completions, messages))]


class AsyncSwiftReward:
    """The same, awaited."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    async def __call__(
        self, completions: Sequence[str], messages: Sequence[Any] = (), **_: Any
    ) -> list[float]:
        """One reward a completion; every step has a loop of its own, so connections end with it."""
        async with AsyncClient(**_environment()) as client:
            return [one.known for one in await client.rewards(_swift_asks(completions, messages))]


class RewardBenchPipeline:
    """Texts rendered by a chat template in, scores out, as RewardBench calls a classifier."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.client = _client()

    def __call__(self, samples: Sequence[str], **_: Any) -> list[dict[str, Any]]:
        """One score a text."""
        return [{"label": "LABEL_0", "score": score} for score in self.client.rendered(samples)]


def compute_score(
    data_source: str, solution_str: str, ground_truth: Any, extra_info: Mapping[str, Any] | None = None,
    **choices: Any,
) -> dict[str, float]:  # fmt: skip
    """Verl's custom reward function; the prompt is looked for in `extra_info["prompt"]`.

    `choices` come from `reward_kwargs`: url, model, key, timeout_s, patience_s.
    """
    prompt = (extra_info or {}).get("prompt", "")
    [found] = _client(**choices).rewards([Ask(prompt, solution_str)])
    return {"score": found.known, "uncertainty": found.uncertainty, "distance": found.distance}


def reward_func(queries: Sequence[str], prompts: Sequence[str], labels: Any, **_: Any) -> dict[str, Any]:
    """OpenRLHF's own Python hook (`--reward.remote_url FILE.py` that imports this)."""
    import torch

    rewards = torch.tensor(_client().rendered(queries, prompts))
    return {"rewards": rewards, "scores": torch.sigmoid(rewards), "extra_logs": {}}


async def custom_rm(args: Any, sample: Any, **_: Any) -> Any:
    """Slime's and miles' `--custom-rm-path sparserm_client.trainers.custom_rm`; one sample or a list of them."""
    samples = sample if isinstance(sample, list) else [sample]
    async with AsyncClient(**_environment(url=getattr(args, "rm_url", None))) as client:
        if all(isinstance(one.prompt, str) for one in samples):
            texts = [one.prompt + one.response for one in samples]
            found = await client.rendered(texts, [one.prompt for one in samples])
        else:
            rewards = await client.rewards([Ask(one.prompt, one.response) for one in samples])
            found = [one.known for one in rewards]
    return found if isinstance(sample, list) else found[0]


def reward_fn(prompt: str, completions: str, prompt_ids: Any, completion_ids: Any, **_: Any) -> float:
    """AReaL's reward function, on texts decoded with their special tokens."""
    return _client(timeout_s=10.0, patience_s=12.0).rendered([prompt + completions], [prompt])[0]


def skyrl_env(base: type) -> type:
    """An environment of one turn on SkyRL's BaseTextEnv, whose reward is ours."""

    class SparseRMEnv(base):  # type: ignore[misc] # its base is only known when SkyRL is there
        """Scores the first thing the policy says."""

        def init(self, prompt: Any) -> tuple[Any, dict[str, Any]]:
            """Keep the prompt."""
            self.prompt = prompt
            return prompt, {}

        def step(self, action: str) -> dict[str, Any]:
            """The reward of a response, and the end."""
            [found] = _client().rewards([Ask(self.prompt, action)])
            facts = {"uncertainty": found.uncertainty, "distance": found.distance}
            return {"observations": [], "reward": found.known, "done": True, "metadata": facts}

    return SparseRMEnv


def forget() -> None:
    """Close the connections that functions have kept."""
    while _kept:
        _kept.popitem()[1].close()


def _client(**choices: Any) -> Client:
    """One client for each way to ask, kept with its connections."""
    given = _environment(**choices)
    return _kept.setdefault(tuple(sorted(given.items())), Client(**given))


def _environment(**choices: Any) -> dict[str, Any]:
    named = {name: os.environ.get(f"SPARSERM_{name.upper()}") for name in ("url", "model", "key")}
    given = {name: value for name, value in choices.items() if value is not None}
    return {name: value for name, value in {**named, **given}.items() if value}


def _name(model: str | None) -> str:
    return f"sparserm_{model}" if model else "sparserm"


def _asks(prompts: Sequence[Any], completions: Sequence[Any]) -> list[Ask]:
    return [Ask(prompt, _text(said)) for prompt, said in zip(prompts, completions, strict=True)]


def _text(completion: str | Sequence[Mapping[str, str]]) -> str:
    return completion if isinstance(completion, str) else "".join(turn["content"] for turn in completion)


def _swift_asks(completions: Sequence[str], messages: Sequence[Any]) -> list[Ask]:
    before: Sequence[Any] = messages or [[{"role": "user", "content": ""}]] * len(completions)
    return [
        Ask([t for t in turns if t["role"] != "assistant" or t is not turns[-1]], said)
        for turns, said in zip(before, completions, strict=True)
    ]


def _log(found: Sequence[Reward], given: Mapping[str, Any]) -> None:
    extra: Callable[[str, list[Any]], None] | None = given.get("log_extra")
    metric: Callable[[str, float], None] | None = given.get("log_metric")
    if extra:
        extra("features", [", ".join(_shown(share) for share in one.features) for one in found])
        extra("uncertainty", [one.uncertainty for one in found])
    scored = [one for one in found if not one.error]
    if metric and scored:
        metric("uncertainty", sum(one.uncertainty for one in scored) / len(scored))
        metric("distance", sum(one.distance for one in scored) / len(scored))


def _shown(share: Share) -> str:
    return f"{share.label or share.id} {share.contribution:+.2f}"
