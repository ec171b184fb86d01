"""Report of an alignment run: report.json with all metrics, report.md with tables, and curves.png."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from app.align.config import AlignmentConfig
from app.evaluate import figures

Row = dict[str, Any]
AGREEMENT_METRICS = ("implicit accuracy", "mc1", "mc2")


def write_report(folder: Path, config: AlignmentConfig, rounds: Sequence[Row]) -> Row:
    """Write the report of all rounds into the folder and return it."""
    keys = ("summary", "pairs", "alarms")
    rows = [
        {"round": number, **{name: row[name] for name in keys if name in row}}
        for number, row in enumerate(rounds)
    ]
    report = {"plan": config.model_dump(), "best": last_round_without_alarm(rows), "rounds": rows}
    (folder / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    figures.draw_rounds(folder / "curves.png", _build_panels(rows), _format_title(config, rows))
    (folder / "report.md").write_text("\n".join(_render(config, report)) + "\n")
    return report


def last_round_without_alarm(rounds: Sequence[Row]) -> int:
    """Return the number of the last round without an alarm; round 0 never has one."""
    return max(int(row["round"]) for row in rounds if not row.get("alarms"))


def _render(config: AlignmentConfig, report: Row) -> Iterator[str]:
    yield f"# Aligning {config.policy} with {config.model}\n"
    yield (
        f"Labels: {config.labels}. {config.per_round} prompts per round, {config.candidates} responses per "
        f"prompt, DPO with β {config.beta:g} for {config.epochs} epochs at learning rate {config.lr:g}, LoRA "
        f"of rank {config.rank}, seed {config.seed}. The table shows means over test pairs, questions or "
        "responses with 95 % intervals by bootstrap over prompts. KL is the divergence from the initial "
        "policy in nats per token, estimated from the responses. Round 0 is the initial policy.\n"
    )
    rows = report["rounds"]
    names = [name for name in rows[0]["summary"] if name != "kl"]
    yield f"| round | pairs kept | {' | '.join(names)} | KL |"
    yield "|---|" + "---|" * (len(names) + 2)
    for row in rows:
        pairs = f"{row['pairs']['kept']} of {row['pairs']['labelled']}" if "pairs" in row else ""
        cells = " | ".join(_format_mean(row["summary"][name]) for name in names)
        yield f"| {row['round']} | {pairs} | {cells} | {row['summary']['kl']:.3f} |"
    for row in rows:
        for alarm in row.get("alarms", ()):
            yield f"\nAlarm after round {row['round']}: {alarm}."
    best = report["best"]
    adapter = f"`round-{best}/adapter`" if best else "the initial policy"
    yield f"\nThe last round without an alarm is {best}: {adapter}.\n"
    yield "![Metrics of every round.](curves.png)"


def _format_mean(row: Row) -> str:
    return f"{row['mean']:.3f} [{row['ci_low']:.3f}, {row['ci_high']:.3f}]"


def _build_panels(rounds: Sequence[Row]) -> dict[str, dict[str, list[Row]]]:
    """Return the curves of each panel of the figure."""
    summary = rounds[0]["summary"]
    metrics_by_panel = {
        "agreement with people": [name for name in AGREEMENT_METRICS if name in summary],
        "reward of responses": [name for name in summary if name.endswith("reward")],
        "distance from training data (percentile)": [name for name in summary if name.endswith("distance")],
        "tokens of responses": ["tokens"],
    }
    panels = {
        title: {name: [row["summary"][name] for row in rounds] for name in names}
        for title, names in metrics_by_panel.items()
    }
    kl = [{"mean": row["summary"]["kl"], "ci_low": None, "ci_high": None} for row in rounds]
    return {**panels, "KL to the initial policy (nats per token)": {"kl": kl}}


def _format_title(config: AlignmentConfig, rounds: Sequence[Row]) -> str:
    summary = rounds[0]["summary"]
    pairs, responses = summary["implicit accuracy"]["n"], summary["tokens"]["n"]
    counts = f"{pairs} test pairs, {responses} responses, 95 % intervals"
    return f"{config.policy} aligned with {config.model}: {counts}"
