"""Hundreds of one-item requests at once, each on its own connection, as OpenRLHF sends them since 0.9.1."""

import asyncio
from random import Random

import httpx
import pytest

from app.reward.engine import Engine
from app.settings import Settings
from tests.support import tiny
from tests.support.servers import run_server

SAMPLES = 300


def random_queries(seed: int) -> list[str]:
    """Conversations in chat markup of a usual length that share nothing but the template."""
    random = Random(seed)
    template = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n{}"
    texts = [" ".join(random.choices(tiny.WORDS, k=18)) for _ in range(2 * SAMPLES)]
    pairs = zip(texts[::2], texts[1::2], strict=True)
    return [template.format(prompt, response) for prompt, response in pairs]


async def score_separately(address: str, queries: list[str]) -> list[float]:
    """Send one request per query, all at once; return the rewards."""

    async def score(query: str) -> float:
        async with httpx.AsyncClient(timeout=180) as client:
            response = await client.post(f"{address}/get_reward", json={"query": [query]})
            response.raise_for_status()
            return float(response.json()["rewards"][0])

    return await asyncio.gather(*(score(query) for query in queries))


def read_batch_counts(address: str) -> tuple[float, float]:
    """Return the numbers of items and batches so far."""
    lines = dict(
        line.rsplit(" ", 1) for line in httpx.get(f"{address}/metrics").text.splitlines() if line[0] != "#"
    )
    return float(lines["sparserm_batch_items_sum"]), float(lines["sparserm_batch_items_count"])


@pytest.mark.parametrize("concurrent_batches", [1, 2])
def test_many_one_item_requests_are_batched_and_none_is_lost(
    engine: Engine, settings: Settings, concurrent_batches: int
) -> None:
    """With one batch of 1,024 tokens at a time, and with two."""
    changes = {"concurrent_batches": concurrent_batches, "max_batch_tokens": 1024 * concurrent_batches}
    with run_server(engine, settings.model_copy(update=changes)) as address:
        before = read_batch_counts(address)
        queries = random_queries(0)
        separate = asyncio.run(score_separately(address, queries))
        after = read_batch_counts(address)
        items, batches = (after[0] - before[0], after[1] - before[1])
        response = httpx.post(f"{address}/get_reward", json={"query": queries}, timeout=180)
        together = response.json()["rewards"]
    assert items == SAMPLES
    assert items / batches > 8
    assert separate == pytest.approx(together, abs=1e-5)
