"""Request bodies of the server's routes, and the rewards in its responses."""

from collections.abc import Iterator, Sequence
from math import nan
from typing import Any, TypeVar

import httpx

from sparserm_client._config import describe_error
from sparserm_client._types import (
    ConceptShare,
    FeatureShare,
    PassageReward,
    RequestFailed,
    Reward,
    Sample,
    TurnReward,
)

T = TypeVar("T")
# Well under the server's default limit of responses in one request (SPARSERM_MAX_ITEMS).
MAX_ITEMS_PER_REQUEST = 512


def split_into_requests(items: Sequence[T]) -> list[Sequence[T]]:
    """Cut a sequence into pieces that fit into one request each."""
    starts = range(0, len(items), MAX_ITEMS_PER_REQUEST)
    return [items[start : start + MAX_ITEMS_PER_REQUEST] for start in starts]


def rewards_body(
    samples: Sequence[Sample], model: str | Sequence[str] | None, top_k: int, *, turns: bool
) -> dict[str, Any]:
    """Return the body of POST /v1/rewards; several models are scored in one forward pass."""
    return {
        "model": model if model is None or isinstance(model, str) else list(model),
        "inputs": [sample.as_input() for sample in samples],
        "top_k": top_k,
        "explain": "turns" if turns else "features" if top_k else "none",
    }


def build_rendered_requests(
    texts: Sequence[str], prompts: Sequence[str] | None, model: str | None
) -> Iterator[dict[str, Any]]:
    """Yield bodies of POST /get_reward, which scores text that a chat template has rendered."""
    for indices in split_into_requests(range(len(texts))):
        chunk_prompts = [prompts[i] for i in indices] if prompts else None
        yield {"query": [texts[i] for i in indices], "prompts": chunk_prompts, "model": model}


def parse_rewards(response: dict[str, Any], samples: int, models: int = 1) -> list[list[Reward]]:
    """Return the rewards of a response, a list with one reward per model for each sample."""
    rows = response["data"]
    if len(rows) != samples * models:
        raise RequestFailed(
            f"the server sent {len(rows)} rewards for {samples} samples and {models} model(s)"
        )
    rewards = [_parse_reward(row) for row in rows]
    return [rewards[start : start + models] for start in range(0, len(rewards), models)]


def parse_body(response: httpx.Response) -> Any:
    """Return the JSON body of a response; raise RequestFailed with the server's message if it is an error."""
    if response.is_success:
        return response.json()
    raise RequestFailed(describe_error(response), response.status_code)


def unique_models(models: Sequence[str]) -> tuple[str, ...]:
    """Return the names in order without repetitions, as the server scores them; ValueError for none."""
    if isinstance(models, str) or not models:
        raise ValueError(f"models must be a list of at least one model name, not {models!r}")
    return tuple(dict.fromkeys(models))


def _parse_reward(row: dict[str, Any]) -> Reward:
    if "error" in row:
        return Reward(nan, nan, None, nan, row["model"], (), truncated=False, error=row["error"]["message"])
    features = tuple(
        FeatureShare(feature["id"], feature["label"], feature["contribution"]) for feature in row["features"]
    )
    turns = tuple(
        TurnReward(turn["message"], turn["reward"], turn["change"]) for turn in row.get("turns", ())
    )
    passages = tuple(
        PassageReward(
            passage["start"], passage["end"], passage["text"], passage["reward"], passage["weight"],
            passage["contribution"],
        )
        for passage in row.get("passages", ())
    )  # fmt: skip
    concepts = tuple(
        ConceptShare(concept["name"], concept["contribution"], concept["phrase"])
        for concept in row.get("concepts", ())
    )
    return Reward(
        row["reward"], row["uncertainty"], row["percentile"], row["distance"], row["model"], features,
        row["truncated"], turns=turns, passages=passages, concepts=concepts, coverage=row.get("coverage"),
        why=row.get("why"),
    )  # fmt: skip
