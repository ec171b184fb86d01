"""Regression test of the explanations: readers' blind answers still agree with the shipped models."""

from collections import Counter

import pytest

from app.reward import loading
from app.reward.engine import Engine
from app.settings import Settings
from benchmarks.research.reader_agreement import Judgement, judge_contrasts, judge_edits
from tests.support.paths import MODELS

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def shipped() -> Engine:
    return loading.load_engine(Settings(models_dir=MODELS, device="cpu", dtype="float32"), lambda *_: None)


def share(judgements: list[Judgement]) -> float:
    return sum(judgement.agrees for judgement in judgements) / len(judgements)


def test_readers_tell_which_response_a_concept_favours(shipped: Engine) -> None:
    judgements = judge_contrasts(shipped)
    assert Counter(judgement.model for judgement in judgements) == dict.fromkeys(shipped.models, 125)
    assert share(judgements) > 0.82
    assert share([judgement for judgement in judgements if judgement.rank == 0]) > 0.9
    assert share([judgement for judgement in judgements if judgement.is_clear]) > 0.84


def test_readers_tell_whether_an_edit_raises_the_reward(shipped: Engine) -> None:
    judgements = judge_edits(shipped)
    assert Counter(judgement.model for judgement in judgements) == dict.fromkeys(shipped.models, 15)
    assert all(judgement.is_clear for judgement in judgements)
    assert share(judgements) > 0.9
