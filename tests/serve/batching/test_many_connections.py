"""Like OpenRLHF since 0.9.1: hundreds of one-item requests at once, each on a connection of its own."""

import asyncio
from random import Random

import httpx
import pytest

from app.reward.engine import Engine
from app.settings import Settings
from tests.support import tiny
from tests.support.servers import listening

SAMPLES = 300


def texts(turn: int) -> list[str]:
    """Rendered conversations that share nothing but the template, of a usual length."""
    random = Random(turn)
    head = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n{}"
    words = [" ".join(random.choices(tiny.WORDS, k=18)) for _ in range(2 * SAMPLES)]
    return [head.format(asked, said) for asked, said in zip(words[::2], words[1::2], strict=True)]


async def storm(address: str, queries: list[str]) -> list[float]:
    """One request a sample, all at once."""

    async def ask(query: str) -> float:
        async with httpx.AsyncClient(timeout=180) as client:
            answer = await client.post(f"{address}/get_reward", json={"query": [query]})
            answer.raise_for_status()
            return float(answer.json()["rewards"][0])

    return await asyncio.gather(*(ask(query) for query in queries))


def batches(address: str) -> tuple[float, float]:
    """Items and passes so far."""
    lines = dict(
        line.rsplit(" ", 1) for line in httpx.get(f"{address}/metrics").text.splitlines() if line[0] != "#"
    )
    return float(lines["sparserm_batch_items_sum"]), float(lines["sparserm_batch_items_count"])


@pytest.mark.parametrize("lanes", [1, 2])
def test_a_storm_of_single_samples_is_batched_and_loses_nothing(
    engine: Engine, settings: Settings, lanes: int
) -> None:
    """Whether one pass of 1,024 tokens runs at a time or two."""
    chosen = settings.model_copy(update={"concurrent_batches": lanes, "max_batch_tokens": 1024 * lanes})
    with listening(engine, chosen) as address:
        before = batches(address)
        queries = texts(0)
        stormed = asyncio.run(storm(address, queries))
        items, passes = (after - start for after, start in zip(batches(address), before, strict=True))
        together = httpx.post(f"{address}/get_reward", json={"query": queries}, timeout=180).json()["rewards"]
    assert items == SAMPLES
    assert items / passes > 8
    assert stormed == pytest.approx(together, abs=1e-5)
