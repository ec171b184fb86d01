"""Reward functions for trainers that call Python instead of a server, one for each trainer's signature.

TRL's are constructed with the server's address. All others can only be named in a trainer's configuration,
so they read the environment variables SPARSERM_URL, SPARSERM_MODEL and SPARSERM_KEY.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sparserm_client._async_client import AsyncClient
from sparserm_client._client import Client
from sparserm_client._config import DEFAULT_URL
from sparserm_client._types import ConceptShare, FeatureShare, Reward, Sample

__all__ = [
    "AsyncSwiftReward",
    "AsyncTrlReward",
    "RewardBenchPipeline",
    "SwiftReward",
    "TrlReward",
    "close_clients",
    "compute_score",
    "custom_rm",
    "reward_fn",
    "reward_func",
    "skyrl_env",
]

# How many features TRL's table of completions lists for each reward.
LOGGED_FEATURES = 3
# AReaL stops waiting for a reward function after 15 seconds and uses the reward 0.
AREAL_TIMEOUT_S = 10.0
AREAL_RETRY_FOR_S = 12.0

_clients: dict[tuple[tuple[str, Any], ...], Client] = {}


class TrlReward:
    """Reward function for TRL's GRPO, RLOO and online DPO trainers; can be pickled.

    `options` are those of `Client`. A completion that the server could not score gets None, which TRL
    excludes. Where the trainer offers it, the largest features of each reward are logged beside the
    completions, and mean uncertainty and distance as metrics.
    """

    def __init__(self, url: str = DEFAULT_URL, **options: Any) -> None:
        self.client = Client(url, **options)
        self.__name__ = _metric_name(self.client.config.model)

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], **arguments: Any
    ) -> list[float | None]:
        """Return one reward per completion."""
        rewards = self.client.rewards(_trl_samples(prompts, completions), top_k=LOGGED_FEATURES)
        _log_to_trl(rewards, arguments)
        return [None if reward.error else reward.reward for reward in rewards]


class AsyncTrlReward:
    """The same as `TrlReward` for TRL's trainers that await reward functions: GRPO, RLOO and AsyncGRPO."""

    def __init__(self, url: str = DEFAULT_URL, **options: Any) -> None:
        self.client = AsyncClient(url, **options)
        self.__name__ = _metric_name(self.client.config.model)

    async def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], **arguments: Any
    ) -> list[float | None]:
        """Return one reward per completion."""
        rewards = await self.client.rewards(_trl_samples(prompts, completions), top_k=LOGGED_FEATURES)
        _log_to_trl(rewards, arguments)
        return [None if reward.error else reward.reward for reward in rewards]


class SwiftReward:
    """Outcome reward for ms-swift: write `orms["sparserm"] = SwiftReward` in a plugin."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.client = _shared_client()

    def __call__(self, completions: Sequence[str], messages: Sequence[Any] = (), **_: Any) -> list[float]:
        """Return one reward per completion; the prompt is what precedes the completion in `messages`."""
        rewards = self.client.rewards(_swift_samples(completions, messages))
        return [reward.raise_for_error().reward for reward in rewards]


class AsyncSwiftReward:
    """The same as `SwiftReward`, awaited."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    async def __call__(
        self, completions: Sequence[str], messages: Sequence[Any] = (), **_: Any
    ) -> list[float]:
        """Return one reward per completion.

        ms-swift runs each step in a new event loop, so the connections are closed after each call.
        """
        async with AsyncClient(**_client_options()) as client:
            rewards = await client.rewards(_swift_samples(completions, messages))
        return [reward.raise_for_error().reward for reward in rewards]


