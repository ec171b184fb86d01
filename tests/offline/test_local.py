"""The engine as the judge of a data set: what it cannot score costs one row, and its passes are full."""

from pathlib import Path

import pytest
import torch

from app.errors import BundleError, NonFinite, NotFound
from app.offline.local import Resident, resident
from app.offline.scorers import Question
from app.offline.tasks import SCORE
from app.reward import loading
from app.reward.engine import Engine, Prepared
from app.settings import Settings
from app.types import Item, Message, ScoredItem
from tests.faults.server_processes import HUGE, OVERFLOW, Faulty
from tests.support import offline_runs, tiny
from tests.support.offline_runs import CLOSE, MODEL
from tests.support.training_setup import quiet


def test_an_item_that_overflows_or_does_not_fit_costs_only_its_row(
    settings: Settings, tmp_path: Path
) -> None:
    class Small(Faulty):
        run = Engine.run

        def _pass(self, prepared: Prepared) -> list[ScoredItem | NonFinite]:
            if len(prepared.jobs) > 3 or any(HUGE in self._words(job) for job in prepared.jobs):
                raise RuntimeError("cannot allocate memory")
            return super()._pass(prepared)

    engine = loading.engine(settings, quiet)
    rows = offline_runs.responses(30)
    offline_runs.run(
        engine, settings, SCORE, offline_runs.write(tmp_path / "in.jsonl", rows), tmp_path / "well.jsonl"
    )
    engine.__class__ = Small
    rows[7]["response"] += f" {OVERFLOW} stone"
    rows[20]["response"] += f" {HUGE} stone"
    offline_runs.run(
        engine, settings, SCORE, offline_runs.write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    )
    overflown, huge = offline_runs.read(tmp_path / "out.bad.jsonl")
    assert (overflown["row"]["n"], "NaN or infinity" in overflown["reason"]) == (7, True)
    assert (huge["row"]["n"], "does not fit" in huge["reason"]) == (20, True)
    well = {row["n"]: row["reward"] for row in offline_runs.read(tmp_path / "well.jsonl")}
    for row in offline_runs.read(tmp_path / "out.jsonl"):
        assert row["reward"] == pytest.approx(well[row["n"]], abs=CLOSE)


def test_a_device_that_only_overflows_is_not_believed(settings: Settings, tmp_path: Path) -> None:
    engine = loading.engine(settings, quiet)
    source = offline_runs.write(tmp_path / "in.jsonl", offline_runs.responses(5))
    engine.backbone.embedding.weight.data.fill_(torch.inf)
    with pytest.raises(BundleError, match="probe 0"):
        offline_runs.run(engine, settings, SCORE, source, tmp_path / "out.jsonl")


def test_passes_are_as_full_as_the_budget_allows(engine: Engine, settings: Settings) -> None:
    judge = Resident(engine, Question(MODEL), settings.model_copy(update={"max_batch_tokens": 256}))
    items = [(one,) for one in tiny.babble(200)]
    sizes = [len(prepared.packed.ids) for prepared in judge.prepare(items).passes]
    longest = max(len(one.ids) for one in engine.encode([one for (one,) in items]))
    assert max(sizes) <= 256
    assert min(sizes[:-1]) > 256 - longest


def test_a_resident_judge_holds_only_what_is_asked(settings: Settings) -> None:
    with resident(Question("beta"), settings, quiet) as judge:
        assert isinstance(judge, Resident)
        found = judge.answer(judge.prepare([(Item((Message("user", "a"),), "b"),)]))
        assert isinstance(found[0], list)
        assert found[0][0]["model"] == "beta"
    with pytest.raises(NotFound), resident(Question("beta@nobody"), settings, quiet):
        pass
