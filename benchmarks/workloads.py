"""What is asked: pairs of random words with exactly the wanted number of tokens, new ones in every run.

A conversation has a system turn of its own, so that nothing but the template's first tokens is shared unless
a workload shares it on purpose. Lengths are the same for every server and round; words never are.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from random import Random

from app.backbone.tokenization import Text
from app.types import EncodedItem, Item, Message

SYSTEM = 8
MANY, QUEUED = 128, 1000


@dataclass(frozen=True, slots=True)
class BenchmarkItem:
    """A conversation and its response: as words, as text through the template, as the ids SparseRM reads."""

    messages: tuple[Message, ...]
    response: str
    text: str
    encoded: EncodedItem

    @property
    def ids(self) -> tuple[int, ...]:
        """Every token, the template's included."""
        return self.encoded.ids


Query = tuple[BenchmarkItem, ...]
Burst = tuple[Query, ...]


class TextGenerator:
    """Writes conversations out of words that are one token each."""

    def __init__(self, text: Text) -> None:
        self._text = text
        tokens = [str(text.tokenizer.decode([i])) for i in range(len(text.tokenizer))]
        self._first = self._whole("", tokens)
        self._next = self._whole(" ", tokens)
        (hollow,) = text.encode([_exchange(*self._first[:1] * 3)])
        self._markup = hollow.response_start - 2

    def generate_group(self, rng: Random, responses: int, prompt: int, tokens: int) -> Query:
        """Responses to one prompt: `tokens` each, of which the first `prompt` are the prompt's."""
        system, asked = self._say(rng, SYSTEM), self._say(rng, prompt - self._markup - SYSTEM)
        return tuple(
            self._pair(_exchange(system, asked, self._say(rng, tokens - prompt - 1)), prompt, tokens)
            for _ in range(responses)
        )

    def _pair(self, exchange: Item, prompt: int, tokens: int) -> BenchmarkItem:
        (encoded,) = self._text.encode([exchange], truncate=False)
        text = str(self._text.tokenizer.decode(encoded.ids, clean_up_tokenization_spaces=False))
        if (encoded.response_start, len(encoded.ids)) != (prompt, tokens) or self._ids(text) != [
            *encoded.ids
        ]:
            raise ValueError("this tokenizer does not count words as they are counted here")
        return BenchmarkItem(exchange.messages, exchange.response, text, encoded)

    def _say(self, rng: Random, tokens: int) -> str:
        if tokens < 1:
            raise ValueError("too few tokens for the template and a word of each")
        return " ".join([rng.choice(self._first), *rng.choices(self._next, k=tokens - 1)])

    def _whole(self, before: str, tokens: Sequence[str]) -> list[str]:
        """Words that are a token of their own after `before`."""
        words = sorted({token.removeprefix(before) for token in tokens if token.startswith(before)})
        plain = [word for word in words if word.isascii() and word.isalpha()]
        return [word for word in plain if len(self._ids(before + word)) == 1]

    def _ids(self, text: str) -> list[int]:
        return list(self._text.tokenizer.encode(text, add_special_tokens=False))


@dataclass(frozen=True, slots=True)
class Workload:
    """How a server is asked: each voice sends a turn of requests at once, and waits for all the answers.

    A turn is `groups` prompts with `responses` responses each; `percent` of a pair's tokens are its prompt's.
    `among` are the only peers that are asked so unless somebody wants it.
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

    def generate_bursts(self, words: TextGenerator, rng: Random) -> Iterator[Burst]:
        """Turns without end; `rng` chooses the words, the name alone the lengths."""
        lengths = Random(self.name)
        for _ in count():
            pairs = tuple(pair for _ in range(self.groups) for pair in self._group(words, rng, lengths))
            yield (pairs,) if self.one_request else tuple((pair,) for pair in pairs)

    @property
    def shares_prompts(self) -> bool:
        """Whether pairs share prompts, so that fewer tokens can be computed than are asked."""
        return self.responses > 1

    def _group(self, words: TextGenerator, rng: Random, lengths: Random) -> Query:
        """Lengths spread evenly over their logarithm."""
        least, most = (math.log(bound) for bound in self.tokens)
        tokens = round(math.exp(lengths.uniform(least, most)))
        return words.generate_group(rng, self.responses, tokens * self.prompt_percent // 100, tokens)


WORKLOADS = (
    *(Workload(f"unique-{n}", f"one pair of 256 tokens a request, {n} at a time", n) for n in (1, 4, 16, 64)),
    Workload("mixed", "one pair of 64 to 512 tokens a request, 16 at a time", 16, (64, 512)),
    *(
        Workload(
            f"groups-{n}-{percent}", f"{n} responses a request, {percent} % of 256 tokens the prompt's", 4,
            responses=n, prompt_percent=percent, one_request=True,
        )
        for n in (8, 16) for percent in (25, 50, 75)
    ),
    Workload(
        "groups-8-75-apart", "the same 8 responses as 8 requests within 50 ms", 4, responses=8, spread_s=0.05
    ),
    Workload(
        "storm", f"{MANY} pairs of 256 tokens at once, each on its own connection",
        groups=MANY, own_connections=True,
    ),
    Workload("batch", f"{MANY} pairs of 256 tokens in one request", groups=MANY, one_request=True),
    Workload(
        "queue", f"{QUEUED:,} pairs of 64 tokens at once", tokens=(64, 64), groups=QUEUED,
        only_peers=("ours", "vllm"),
    ),
    Workload("long", "one pair of 2,000 tokens a request, 4 at a time", 4, (2000, 2000), prompt_percent=95),
    Workload("open", "one pair of 256 tokens a request, at random moments", 16, open_loop=True),
)  # fmt: skip


def warm_up_workload() -> Workload:
    """What a server is asked before anything is measured."""
    return Workload("warming", "a few pairs of every length", 4, (32, 512))


def generate_probes(words: TextGenerator, rng: Random) -> Query:
    """What a server must score right before it is timed: pairs of several lengths, two of one prompt."""
    return tuple(
        pair
        for responses, prompt, tokens in ((1, 24, 40), (2, 120, 200), (1, 300, 400))
        for pair in words.generate_group(rng, responses, prompt, tokens)
    )


def select_workloads(names: Sequence[str]) -> tuple[Workload, ...]:
    """Workloads by name or by the first words of one, in their own order; all of them for no names."""
    for name in names:
        if not any(_named(one, name) for one in WORKLOADS):
            raise ValueError(f"no workload {name!r}; there are: {', '.join(one.name for one in WORKLOADS)}")
    return tuple(one for one in WORKLOADS if not names or any(_named(one, name) for name in names))


def _named(workload: Workload, name: str) -> bool:
    return f"{workload.name}-".startswith(f"{name}-")


def _exchange(system: str, asked: str, said: str) -> Item:
    return Item((Message("system", system), Message("user", asked)), said)
