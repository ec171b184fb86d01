"""Writes naming sheets (JSON lines and an HTML form) with the evidence for features, and reads names back.

Both hold texts of the pairs, so they belong beside the data and not into a repository.
"""

import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, StrictInt, StringConstraints, TypeAdapter, ValidationError

from app.data.pairs import read_json_lines
from app.errors import DataError
from app.reward.reward_model import Concept, RewardModel, check_concepts
from app.train.feature_cache import write_atomically
from app.train.names.evidence import Context, Evidence, FeatureEvidence

MAX_NAME_CHARACTERS = 120
"""A concept's name is also a target of steering, of at most 200 characters."""
MAX_DEFINITION_CHARACTERS = 300
FilledText = Annotated[str, StringConstraints(strip_whitespace=True)]
INSTRUCTIONS = (
    "Name each feature by what the responses that express it have in common, and the others lack: a verb "
    "phrase of 4 to 14 words in the third person, such as “declines and says the act is illegal”. Someone "
    "who sees only the name must be able to tell which other responses fit. Then sort the features into 6 to "
    "12 concepts with names of 2 to 6 words; all features of a concept must have the same effect."
)
KINDS = {
    "strongest": "express it",
    "near_misses": "near misses: close, but the feature does not fire",
    "absent": "do not express it",
}


class SheetRow(BaseModel):
    """What is read of a row of a sheet; its evidence is ignored."""

    latent: StrictInt
    name: FilledText = Field("", max_length=MAX_NAME_CHARACTERS)
    concept: FilledText = Field("", max_length=MAX_NAME_CHARACTERS)
    definition: FilledText = Field("", max_length=MAX_DEFINITION_CHARACTERS)


def refuse_existing(file: Path) -> None:
    """Raise DataError if a file exists, because someone may have filled it in."""
    if file.exists():
        raise DataError(f"{file} exists; move it away or choose another name")


