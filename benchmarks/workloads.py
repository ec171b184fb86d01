"""Workloads: items of random words with an exact number of tokens, generated anew in every run.

Each conversation has its own system turn, so that only the template's first tokens are shared unless a
workload shares a prompt on purpose. Lengths are the same for every server and round; words are not.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from random import Random

from app.backbone.tokenization import ChatTokenizer
from app.types import EncodedItem, Item, Message

SYSTEM_TOKENS = 8
BURST_ITEMS = 128
QUEUE_ITEMS = 1000


@dataclass(frozen=True, slots=True)
class BenchmarkItem:
    """A conversation and its response: as messages, as text after the chat template, and as token ids."""

    messages: tuple[Message, ...]
    response: str
    text: str
    encoded: EncodedItem

    @property
    def ids(self) -> tuple[int, ...]:
        """All token ids, including those of the template."""
        return self.encoded.ids


Query = tuple[BenchmarkItem, ...]
Burst = tuple[Query, ...]


class TextGenerator:
    """Generates conversations of words that are one token each."""

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        self._tokenizer = tokenizer
        tokens = [str(tokenizer.tokenizer.decode([i])) for i in range(len(tokenizer.tokenizer))]
        self._first_words = self._single_token_words("", tokens)
        self._next_words = self._single_token_words(" ", tokens)
        (shortest,) = tokenizer.encode([_make_item(*self._first_words[:1] * 3)])
        self._template_tokens = shortest.response_start - 2

    def generate_group(self, rng: Random, responses: int, prompt: int, tokens: int) -> Query:
        """Items that share a prompt: `tokens` tokens each, the first `prompt` of them the prompt's."""
        system = self._generate_text(rng, SYSTEM_TOKENS)
        user = self._generate_text(rng, prompt - self._template_tokens - SYSTEM_TOKENS)
        return tuple(
            self._encode(
                _make_item(system, user, self._generate_text(rng, tokens - prompt - 1)), prompt, tokens
            )
            for _ in range(responses)
        )

    def _encode(self, item: Item, prompt: int, tokens: int) -> BenchmarkItem:
        (encoded,) = self._tokenizer.encode([item], truncate=False)
        text = str(self._tokenizer.tokenizer.decode(encoded.ids, clean_up_tokenization_spaces=False))
        has_lengths = (encoded.response_start, len(encoded.ids)) == (prompt, tokens)
        if not has_lengths or self._ids(text) != [*encoded.ids]:
            raise ValueError(
                f"the tokenizer gives {len(encoded.ids)} tokens instead of {tokens}: words that are one "
                "token alone are not one token in a text"
            )
        return BenchmarkItem(item.messages, item.response, text, encoded)

    def _generate_text(self, rng: Random, tokens: int) -> str:
        if tokens < 1:
            raise ValueError("too few tokens: each message needs at least one word beside the template")
        return " ".join([rng.choice(self._first_words), *rng.choices(self._next_words, k=tokens - 1)])

    def _single_token_words(self, prefix: str, tokens: Sequence[str]) -> list[str]:
        """Words that are exactly one token after `prefix`."""
        words = sorted({token.removeprefix(prefix) for token in tokens if token.startswith(prefix)})
        plain = [word for word in words if word.isascii() and word.isalpha()]
        return [word for word in plain if len(self._ids(prefix + word)) == 1]

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer.tokenizer.encode(text, add_special_tokens=False))


