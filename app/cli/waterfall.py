"""A waterfall chart of a reward for the terminal: how the baseline and the concepts add up to it.

Without concepts, the steps are the largest features.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.bar import Bar
from rich.table import Table
from rich.text import Text

RewardJson = Mapping[str, Any]
WaterfallStep = tuple[str, float, float]
BAR_WIDTH = 36
MAX_CONCEPTS = 8


def render_waterfall(reward: RewardJson) -> Table:
    """Render an entry of a response of POST /v1/rewards as bars.

    Each bar starts where the previous one ends; the last bar is the reward.
    """
    steps = list(_iter_steps(reward))
    low, high = (pick(value for _, *ends in steps for value in ends) for pick in (min, max))
    table = Table.grid(padding=(0, 1))
    table.title, table.caption = Text(_format_title(reward)), Text(_format_caption(reward))
    table.title_justify = table.caption_justify = "left"
    for name, start, stop in steps:
        bar = Bar(
            max(high - low, 1e-9), min(start, stop) - low, max(start, stop) - low, width=BAR_WIDTH,
            color="dodger_blue2" if stop >= start else "dark_orange",
        )  # fmt: skip
        table.add_row(Text(name), Text(f"{stop - start:+.3f}", justify="right"), bar)
    return table


def _iter_steps(reward: RewardJson) -> Iterator[WaterfallStep]:
    """Yield the name, start and end of each bar."""
    concepts = [concept for concept in reward.get("concepts", ()) if concept["name"]]
    shown = concepts[:MAX_CONCEPTS] or reward["features"]
    several_models = len({part["model"] for part in shown}) > 1
    parts = [("baseline", reward["baseline_reward"])]
    parts += [(_format_name(part, with_model=several_models), part["contribution"]) for part in shown]
    adjustments = [
        ("length control", reward["length_correction"]),
        ("uncertainty penalty", -reward["penalty"]),
    ]
    adjustments = [(name, value) for name, value in adjustments if value]
    rest = reward["reward"] - sum(value for _, value in (*parts, *adjustments))
    total = 0.0
    for name, value in (*parts, ("everything else", rest), *adjustments):
        yield name, total, total + value
        total += value
    yield "reward", 0.0, reward["reward"]


def _format_name(part: Mapping[str, Any], *, with_model: bool) -> str:
    """Return the name of a concept, or a feature's label and latent.

    The feature with sign 0, which merges directions, has no latent.
    """
    if "id" not in part:
        name = part["name"]
    else:
        name = part["label"] or "latent"
        if part["sign"]:
            name += f" ({part['id']})"
    return f"{part['model']}: {name}" if with_model else name


def _format_title(reward: RewardJson) -> str:
    return f"{reward['model']}: reward {reward['reward']:+.3f} ± {reward['uncertainty']:.3f}"


def _format_caption(reward: RewardJson) -> str:
    """Return the explanation in words, the percentile, the distance and a note on truncation."""
    notes = [f"distance {reward['distance']:.0f} (near 100: the reward is unreliable)"]
    if reward["percentile"] is not None:
        notes.insert(0, f"percentile {reward['percentile']:.0f}")
    if reward["truncated"]:
        notes.append("the oldest text was truncated")
    summary = ", ".join(notes)
    return f"{reward['why']}\n{summary}" if reward.get("why") else summary
