"""A reward on a terminal: how the baseline and the features add up to it."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.bar import Bar
from rich.table import Table
from rich.text import Text

Body = Mapping[str, Any]
Step = tuple[str, float, float]
WIDTH = 36


def waterfall(reward: Body) -> Table:
    """One body of POST /v1/rewards as bars; each begins where the one before ends, the last is the reward."""
    steps = list(_steps(reward))
    low, high = (pick(at for _, *ends in steps for at in ends) for pick in (min, max))
    table = Table.grid(padding=(0, 1))
    table.title, table.caption = _title(reward), _caption(reward)
    table.title_justify = table.caption_justify = "left"
    for name, start, stop in steps:
        bar = Bar(
            max(high - low, 1e-9), min(start, stop) - low, max(start, stop) - low, width=WIDTH,
            color="dodger_blue2" if stop >= start else "dark_orange",
        )  # fmt: skip
        table.add_row(Text(name), Text(f"{stop - start:+.3f}", justify="right"), bar)
    return table


def _steps(reward: Body) -> Iterator[Step]:
    """What is added, from where, to where."""
    several = len({one["model"] for one in reward["features"]}) > 1
    parts = [("baseline", reward["baseline_reward"])]
    parts += [(_name(one, several=several), one["contribution"]) for one in reward["features"]]
    ends = [("length", reward["length_correction"]), ("doubt of its heads", -reward["penalty"])]
    ends = [(name, part) for name, part in ends if part]
    rest = reward["reward"] - sum(part for _, part in (*parts, *ends))
    at = 0.0
    for name, part in (*parts, ("all other features", rest), *ends):
        yield name, at, at + part
        at += part
    yield "reward", 0.0, reward["reward"]


def _name(feature: Body, *, several: bool) -> str:
    name = f"{feature['label'] or 'latent'} ({feature['id']})"
    return f"{feature['model']}: {name}" if several else name


def _title(reward: Body) -> str:
    return f"{reward['model']}: reward {reward['reward']:+.3f} ± {reward['uncertainty']:.3f}"


def _caption(reward: Body) -> str:
    """What else is worth knowing."""
    said = [f"distance {reward['distance']:.0f} (near 100: do not trust it)"]
    if reward["percentile"] is not None:
        said.insert(0, f"percentile {reward['percentile']:.0f}")
    if reward["truncated"]:
        said.append("older text was cut")
    return ", ".join(said)