@dataclass(frozen=True, slots=True)
class Workload:
    """How a server is loaded: each client sends a burst of requests at once and waits for all responses.

    A burst is `groups` prompts with `responses` responses each; `prompt_percent` of an item's tokens are its
    prompt's. With `one_request` a burst is one request, else one request per item, sent within `spread_s`.
    `only_peers` are the peers that run this workload by default (all if empty).
    """

    name: str
    description: str
    clients: int = 1
    tokens: tuple[int, int] = (256, 256)
    groups: int = 1
    responses: int = 1
    prompt_percent: int = 75
    one_request: bool = False
    spread_s: float = 0.0
    own_connections: bool = False
    open_loop: bool = False
    only_peers: tuple[str, ...] = ()

    def generate_bursts(self, generator: TextGenerator, rng: Random) -> Iterator[Burst]:
        """Endless bursts. `rng` chooses the words; the lengths depend on the name only."""
        length_rng = Random(self.name)
        for _ in count():
            items = tuple(
                item for _ in range(self.groups) for item in self._generate_group(generator, rng, length_rng)
            )
            yield (items,) if self.one_request else tuple((item,) for item in items)

    @property
    def shares_prompts(self) -> bool:
        """Whether items share prompts, so that a server can compute fewer tokens than it is sent."""
        return self.responses > 1

    def _generate_group(self, generator: TextGenerator, rng: Random, length_rng: Random) -> Query:
        """One group; lengths are distributed uniformly on a logarithmic scale."""
        low, high = (math.log(bound) for bound in self.tokens)
        tokens = round(math.exp(length_rng.uniform(low, high)))
        return generator.generate_group(rng, self.responses, tokens * self.prompt_percent // 100, tokens)


WORKLOADS = (
    *(Workload(f"unique-{n}", f"one item of 256 tokens per request, {n} clients", n) for n in (1, 4, 16, 64)),
    Workload("mixed", "one item of 64 to 512 tokens per request, 16 clients", 16, (64, 512)),
    *(
        Workload(
            f"groups-{n}-{percent}", f"{n} responses per request, {percent} % of 256 tokens are the prompt's",
            4, responses=n, prompt_percent=percent, one_request=True,
        )
        for n in (8, 16) for percent in (25, 50, 75)
    ),
    Workload(
        "groups-8-75-apart", "8 responses to a prompt as 8 requests within 50 ms", 4,
        responses=8, spread_s=0.05,
    ),
    Workload(
        "storm", f"{BURST_ITEMS} items of 256 tokens at once, each on its own connection",
        groups=BURST_ITEMS, own_connections=True,
    ),
    Workload(
        "batch", f"{BURST_ITEMS} items of 256 tokens in one request", groups=BURST_ITEMS, one_request=True
    ),
    Workload(
        "queue", f"{QUEUE_ITEMS:,} items of 64 tokens at once", tokens=(64, 64), groups=QUEUE_ITEMS,
        only_peers=("ours", "vllm"),
    ),
    Workload("long", "one item of 2,000 tokens per request, 4 clients", 4, (2000, 2000), prompt_percent=95),
    Workload("open", "one item of 256 tokens per request, at random times", 16, open_loop=True),
)  # fmt: skip


def warm_up_workload() -> Workload:
    """The workload that every server runs before it is measured."""
    return Workload("warming", "a few items of every length", 4, (32, 512))


def generate_probes(generator: TextGenerator, rng: Random) -> Query:
    """Items that a server must score correctly before it is timed: several lengths, two with one prompt."""
    return tuple(
        item
        for responses, prompt, tokens in ((1, 24, 40), (2, 120, 200), (1, 300, 400))
        for item in generator.generate_group(rng, responses, prompt, tokens)
    )


def select_workloads(names: Sequence[str]) -> tuple[Workload, ...]:
    """The workloads whose name, or its first words, is in `names`; all workloads if it is empty."""
    for name in names:
        if not any(_matches(workload, name) for workload in WORKLOADS):
            known = ", ".join(workload.name for workload in WORKLOADS)
            raise ValueError(f"no workload {name!r}; choose from: {known}")
    return tuple(
        workload for workload in WORKLOADS if not names or any(_matches(workload, name) for name in names)
    )


def _matches(workload: Workload, name: str) -> bool:
    return f"{workload.name}-".startswith(f"{name}-")


def _make_item(system: str, user: str, response: str) -> Item:
    return Item((Message("system", system), Message("user", user)), response)