class RewardBenchPipeline:
    """Replaces the text classification pipeline that RewardBench calls with rendered conversations."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.client = _shared_client()

    def __call__(self, samples: Sequence[str], **_: Any) -> list[dict[str, Any]]:
        """Return one classification result per text, its score being the reward."""
        return [{"label": "LABEL_0", "score": reward} for reward in self.client.rendered_rewards(samples)]


def compute_score(
    data_source: str, solution_str: str, ground_truth: Any, extra_info: Mapping[str, Any] | None = None,
    **options: Any,
) -> dict[str, float]:  # fmt: skip
    """Score one response for verl's `custom_reward_function`.

    verl does not pass the prompt; the data set must have it in `extra_info["prompt"]`. `options` come from
    `reward_kwargs` and are those of `Client`: url, model, key, timeout_s, retry_for_s.
    """
    prompt = (extra_info or {}).get("prompt", "")
    [reward] = _shared_client(**options).rewards([Sample(prompt, solution_str)])
    score = reward.raise_for_error().reward
    return {"score": score, "uncertainty": reward.uncertainty, "distance": reward.distance}


def reward_func(queries: Sequence[str], prompts: Sequence[str], labels: Any, **_: Any) -> dict[str, Any]:
    """Score rendered texts for OpenRLHF, if `--reward.remote_url` is a Python file that imports this."""
    import torch

    rewards = torch.tensor(_shared_client().rendered_rewards(queries, prompts))
    return {"rewards": rewards, "scores": torch.sigmoid(rewards), "extra_logs": {}}


async def custom_rm(args: Any, sample: Any, **_: Any) -> Any:
    """Score one sample or a list of them for slime's and miles' `--custom-rm-path`.

    The server is `--rm-url`, or SPARSERM_URL without it. Prompts that are strings count as rendered by the
    policy's chat template.
    """
    samples = sample if isinstance(sample, list) else [sample]
    async with AsyncClient(**_client_options(url=getattr(args, "rm_url", None))) as client:
        if all(isinstance(sample.prompt, str) for sample in samples):
            texts = [sample.prompt + sample.response for sample in samples]
            rewards = await client.rendered_rewards(texts, [sample.prompt for sample in samples])
        else:
            scored = await client.rewards([Sample(sample.prompt, sample.response) for sample in samples])
            rewards = [reward.raise_for_error().reward for reward in scored]
    return rewards if isinstance(sample, list) else rewards[0]


def reward_fn(prompt: str, completions: str, prompt_ids: Any, completion_ids: Any, **_: Any) -> float:
    """Score one response for AReaL, which decodes prompt and response with their special tokens."""
    client = _shared_client(timeout_s=AREAL_TIMEOUT_S, retry_for_s=AREAL_RETRY_FOR_S)
    return client.rendered_rewards([prompt + completions], [prompt])[0]


def skyrl_env(base: type) -> type:
    """Return a SkyRL environment of one turn whose reward is the server's; `base` is SkyRL's BaseTextEnv."""

    class SparseRMEnv(base):  # type: ignore[misc] # the base class is only known at run time
        """Scores the policy's first response and ends the episode."""

        def init(self, prompt: Any) -> tuple[Any, dict[str, Any]]:
            """Store the prompt, and return it unchanged."""
            self.prompt = prompt
            return prompt, {}

        def step(self, action: str) -> dict[str, Any]:
            """Return the reward of the response `action`."""
            [reward] = _shared_client().rewards([Sample(self.prompt, action)])
            score = reward.raise_for_error().reward
            metadata = {"uncertainty": reward.uncertainty, "distance": reward.distance}
            return {"observations": [], "reward": score, "done": True, "metadata": metadata}

    return SparseRMEnv


def close_clients() -> None:
    """Close the connections of the clients that the functions of this module share."""
    while _clients:
        _clients.popitem()[1].close()


def _shared_client(**options: Any) -> Client:
    """Return the client with these options; there is one for each combination, with open connections."""
    resolved = _client_options(**options)
    return _clients.setdefault(tuple(sorted(resolved.items())), Client(**resolved))


def _client_options(**options: Any) -> dict[str, Any]:
    """Return options of a client: those given, else those of the environment."""
    environment = {name: os.environ.get(f"SPARSERM_{name.upper()}") for name in ("url", "model", "key")}
    explicit = {name: value for name, value in options.items() if value is not None}
    return {name: value for name, value in {**environment, **explicit}.items() if value}


def _metric_name(model: str | None) -> str:
    """Return the name under which TRL logs the reward."""
    return f"sparserm_{model}" if model else "sparserm"


def _trl_samples(prompts: Sequence[Any], completions: Sequence[Any]) -> list[Sample]:
    return [
        Sample(prompt, _completion_text(completion))
        for prompt, completion in zip(prompts, completions, strict=True)
    ]


def _completion_text(completion: str | Sequence[Mapping[str, str]]) -> str:
    if isinstance(completion, str):
        return completion
    return "".join(message["content"] for message in completion)


def _swift_samples(completions: Sequence[str], conversations: Sequence[Any]) -> list[Sample]:
    """Return samples whose prompts are the conversations without the final assistant message."""
    if not conversations:
        conversations = [[{"role": "user", "content": ""}]] * len(completions)
    return [
        Sample(_without_completion(messages), completion)
        for messages, completion in zip(conversations, completions, strict=True)
    ]


def _without_completion(messages: Sequence[Any]) -> Sequence[Any]:
    return messages[:-1] if messages and messages[-1]["role"] == "assistant" else messages


def _log_to_trl(rewards: Sequence[Reward], arguments: Mapping[str, Any]) -> None:
    """Log features and uncertainty through the callbacks that TRL passes, where it does."""
    log_extra: Callable[[str, list[Any]], None] | None = arguments.get("log_extra")
    log_metric: Callable[[str, float], None] | None = arguments.get("log_metric")
    if log_extra:
        log_extra("features", [", ".join(map(_format_share, reward.features)) for reward in rewards])
        log_extra("concepts", [", ".join(map(_format_concept, _list_named(reward))) for reward in rewards])
        log_extra("uncertainty", [reward.uncertainty for reward in rewards])
    scored = [reward for reward in rewards if not reward.error]
    if log_metric and scored:
        log_metric("uncertainty", sum(reward.uncertainty for reward in scored) / len(scored))
        log_metric("distance", sum(reward.distance for reward in scored) / len(scored))
        totals: dict[str, float] = {}
        for concept in (concept for reward in scored for concept in reward.concepts if concept.name):
            totals[str(concept.name)] = totals.get(str(concept.name), 0.0) + concept.contribution
        for name, total in totals.items():
            log_metric(f"concept/{name}", total / len(scored))


def _list_named(reward: Reward) -> list[ConceptShare]:
    """Return the largest contributions of concepts that have a name."""
    return [concept for concept in reward.concepts if concept.name][:LOGGED_FEATURES]


def _format_concept(share: ConceptShare) -> str:
    return f"{share.name} {share.contribution:+.2f}"


def _format_share(share: FeatureShare) -> str:
    return f"{share.label or share.id} {share.contribution:+.2f}"
