"""The part of a report about contrasts, in reports with and without it."""

import json
from pathlib import Path

import pytest

from app.evaluate import report
from app.reward import bundle
from tests.support.paths import MODELS

CONTRASTS = {
    "n": 321,
    "features_for_half": 23.0,
    "cancellation": 4.321,
    "most_used_share": 0.5432,
    "unsigned_share": 0.25,
    "contradictions": 0.0625,
}


@pytest.fixture
def text_without(tmp_path: Path) -> str:
    """Write the report of a shipped model without contrasts and return it."""
    results = json.loads((MODELS / "safety" / "report.json").read_text())
    results["verified"].pop("contrasts", None)
    return write(tmp_path, results)


def write(folder: Path, results: report.Results) -> str:
    report.create(folder, bundle.load_bundle(MODELS / "safety").card, results)
    return (folder / "report.md").read_text()


def write_contrasts(folder: Path, contrasts: report.Results) -> str:
    results = report.read(folder)
    return write(folder, {**results, "verified": {**results["verified"], "contrasts": contrasts}})


def test_a_report_without_contrasts_has_no_such_table(text_without: str) -> None:
    assert "| explanations | value |" in text_without
    assert "| contrasts | value |" not in text_without


def test_the_table_states_every_measurement(text_without: str, tmp_path: Path) -> None:
    text = write_contrasts(tmp_path, CONTRASTS)
    lines = text.splitlines()
    start = lines.index("| contrasts | value |")
    assert lines[start - 1] == ""
    assert "Measured on 321 test pairs with a margin of 1 or more" in lines[start - 2]
    values = [line.rsplit("|", 2)[1].strip() for line in lines[start + 2 : start + 7]]
    assert "those with a sign" in lines[start + 6]
    assert values == ["23", "4.3", "54.3%", "25.0%", "6.2%"]
    added = set(lines[start - 2 : start + 8])
    assert [line for line in lines if line not in added] == [
        line for line in text_without.splitlines() if line not in added
    ]


def test_features_without_signs_have_no_row_about_signs(text_without: str, tmp_path: Path) -> None:
    text = write_contrasts(tmp_path, {**CONTRASTS, "contradictions": None})
    assert "those with a sign" not in text
    assert len(text.splitlines()) > len(text_without.splitlines())


def test_a_report_says_that_no_margin_is_large(text_without: str, tmp_path: Path) -> None:
    text = write_contrasts(tmp_path, {"n": 0})
    assert "No two responses of a test pair differ in their rewards by 1 or more." in text
    assert text != text_without