def write_sheet(model: RewardModel, evidence: Evidence, out: Path) -> tuple[Path, Path]:
    """Write OUT.jsonl and OUT.html with a row for each feature, those with the largest effects first."""
    labels = {feature.latent: feature.label or "" for feature in model.features}
    concepts = {latent: concept.name for concept in model.concepts for latent in concept.latents}
    rows = [
        _make_row(feature, labels[feature.latent], concepts.get(feature.latent, ""))
        for feature in _sort_by_effect(model, evidence)
    ]
    out.parent.mkdir(parents=True, exist_ok=True)
    table, page = (out.with_name(out.name + suffix) for suffix in (".jsonl", ".html"))
    for file in (table, page):
        refuse_existing(file)
    write_atomically(table, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    write_atomically(page, _render_page(model.card.name, rows))
    return table, page


def read_sheet(file: Path, model: RewardModel) -> tuple[dict[int, str], tuple[Concept, ...]]:
    """Return the names of features by latent, and the concepts, from a sheet in which they were filled in.

    Each row needs `latent` and `name`, and may have `concept`; `definition` says what a concept means.
    """
    names: dict[int, str] = {}
    members: dict[str, list[int]] = {}
    definitions: dict[str, str] = {}
    signs = {feature.latent: feature.sign for feature in model.features if feature.sign}
    for location, raw in read_json_lines(file):
        try:
            row = TypeAdapter(SheetRow).validate_python(raw)
        except ValidationError as error:
            problem = error.errors()[0]
            raise DataError(f"{location}: {'.'.join(map(str, problem['loc']))}: {problem['msg']}") from error
        if row.latent not in signs:
            raise DataError(f"{location}: {model.card.name} has no feature {row.latent} that has a sign")
        if row.name:
            names[row.latent] = row.name
        if row.concept:
            members.setdefault(row.concept, []).append(row.latent)
            definitions[row.concept] = row.definition or definitions.get(row.concept, "")
    concepts = tuple(
        Concept(concept, tuple(latents), signs[latents[0]], definitions[concept])
        for concept, latents in members.items()
    )
    try:
        check_concepts(concepts, model.features)
    except ValueError as error:
        raise DataError(f"{file}: {error}") from error
    return names, concepts


def _sort_by_effect(model: RewardModel, evidence: Evidence) -> list[FeatureEvidence]:
    """Return the features with the steepest mean slope of the reward at the origin first."""
    origin = model.head.center.new_zeros(1, len(model.features)).double()
    slopes = model.head.compute_path_gradient(origin, origin)[0].abs().tolist()
    return sorted(evidence.features, key=lambda feature: -slopes[model.index_by_latent[feature.latent]])


def _make_row(feature: FeatureEvidence, name: str, concept: str) -> dict[str, Any]:
    shown = {kind: [_show(context) for context in getattr(feature, kind)] for kind in KINDS}
    effect = "raises" if feature.sign > 0 else "lowers"
    return {
        "latent": feature.latent, "effect": f"{effect} rewards", "name": name, "concept": concept,
        "definition": "", **shown, "decides_pairs": [row + 1 for row in feature.decides],
    }  # fmt: skip


def _show(context: Context) -> dict[str, Any]:
    side = "preferred" if context.text.preferred else "rejected"
    return {
        "prompt": context.text.prompt, "response": context.text.response, "side": side,
        "words": list(context.words), "projection": context.projection,
    }  # fmt: skip


def _render_page(model: str, rows: list[dict[str, Any]]) -> str:
    sections = "".join(map(_render_section, rows))
    title = escape(f"Names for {model}")
    return _PAGE.format(title=title, instructions=escape(INSTRUCTIONS), sections=sections)


def _render_section(row: Mapping[str, Any]) -> str:
    latent = row["latent"]
    fields = "".join(
        f'<label>{text}<input name="{key}" value="{escape(str(row[key]), quote=True)}"></label>'
        for key, text in (("name", "Name"), ("concept", "Concept"), ("definition", "What the concept means"))
    )
    lists = "".join(
        f"<h3>{title}</h3><ol>{''.join(map(_render_text, row[kind]))}</ol>" for kind, title in KINDS.items()
    )
    decided = ", ".join(map(str, row["decides_pairs"])) or "none"
    return (
        f'<section data-latent="{latent}"><h2>Feature {latent} <small>{row["effect"]}</small></h2>{fields}'
        f"{lists}<p>Pairs that it decides (rows of the file of pairs, from 1): {decided}</p></section>"
    )


def _render_text(text: Mapping[str, Any]) -> str:
    words = ", ".join(map(escape, text["words"]))
    note = f"<small>{text['side']}{f'; words: {words}' if words else ''}</small>"
    return f"<li><p class=prompt>{escape(text['prompt'])}</p><p>{escape(text['response'])}</p>{note}</li>"


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; base-uri 'none'; form-action 'none';
 style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<style>
body {{ font: 16px/1.5 system-ui; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }}
section {{ border-top: 2px solid #999; margin-top: 2rem; }}
label {{ display: block; margin: .3rem 0; }}
input {{ width: 100%; font: inherit; }}
li p {{ margin: .2rem 0; white-space: pre-wrap; overflow-wrap: anywhere; }}
.prompt, small {{ color: #666; }}
button {{ position: fixed; right: 1rem; bottom: 1rem; font: inherit; padding: .5rem 1rem; }}
</style></head><body><h1>{title}</h1><p>{instructions}</p>{sections}
<button type="button" id="save">Save the names</button>
<script>
document.getElementById("save").onclick = () => {{
  const rows = [...document.querySelectorAll("section")].map((section) => ({{
    latent: Number(section.dataset.latent),
    ...Object.fromEntries(
      [...section.querySelectorAll("input")].map((input) => [input.name, input.value.trim()]),
    ),
  }}));
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([rows.map((row) => JSON.stringify(row)).join("\\n") + "\\n"]));
  link.download = "names.jsonl";
  link.click();
}};
</script></body></html>
"""
