"""Sheets: what they show, how names and concepts are read back, and that texts are inert in the page."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from app.errors import DataError
from app.reward.reward_model import RewardModel
from app.settings import Settings
from app.train.names import jobs
from app.train.names.naming_sheet import read_sheet, write_sheet
from tests.support import named_models


def test_a_filled_sheet_gives_names_and_concepts(
    named_settings: Settings, named_model: RewardModel, tmp_path: Path
) -> None:
    evidence = jobs.read_evidence(named_models.load_model(named_settings), named_settings)
    table, page = write_sheet(named_model, evidence, tmp_path / "sheet")
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    assert {row["latent"] for row in rows} == {f.latent for f in named_model.features if f.sign}
    assert all(row["strongest"] and row["name"] == "" for row in rows)
    text = page.read_text()
    assert text.count("<section") == len(rows)
    assert "default-src 'none'" in text
    filled = [
        {**row, "name": f"name {row['latent']}", "concept": f"does {row['effect']}", "definition": "x"}
        for row in rows[:-1]
    ]
    table.write_text("".join(json.dumps(row) + "\n" for row in [*filled, rows[-1]]))
    names, concepts = read_sheet(table, named_model)
    assert names == {row["latent"]: row["name"] for row in filled}
    assert {concept.name for concept in concepts} == {row["concept"] for row in filled}
    assert all(concept.definition == "x" for concept in concepts)


def test_markup_in_texts_is_inert(named_settings: Settings, named_model: RewardModel, tmp_path: Path) -> None:
    evidence = jobs.read_evidence(named_models.load_model(named_settings), named_settings)
    first = evidence.features[0]
    context = first.strongest[0]
    attack = "<script>alert(1)</script><img src=x onerror=alert(1)>"
    bad = replace(context, text=replace(context.text, response=attack, prompt=attack), words=(attack,))
    changed = replace(evidence, features=(replace(first, strongest=(bad,)), *evidence.features[1:]))
    features = tuple(replace(f, label='"><script>x</script>') for f in named_model.features)
    _, page = write_sheet(replace(named_model, features=features, concepts=()), changed, tmp_path / "sheet")
    text = page.read_text()
    assert "alert(1)" in text
    assert "<script>alert" not in text
    assert "<script>x" not in text
    assert "<img" not in text


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"latent": -5, "name": "x"}], "no feature -5"),
        ([{"name": "x"}], "latent: Field required"),
        ([{"latent": [1], "name": "x"}], "latent: Input should be"),
        ([{"latent": 1.0, "name": "x"}], "latent: Input should be"),
        ([{"latent": "first", "name": 3}], "name: Input should be"),
        ([{"latent": "first", "name": "x", "concept": ["a"]}], "concept: Input should be"),
        ([{"latent": "first", "name": "x" * 999}], "name: String should have at most"),
        (["no"], "object"),
        ([{"latent": "up", "name": "x", "concept": "a"}, {"latent": "down", "name": "y", "concept": "a"}],
         "different concepts"),
    ],
)  # fmt: skip
def test_sheets_are_checked(
    named_model: RewardModel, tmp_path: Path, rows: list[object], message: str
) -> None:
    signs = {feature.sign: feature.latent for feature in named_model.features}
    latents = {"first": signs[1], "up": signs[1], "down": signs[-1]}
    lines = [
        {**row, "latent": latents.get(str(row["latent"]), row["latent"])}
        if isinstance(row, dict) and "latent" in row
        else row
        for row in rows
    ]
    file = tmp_path / "sheet.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(DataError, match=message):
        read_sheet(file, named_model)


def test_a_line_that_is_not_json_is_named(named_model: RewardModel, tmp_path: Path) -> None:
    file = tmp_path / "sheet.jsonl"
    file.write_text("\n{x\n")
    with pytest.raises(DataError, match=r"sheet\.jsonl:2"):
        read_sheet(file, named_model)


def test_filled_sheets_are_not_overwritten(
    named_settings: Settings, named_model: RewardModel, tmp_path: Path
) -> None:
    evidence = jobs.read_evidence(named_model, named_settings)
    table, page = write_sheet(named_model, evidence, tmp_path / "sheet-0.1")
    assert (table.name, page.name) == ("sheet-0.1.jsonl", "sheet-0.1.html")
    with pytest.raises(DataError, match="exists; move it away"):
        write_sheet(named_model, evidence, tmp_path / "sheet-0.1")


def test_texts_with_other_line_ends_are_one_row(named_model: RewardModel, tmp_path: Path) -> None:
    latent = next(feature.latent for feature in named_model.features if feature.sign)
    name = "ends lines\u2028in other ways\u0085too"
    row = {"latent": latent, "name": name}
    (tmp_path / "sheet.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n")
    assert read_sheet(tmp_path / "sheet.jsonl", named_model)[0] == {latent: name}
