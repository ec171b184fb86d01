"""The engine in this process as a judge. Items are scored in full passes, which depend on the items alone."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from typing import NamedTuple

from app.backbone.model_sources import Progress
from app.backbone.packing import passes
from app.backbone.prefix_cache import Recall
from app.backbone.runtime.threads import apart
from app.errors import InvalidInput, SparseRMError
from app.offline.chunks import PASS_TOKENS
from app.offline.scorers import Facts, Found, Judge, Question, digest
from app.offline.tasks import RowItems
from app.reward import loading
from app.reward.engine import Engine, Prepared
from app.serve.api import response_bodies
from app.settings import Settings
from app.types import EncodedItem, ScoredItem, ScoreJob


@contextmanager
def resident(question: Question, settings: Settings, progress: Progress) -> Iterator[Judge]:
    """An engine with nothing but what the question is about, its probes passed."""
    needed = ",".join(sorted(loading.bundles(question.model, settings)))
    alone = settings.model_copy(update={"models": needed, "default_model": ""})

    def ready() -> Engine:
        engine = loading.engine(alone, progress)
        engine.check(question.ask)
        engine.verify()
        return engine

    yield Resident(apart(ready), question, settings)


class Batch(NamedTuple):
    """Items as token ids, or why they are none; and passes over all that are, each once."""

    encoded: list[tuple[EncodedItem, ...] | SparseRMError]
    passes: list[Prepared]


class Resident:
    """An engine without memory, and what it is asked.

    With what was remembered of other windows, a run that goes on would compute other last digits.
    """

    def __init__(self, engine: Engine, question: Question, settings: Settings) -> None:
        self.facts: Facts = {
            "reward model": _seal(engine, question.model, settings),
            "precision": str(engine.backbone.dtype),
            "SPARSERM_MAX_TOKENS": settings.max_tokens,
        }
        self.depth = 1
        self._engine = copy(engine)
        self._engine.recall = Recall(0)
        self._question = question
        self._budget = settings.max_batch_tokens or PASS_TOKENS

    def prepare(self, items: Sequence[RowItems]) -> Batch:
        """Token ids, cut into passes and packed."""
        encoded = self._encoded(items)
        known = [one for one in encoded if not isinstance(one, SparseRMError)]
        jobs = [
            ScoreJob(ids, self._question.ask) for ids in dict.fromkeys(ids for one in known for ids in one)
        ]
        places = passes([job.encoded.ids for job in jobs], self._budget)
        return Batch(encoded, [self._engine.prepare([jobs[i] for i in some]) for some in places])

    def answer(self, prepared: Batch) -> list[Found]:
        """One pass after the other."""
        results: dict[EncodedItem, ScoredItem | SparseRMError] = {}
        for one in prepared.passes:
            results.update(zip((job.encoded for job in one.jobs), self._scored(one), strict=True))
        if results and not any(isinstance(result, ScoredItem) for result in results.values()):
            self._engine.verify()
        return [
            one if isinstance(one, SparseRMError) else self._found(one, [results[ids] for ids in one])
            for one in prepared.encoded
        ]

    def _encoded(self, items: Sequence[RowItems]) -> list[tuple[EncodedItem, ...] | SparseRMError]:
        """All at once, or one by one where not all can be scored."""
        try:
            found = iter(self._engine.encode([exchange for item in items for exchange in item]))
        except InvalidInput as error:
            if len(items) == 1:
                return [error]
            return [one for item in items for one in self._encoded([item])]
        return [tuple(next(found) for _ in item) for item in items]

    def _scored(self, prepared: Prepared) -> Sequence[ScoredItem | SparseRMError]:
        """A pass, or its halves where it does not fit on the device."""
        try:
            return self._engine.run(prepared)
        except MemoryError as error:
            middle = len(prepared.jobs) // 2
            if not middle:
                return [SparseRMError(str(error), code="out_of_memory")]
            halves = prepared.jobs[:middle], prepared.jobs[middle:]
            return [one for half in halves for one in self._scored(self._engine.prepare(half))]

    def _found(self, encoded: tuple[EncodedItem, ...], results: list[ScoredItem | SparseRMError]) -> Found:
        for result in results:
            if isinstance(result, SparseRMError):
                return result
        scores = [result.scores[0] for result in results if isinstance(result, ScoredItem)]
        if not self._question.paired:
            return [response_bodies.reward(score, ids) for score, ids in zip(scores, encoded, strict=True)]
        chosen, rejected = scores
        try:
            said = response_bodies.comparison(self._engine, chosen, rejected, self._question.top_k)
        except InvalidInput as error:
            return error
        return [{**said, "truncated": any(ids.truncated for ids in encoded)}]


def _seal(engine: Engine, name: str, settings: Settings) -> str:
    """A digest of everything a name stands for."""
    files = [settings.models_dir / one / "SHA256SUMS" for one in sorted(loading.bundles(name, settings))]
    profiles = [str(engine.find(head)[1]) for head in engine.heads(name)]
    return digest([[file.read_text() for file in files], profiles, str(engine.composites.get(name))])
