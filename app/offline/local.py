"""Scores rows with an engine in this process, in full batches that depend on the rows alone."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from typing import NamedTuple

from app.backbone.packing import split_into_batches
from app.backbone.prefix_cache import PrefixCache
from app.backbone.runtime.threads import run_in_temporary_thread
from app.errors import InvalidInput, SparseRMError
from app.offline.chunks import DEFAULT_BATCH_TOKENS
from app.offline.scorers import Fingerprint, RowResult, RowScorer, ScoringRequest, json_sha256
from app.offline.tasks import RowItems
from app.reward import loading
from app.reward.engine import Engine, PreparedBatch
from app.scores import ScoredItem
from app.serve.api.comparison import compare_scores
from app.serve.api.serialization import serialize_margin, serialize_score
from app.settings import Settings
from app.types import EncodedItem, Progress, ScoreJob


@contextmanager
def open_local_scorer(request: ScoringRequest, settings: Settings, progress: Progress) -> Iterator[RowScorer]:
    """Load an engine with only the models that the request needs, and check it with their probes."""
    names = ",".join(sorted(loading.resolve_bundle_names(request.model, settings)))
    engine_settings = settings.model_copy(update={"models": names, "default_model": ""})

    def load() -> Engine:
        engine = loading.load_engine(engine_settings, progress)
        engine.validate_options(request.score_options)
        engine.verify()
        return engine

    yield LocalScorer(run_in_temporary_thread(load), request, settings)


class EncodedChunk(NamedTuple):
    """A chunk ready to be scored.

    `rows` holds each row's encoded items, or why they cannot be encoded; `batches` cover every distinct item
    of the chunk once.
    """

    rows: list[tuple[EncodedItem, ...] | SparseRMError]
    batches: list[PreparedBatch]


class LocalScorer:
    """Scores rows with an engine whose prefix cache is off.

    With prefixes cached from earlier chunks, a resumed run would compute other last digits than a run that
    was never interrupted.
    """

    def __init__(self, engine: Engine, request: ScoringRequest, settings: Settings) -> None:
        self.fingerprint: Fingerprint = {
            "reward model": _model_sha256(engine, request.model, settings),
            "precision": str(engine.backbone.dtype),
            "SPARSERM_MAX_TOKENS": settings.max_tokens,
        }
        self.prefetch = 1
        self._engine = copy(engine)
        self._engine.prefix_cache = PrefixCache(0)
        self._request = request
        self._batch_tokens = settings.max_batch_tokens or DEFAULT_BATCH_TOKENS

    def prepare(self, rows: Sequence[RowItems]) -> EncodedChunk:
        """Tokenize the items, and pack the distinct ones into batches."""
        encoded_rows = self._encode(rows)
        encodable = [row for row in encoded_rows if not isinstance(row, SparseRMError)]
        items = dict.fromkeys(item for row in encodable for item in row)
        jobs = [ScoreJob(item, self._request.score_options) for item in items]
        batches = split_into_batches([job.encoded.ids for job in jobs], self._batch_tokens)
        return EncodedChunk(
            encoded_rows, [self._engine.prepare([jobs[i] for i in indices]) for indices in batches]
        )

    def score(self, prepared: EncodedChunk) -> list[RowResult]:
        """Run the batches one after the other; check the engine with its probes if all items failed."""
        results: dict[EncodedItem, ScoredItem | SparseRMError] = {}
        for batch in prepared.batches:
            results.update(zip((job.encoded for job in batch.jobs), self._run(batch), strict=True))
        if results and not any(isinstance(result, ScoredItem) for result in results.values()):
            self._engine.verify()
        return [
            row if isinstance(row, SparseRMError) else self._to_result(row, [results[item] for item in row])
            for row in prepared.rows
        ]

    def _encode(self, rows: Sequence[RowItems]) -> list[tuple[EncodedItem, ...] | SparseRMError]:
        """Encode all rows together, or one by one if one of them cannot be scored."""
        try:
            encoded = iter(self._engine.encode([item for row in rows for item in row]))
        except InvalidInput as error:
            if len(rows) == 1:
                return [error]
            return [result for row in rows for result in self._encode([row])]
        return [tuple(next(encoded) for _ in row) for row in rows]

    def _run(self, batch: PreparedBatch) -> Sequence[ScoredItem | SparseRMError]:
        """Run a batch, or its halves if it does not fit into the device's memory."""
        try:
            return self._engine.run(batch)
        except MemoryError as error:
            middle = len(batch.jobs) // 2
            if not middle:
                return [SparseRMError(str(error), code="out_of_memory")]
            halves = batch.jobs[:middle], batch.jobs[middle:]
            return [result for half in halves for result in self._run(self._engine.prepare(half))]

    def _to_result(
        self, row: tuple[EncodedItem, ...], results: list[ScoredItem | SparseRMError]
    ) -> RowResult:
        """Return the rows that the HTTP API would return for these items, or the first error among them."""
        for result in results:
            if isinstance(result, SparseRMError):
                return result
        scores = [result.scores[0] for result in results if isinstance(result, ScoredItem)]
        if not self._request.paired:
            return [serialize_score(score, item) for score, item in zip(scores, row, strict=True)]
        chosen, rejected = scores
        try:
            comparison = compare_scores(
                self._engine, chosen, rejected,
                top_k=self._request.top_k, truncated=any(item.truncated for item in row),
            )  # fmt: skip
        except InvalidInput as error:
            return error
        return [serialize_margin(comparison)]


def _model_sha256(engine: Engine, name: str, settings: Settings) -> str:
    """Return a digest of all that a model's name stands for: bundles, profiles and a composite's weights."""
    files = [
        settings.models_dir / bundle / "SHA256SUMS"
        for bundle in sorted(loading.resolve_bundle_names(name, settings))
    ]
    profiles = [str(engine.resolve_model(head)[1]) for head in engine.resolve_parts(name)]
    return json_sha256([[file.read_text() for file in files], profiles, str(engine.composites.get(name))])
