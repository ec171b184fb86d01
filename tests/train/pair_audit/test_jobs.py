"""`sparserm audit` from files: the report, the list of labels, and repaired copies."""

import json
from pathlib import Path

import pytest

from app.data.pairs import read_pairs
from app.errors import DataError
from app.settings import Settings
from app.train.pair_audit import jobs
from app.train.pair_audit.report import summarise
from tests.support import named_models
from tests.support.training_setup import ignore_progress
from tests.train.pair_audit.conftest import AuditedModel


def test_an_audit_is_reported_in_words_and_by_row(
    audited: AuditedModel, training_settings: Settings, tmp_path: Path
) -> None:
    source = named_models.pairs_file(training_settings)
    result = jobs.audit_pairs(
        str(source), named_models.NAME, str(source), None, audited.settings, ignore_progress
    )
    assert "prefer a response that raises" in summarise(result)
    jobs.save_audit(result, tmp_path / "audit")
    report = (tmp_path / "audit" / "report.md").read_text()
    assert "# What pairs.jsonl rewards" in report
    assert "400 pairs, 90 prompts" in report
    assert (tmp_path / "audit" / "effects.png").exists()
    rows = [json.loads(line) for line in (tmp_path / "audit" / "pairs.jsonl").read_text().splitlines()]
    assert sorted(row["row"] for row in rows) == list(range(1, 401))
    assert [row["margin"] for row in rows] == sorted(row["margin"] for row in rows)
    assert len(result.duplicates.shared_prompts) == 400


def test_repaired_copies_keep_all_fields(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"p{n}", "chosen": f"c{n}", "rejected": f"r{n}", "source": n, "note": "ü"}
        for n in range(6)
    ]
    source = tmp_path / "pairs.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert jobs.write_repaired(str(source), tmp_path / "dropped.jsonl", drop={1, 4}, flip=set()) == 4
    kept = [json.loads(line) for line in (tmp_path / "dropped.jsonl").read_text().splitlines()]
    assert kept == [rows[0], rows[2], rows[3], rows[5]]
    assert jobs.write_repaired(str(source), tmp_path / "flipped.jsonl", drop=set(), flip={2}) == 6
    pairs = read_pairs(tmp_path / "flipped.jsonl")
    assert (pairs[2].chosen, pairs[2].rejected) == ("r2", "c2")
    assert [pair.chosen for i, pair in enumerate(pairs) if i != 2] == ["c0", "c1", "c3", "c4", "c5"]


def test_models_without_concepts_cannot_describe_pairs(
    training_settings: Settings, audited: AuditedModel, tmp_path: Path
) -> None:
    from dataclasses import replace

    from app.reward import bundle

    plain = replace(audited.model, concepts=(), card=replace(audited.model.card, name="plain"))
    bundle.save_bundle(plain, tmp_path / "plain")
    settings = audited.settings.model_copy(update={"models_dir": tmp_path})
    with pytest.raises(DataError, match="sparserm names"):
        jobs.audit_pairs(
            str(named_models.pairs_file(training_settings)), "plain", None, None, settings, ignore_progress
        )
