"""What a report says of others on the same pairs: variants, random directions, a StandardRM."""

from collections.abc import Iterator, Mapping
from typing import Any

Found = Mapping[str, Any]


def lines(known: Found) -> Iterator[str]:
    """Every contest that was held."""
    if "ablation" in known:
        yield from _ablation(known["ablation"])
    if "beyond" in known:
        yield from _beyond(known)
    if "standard" in known:
        yield from _standard(known["standard"])
        if "stock" in known:
            yield from _stock(known["stock"], known["standard"])


def cell(found: Found, *, sign: bool = False) -> str:
    """An accuracy with its interval."""
    how = "+.3f" if sign else ".3f"
    return f"{found['accuracy']:{how}} [{found['ci_low']:{how}}, {found['ci_high']:{how}}]"


def _ablation(found: Found) -> Iterator[str]:
    yield "## What matters\n"
    yield (
        f"{found['pairs']} training pairs, mean over {found['seeds']} seeds, each with its own pairs; "
        "lead is the method's over the variant, on the same pairs.\n"
    )
    yield "| variant | accuracy | the method's lead |"
    yield "|---|---|---|"
    for name, row in found["variants"].items():
        yield f"| {name} | {cell(row)} | {cell(row['lead'], sign=True) if 'lead' in row else ''} |"
    yield "\n![The table above as points with 95 % intervals.](variants.png)\n"
    yield f"![Accuracy by number of training pairs: {_ends(found['data'])}.](data.png)\n"
    yield f"![Accuracy by number of directions of each sign: {_ends(found['directions'])}.](directions.png)\n"


def _ends(lines: Mapping[str, Mapping[str, Found]]) -> str:
    """Where each line of a picture begins and ends."""
    return "; ".join(
        f"{name} {points[first]['accuracy']:.3f} at {first}, {points[last]['accuracy']:.3f} at {last}"
        for name, points in lines.items()
        for first, last in [(next(iter(points)), list(points)[-1])]
    )


def _beyond(known: Found) -> Iterator[str]:
    found, names = known["beyond"], known["names"]
    here, *_ = found["accuracy"].values()
    ways, verdict = list(here), _verdict(here["random directions"]["lead"])
    leads = (
        f"{cell(row['lead'], sign=True)} with {k}"
        for k, row in known["ablation"]["directions"]["random directions"].items()
    )
    yield "## Selected or random directions\n"
    yield (
        f"In this test selected directions {verdict} as many random ones ({found['pairs']} training pairs, "
        f"{found['seeds']} seeds). Their lead by the number of directions of each sign: {', '.join(leads)}.\n"
    )
    yield (
        "What else do they buy? Below, the same heads on other tasks' pairs, and on a sample of this test "
        f"with both answers said otherwise in ten ways. And names: {names['named']} of "
        f"{names['directions']} selected directions have one, no random one can.\n"
    )
    yield f"| | {' | '.join(ways)} | selected − random directions |"
    yield "|---" * (len(ways) + 2) + "|"
    asked = {
        **{f"accuracy, {place}": row for place, row in found["accuracy"].items()},
        "pairs that change sides": found["flips"],
    }
    for what, row in asked.items():
        lead = row["random directions"]["lead"]
        yield f"| {what} | {' | '.join(cell(row[way]) for way in ways)} | {cell(lead, sign=True)} |"
    yield ""


def _verdict(lead: Found) -> str:
    if lead["ci_low"] > 0:
        return "beat"
    return "lose to" if lead["ci_high"] < 0 else "do not beat"


def _standard(found: Found) -> Iterator[str]:
    plan, rows = found["plan"], found["sizes"].values()
    yield "## Against a StandardRM\n"
    yield (
        "The same backbone with all of its layers, fine-tuned by LoRA with a scalar head and Bradley-Terry "
        f"loss on the same pairs: {plan['epochs']} epochs, rate {plan['lr']:g}, rank {plan['rank']}; "
        f"threads: {found['threads']}. It reads a prompt {found['prompts']}, as SparseRM does. "
        "From nothing to a model, features included; CPU seconds add up the "
        "work of all cores, which the company of other programs disturbs less.\n"
    )
    yield (
        "| pairs | model | accuracy | SparseRM's lead | seconds | CPU seconds | parameters | peak GiB "
        "| products in |"
    )
    yield "|---|---|---|---|---|---|---|---|---|"
    for row in rows:
        for name, key in (("SparseRM", "sparse"), ("StandardRM", "standard")):
            one = row[key]
            lead = cell(row["lead"], sign=True) if key == "standard" else ""
            yield (
                f"| {row['pairs']} | {name} | {cell(one)} | {lead} "
                f"| {one['seconds']:,.0f} | {one['cpu_seconds']:,.0f} "
                f"| {one['trainable']:,} | {one['peak_gib']} | {one['precision']} |"
            )
    yield f"\nIn processor time the StandardRM costs {_times(found)}.\n"


def _stock(found: Found, standard: Found) -> Iterator[str]:
    stock, siblings = found["cpu_seconds"]["stock"], found["cpu_seconds"]["siblings"]
    longer = stock / siblings
    yield (
        "As TRL ships it, with padding and the prompt before each answer, an epoch of "
        f"{found['pairs']} pairs takes {stock:,.0f} s of processor time where the one above takes "
        f"{siblings:,.0f} (in turns; threads: {found['threads']}), {longer:.1f} times as long. So it costs "
        f"{_times(standard, longer)}.\n"
    )


def _times(standard: Found, longer: float = 1.0) -> str:
    """How many times our processor time the StandardRM took, or would if everything took longer."""
    dearer = (
        (row["standard"]["cpu_seconds"] / row["sparse"]["cpu_seconds"] * longer, row["pairs"])
        for row in standard["sizes"].values()
    )
    return ", ".join(f"{times:.0f} times ours on {pairs} pairs" for times, pairs in dearer)
