"""The report of an audit of pairs: what they reward, in words, suspicious labels and duplicates."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from app.evaluate import figures
from app.scores import DoubleArray
from app.train.pair_audit.duplicates import Duplicates
from app.train.pair_audit.effects import ConceptEffect

NUM_LISTED = 20
"""Rows that the report lists of each kind; pairs.jsonl has all."""
FIGURE = "effects.png"


@dataclass(frozen=True, slots=True)
class PairAudit:
    """What was found in a file of pairs, through the concepts of a model.

    `margins` are those of the labels on held-out prompts, (N,). All numbers of pairs count from 0 here and
    from 1 in reports.
    """

    source: str
    model: str
    num_prompts: int
    effects: list[ConceptEffect]
    margins: DoubleArray
    duplicates: Duplicates

    @property
    def suspicious(self) -> list[int]:
        """Pairs in the order in which their labels disagree most with the others."""
        order: list[int] = np.argsort(self.margins, kind="stable").tolist()
        return order

    @property
    def measured(self) -> list[ConceptEffect]:
        """The concepts in which enough pairs differ."""
        return [effect for effect in self.effects if effect.controlled is not None]


def summarise(audit: PairAudit) -> str:
    """Return what the pairs reward in one or two sentences: concepts whose interval excludes one half."""
    rewarded = [e.name for e in audit.measured if (e.low or 0) > 0.5]  # even odds
    punished = [e.name for e in audit.measured if (e.high or 1) < 0.5]  # even odds
    sentences = []
    for verb, names in (("prefer", rewarded), ("reject", punished)):
        if names:
            sentences.append(f"These pairs {verb} a response that {_join(names)}.")
    return " ".join(sentences) or "These pairs neither prefer nor reject a response for any of the concepts."


def write_report(audit: PairAudit, folder: Path) -> None:
    """Write report.md and the figure of the effects."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        (effect.name, {"accuracy": effect.controlled, "ci_low": effect.low, "ci_high": effect.high})
        for effect in audit.measured
    ]
    if rows:
        note = f"n = {len(audit.margins):,} pairs; pairs of which one response expresses it; 95 % intervals"
        figures.draw_bars(folder / FIGURE, rows, "Preferred at equal length", note)
    (folder / "report.md").write_text("\n".join(_render(audit)) + "\n")


def _render(audit: PairAudit) -> Iterator[str]:
    yield f"# What {audit.source} rewards\n"
    counts = f"{len(audit.margins):,} pairs, {audit.num_prompts:,} prompts"
    yield f"{counts}, seen through the concepts of {audit.model}.\n"
    yield f"{summarise(audit)}\n"
    yield from _render_effects(audit)
    yield from _render_labels(audit)
    yield from _render_duplicates(audit.duplicates)


def _render_effects(audit: PairAudit) -> Iterator[str]:
    yield (
        "A concept counts where exactly one of the two responses expresses it. *Preferred* is how often that "
        "response is the chosen one; *at equal length* is the same after the length difference is accounted "
        "for, with 95 % intervals over prompts. Rows count from 1.\n"
    )
    yield "| concept | pairs that differ | preferred | at equal length | rows in which it differs most |"
    yield "|---|---|---|---|---|"
    for effect in audit.effects:
        numbers = "too few pairs | |"
        if effect.win_rate is not None:
            interval = f"{effect.controlled:.0%} [{effect.low:.0%}, {effect.high:.0%}]"
            numbers = f"{effect.win_rate:.0%} | {interval} | {_list_rows(effect.examples)}"
        yield f"| {effect.name} | {effect.pairs} ({effect.share:.0%}) | {numbers} |"
    if audit.measured:
        yield f"\n![How often a response that expresses a concept is preferred at equal length.]({FIGURE})"
    yield ""


def _render_labels(audit: PairAudit) -> Iterator[str]:
    disagree = int((audit.margins < 0).sum())
    yield "## Labels that look wrong\n"
    yield (
        f"A linear model that was trained on the other prompts disagrees with {disagree:,} of "
        f"{len(audit.margins):,} labels. Most of them are not mistakes: look at the strongest disagreements "
        "first. `--drop N` and `--flip N` write a copy without the first N or with their labels flipped.\n"
    )
    yield f"Rows, strongest disagreement first: {_list_rows(audit.suspicious[:NUM_LISTED])}.\n"


def _render_duplicates(duplicates: Duplicates) -> Iterator[str]:
    yield "## Duplicates\n"
    for text, groups in (
        ("Repeated pairs", duplicates.repeated),
        ("Pairs that contradict each other", duplicates.contradicting),
    ):
        shown = "; ".join(_list_rows(rows) for rows in groups[:NUM_LISTED]) or "none"
        yield f"{text}: {shown}{_more(len(groups))}.\n"
    for text, rows in (
        ("Pairs whose responses differ only in case, punctuation or white space", duplicates.same_responses),
        ("Pairs with prompts that are also in the test file", duplicates.shared_prompts),
    ):
        yield f"{text}: {_list_rows(rows[:NUM_LISTED]) or 'none'}{_more(len(rows))}.\n"


def _list_rows(rows: Sequence[int]) -> str:
    return ", ".join(str(row + 1) for row in rows)


def _more(count: int) -> str:
    return f" and {count - NUM_LISTED} more" if count > NUM_LISTED else ""


def _join(names: Sequence[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last
