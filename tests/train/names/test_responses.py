"""The table of responses: matching by length, one response a prompt, and saving without a change."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from app.reward.engine import Engine
from app.train.names.responses import (
    ResponseTable,
    ResponseText,
    compute_features_digest,
    sort_firing,
)


def make_table(count: int = 40) -> ResponseTable:
    rng = np.random.default_rng(0)
    texts = [
        ResponseText(i // 2, i % 2 == 0, f"prompt {i // 4}", "prompt", f"response {i}") for i in range(count)
    ]
    values = rng.normal(size=(count, 2))
    return ResponseTable(
        texts, rng.integers(1, 200, count), values, values > 0.3, np.arange(count) % 8 >= 4
    )  # fmt: skip


def test_matched_responses_do_not_fire_and_are_of_other_prompts() -> None:
    table = make_table(200)
    values, fired = table.projections[:, 0], table.fired[:, 0]
    strongest = table.take_one_a_prompt(sort_firing(values, fired, table.is_tested), 8)
    silent = table.match_absent(strongest, values, fired, table.is_tested)
    assert len(silent) == len(strongest) == 8
    assert not fired[silent].any()
    assert table.is_tested[silent].all()
    assert (values[silent] < np.median(values[table.is_tested])).all()
    groups = [table.texts[i].group for i in (*strongest, *silent)]
    assert len(set(groups)) == len(groups)
    ratio = np.abs(np.log(table.lengths[silent] / table.lengths[strongest]))
    others = np.abs(np.log(table.lengths[:, None] / table.lengths[None])).mean()
    assert np.median(ratio) < others / 2


def test_sorted_responses_fire_with_falling_values() -> None:
    table = make_table()
    order = sort_firing(table.projections[:, 1], table.fired[:, 1], ~table.is_tested)
    assert (np.diff(table.projections[order, 1]) <= 0).all()
    assert set(order) == set(np.flatnonzero(table.fired[:, 1] & ~table.is_tested))


def test_a_saved_table_is_read_as_it_was(tmp_path: Path, engine: Engine) -> None:
    model = engine.models["alpha"]
    table = replace(make_table(), features_sha256=compute_features_digest(model))
    table.save(tmp_path / "model")
    loaded = ResponseTable.load(tmp_path / "model", model)
    assert loaded.texts == table.texts
    for name in ("lengths", "fired", "is_tested"):
        assert (getattr(loaded, name) == getattr(table, name)).all()
    assert np.allclose(loaded.projections, table.projections, atol=1e-6)
