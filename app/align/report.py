"""The story of a run: report.json for machines, report.md and curves for eyes."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from app.align.config import AlignmentConfig
from app.evaluate import figures

Row = dict[str, Any]
AGREEMENT = ("implicit accuracy", "mc1", "mc2")


def write(folder: Path, plan: AlignmentConfig, rounds: Sequence[Row]) -> Row:
    """Keep what every round has come to, and draw it."""
    kept = ("summary", "pairs", "alarms")
    told = [
        {"round": at, **{name: row[name] for name in kept if name in row}} for at, row in enumerate(rounds)
    ]
    found = {"plan": plan.model_dump(), "best": best(told), "rounds": told}
    (folder / "report.json").write_text(json.dumps(found, indent=1) + "\n")
    figures.draw_rounds(folder / "curves.png", _lines(told), _title(plan, told))
    (folder / "report.md").write_text("\n".join(_page(plan, found)) + "\n")
    return found


def best(told: Sequence[Row]) -> int:
    """The last round nothing was wrong with."""
    return max(int(row["round"]) for row in told if not row.get("alarms"))


def _page(plan: AlignmentConfig, found: Row) -> Iterator[str]:
    told = found["rounds"]
    yield f"# Aligning {plan.policy} with {plan.model}\n"
    yield (
        f"Labels: {plan.labels}. {plan.per_round} prompts a round, {plan.candidates} responses each, "
        f"DPO with β {plan.beta:g} for {plan.epochs} epochs at rate {plan.lr:g}, LoRA of rank {plan.rank}, "
        f"seed {plan.seed}. Means over test pairs, questions or answers with 95 % intervals by bootstrap "
        "over prompts; KL is nats a token to the start, estimated from the answers. Round 0 is the start.\n"
    )
    names = [name for name in told[0]["summary"] if name != "kl"]
    yield f"| round | pairs kept | {' | '.join(names)} | KL |"
    yield "|---|" + "---|" * (len(names) + 2)
    for row in told:
        pairs = f"{row['pairs']['kept']} of {row['pairs']['labelled']}" if "pairs" in row else ""
        cells = " | ".join(_cell(row["summary"][name]) for name in names)
        yield f"| {row['round']} | {pairs} | {cells} | {row['summary']['kl']:.3f} |"
    for row in told:
        for alarm in row.get("alarms", ()):
            yield f"\nAlarm after round {row['round']}: {alarm}."
    adapter = f"`round-{found['best']}/adapter`" if found["best"] else "the start itself"
    yield f"\nThe last round nothing was wrong with is {found['best']}: {adapter}.\n"
    yield "![curves](curves.png)"


def _cell(found: Row) -> str:
    return f"{found['mean']:.3f} [{found['ci_low']:.3f}, {found['ci_high']:.3f}]"


def _lines(told: Sequence[Row]) -> dict[str, dict[str, list[Row]]]:
    """Panels, each with its lines."""
    first = told[0]["summary"]
    panels = {
        "agreement with people": [name for name in AGREEMENT if name in first],
        "reward of answers": [name for name in first if name.endswith("reward")],
        "distance from home (percentile)": [name for name in first if name.endswith("distance")],
        "tokens of answers": ["tokens"],
    }
    found = {
        title: {name: [row["summary"][name] for row in told] for name in names}
        for title, names in panels.items()
    }
    flat = [{"mean": row["summary"]["kl"], "ci_low": None, "ci_high": None} for row in told]
    return {**found, "KL to the start (nats a token)": {"kl": flat}}


def _title(plan: AlignmentConfig, told: Sequence[Row]) -> str:
    summary = told[0]["summary"]
    pairs, answers = summary["implicit accuracy"]["n"], summary["tokens"]["n"]
    return f"{plan.policy} with {plan.model}: {pairs} test pairs, {answers} answers, bands 95 %"
