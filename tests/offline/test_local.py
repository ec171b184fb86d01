"""Scoring rows with an engine: an item that cannot be scored makes one row bad, and batches are full."""

from pathlib import Path

import pytest
import torch

from app.errors import BundleError, NonFiniteScore, NotFound
from app.offline.local import LocalScorer, open_local_scorer
from app.offline.scorers import ScoringRequest
from app.offline.tasks import SCORE
from app.reward import loading
from app.reward.engine import Engine, PreparedBatch
from app.scores import ScoredItem
from app.settings import Settings
from app.types import Item, Message
from tests.faults.server_processes import OUT_OF_MEMORY_WORD, OVERFLOW_WORD, FaultyEngine
from tests.support import offline_runs, tiny
from tests.support.offline_runs import CLOSE, MODEL
from tests.support.training_setup import ignore_progress


def test_an_item_that_overflows_or_does_not_fit_makes_only_its_row_bad(
    settings: Settings, tmp_path: Path
) -> None:
    class SmallMemoryEngine(FaultyEngine):
        run = Engine.run

        def _run_forward(self, prepared: PreparedBatch) -> list[ScoredItem | NonFiniteScore]:
            if len(prepared.jobs) > 3 or any(OUT_OF_MEMORY_WORD in self._words(job) for job in prepared.jobs):
                raise RuntimeError("cannot allocate memory")
            return super()._run_forward(prepared)

    engine = loading.load_engine(settings, ignore_progress)
    rows = offline_runs.make_response_rows(30)
    offline_runs.run_task(
        engine,
        settings,
        SCORE,
        offline_runs.write_rows(tmp_path / "in.jsonl", rows),
        tmp_path / "expected.jsonl",
    )
    engine.__class__ = SmallMemoryEngine
    rows[7]["response"] += f" {OVERFLOW_WORD} stone"
    rows[20]["response"] += f" {OUT_OF_MEMORY_WORD} stone"
    offline_runs.run_task(
        engine, settings, SCORE, offline_runs.write_rows(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    )
    overflowing, huge = offline_runs.read_rows(tmp_path / "out.bad.jsonl")
    assert (overflowing["row"]["n"], "NaN or infinity" in overflowing["reason"]) == (7, True)
    assert (huge["row"]["n"], "does not fit" in huge["reason"]) == (20, True)
    expected = {row["n"]: row["reward"] for row in offline_runs.read_rows(tmp_path / "expected.jsonl")}
    for row in offline_runs.read_rows(tmp_path / "out.jsonl"):
        assert row["reward"] == pytest.approx(expected[row["n"]], abs=CLOSE)


def test_a_device_on_which_every_item_overflows_is_an_error(settings: Settings, tmp_path: Path) -> None:
    engine = loading.load_engine(settings, ignore_progress)
    source = offline_runs.write_rows(tmp_path / "in.jsonl", offline_runs.make_response_rows(5))
    engine.backbone.embedding.weight.data.fill_(torch.inf)
    with pytest.raises(BundleError, match="probe 0"):
        offline_runs.run_task(engine, settings, SCORE, source, tmp_path / "out.jsonl")


def test_batches_are_as_full_as_the_budget_allows(engine: Engine, settings: Settings) -> None:
    scorer = LocalScorer(engine, ScoringRequest(MODEL), settings.model_copy(update={"max_batch_tokens": 256}))
    rows = [(item,) for item in tiny.random_items(200)]
    sizes = [len(prepared.packed.ids) for prepared in scorer.prepare(rows).batches]
    longest = max(len(encoded.ids) for encoded in engine.encode([item for (item,) in rows]))
    assert max(sizes) <= 256
    assert min(sizes[:-1]) > 256 - longest


def test_a_local_scorer_loads_only_the_requested_model(settings: Settings) -> None:
    with open_local_scorer(ScoringRequest("beta"), settings, ignore_progress) as scorer:
        assert isinstance(scorer, LocalScorer)
        results = scorer.score(scorer.prepare([(Item((Message("user", "a"),), "b"),)]))
        assert isinstance(results[0], list)
        assert results[0][0]["model"] == "beta"
    with (
        pytest.raises(NotFound),
        open_local_scorer(ScoringRequest("beta@unknown"), settings, ignore_progress),
    ):
        pass
