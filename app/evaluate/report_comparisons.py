"""The comparisons in a report: variants of the method, random directions, and a fine-tuned StandardRM."""

from collections.abc import Iterator, Mapping
from typing import Any

Results = Mapping[str, Any]


def render_comparisons(results: Results) -> Iterator[str]:
    """Yield the Markdown of every comparison that is in the results."""
    if "ablation" in results:
        yield from _render_ablation(results["ablation"])
    if "beyond" in results:
        yield from _render_random_directions(results)
    if "standard" in results:
        yield from _render_standard_rm(results["standard"])
        if "stock" in results:
            yield from _render_trl_baseline(results["stock"], results["standard"])


def format_accuracy(row: Results, *, sign: bool = False) -> str:
    """Format an accuracy with its interval; `sign` adds a plus sign to positive numbers."""
    spec = "+.3f" if sign else ".3f"
    return f"{row['accuracy']:{spec}} [{row['ci_low']:{spec}}, {row['ci_high']:{spec}}]"


def _render_ablation(ablation: Results) -> Iterator[str]:
    yield "## Variants of the method\n"
    yield (
        f"{ablation['pairs']} training pairs, mean over {ablation['seeds']} seeds, each with its own "
        "training pairs. The lead is the accuracy of SparseRM minus that of the variant on the same pairs.\n"
    )
    yield "| variant | accuracy | SparseRM's lead |"
    yield "|---|---|---|"
    for name, row in ablation["variants"].items():
        lead = format_accuracy(row["lead"], sign=True) if "lead" in row else ""
        yield f"| {name} | {format_accuracy(row)} | {lead} |"
    yield "\n![The table above as points with 95 % intervals.](variants.png)\n"
    yield f"![Accuracy by number of training pairs: {_summarize_curves(ablation['data'])}.](data.png)\n"
    directions = _summarize_curves(ablation["directions"])
    yield f"![Accuracy by number of directions of each sign: {directions}.](directions.png)\n"


def _summarize_curves(curves: Mapping[str, Mapping[str, Results]]) -> str:
    """Describe the first and the last point of each curve of a figure."""
    return "; ".join(
        f"{name} {points[first]['accuracy']:.3f} at {first}, {points[last]['accuracy']:.3f} at {last}"
        for name, points in curves.items()
        for first, last in [(next(iter(points)), list(points)[-1])]
    )


def _render_random_directions(results: Results) -> Iterator[str]:
    comparison, names = results["beyond"], results["names"]
    this_test, *_ = comparison["accuracy"].values()
    variants, verdict = list(this_test), _describe_lead(this_test["random directions"]["lead"])
    leads = (
        f"{format_accuracy(row['lead'], sign=True)} with {k}"
        for k, row in results["ablation"]["directions"]["random directions"].items()
    )
    yield "## Selected or random directions\n"
    yield (
        f"On this test the selected directions are {verdict} the same number of random directions "
        f"({comparison['pairs']} training pairs, {comparison['seeds']} seeds). Their lead by the number of "
        f"directions of each sign: {', '.join(leads)}.\n"
    )
    yield (
        "The table shows the accuracy of the same heads on pairs of other tasks, and the share of pairs that "
        "flip when both responses of a sample of this test are rewritten in ten ways. "
        f"{names['named']} of {names['directions']} selected directions have a name; random directions "
        "cannot be named.\n"
    )
    yield f"| | {' | '.join(variants)} | selected − random directions |"
    yield "|---" * (len(variants) + 2) + "|"
    rows = {f"accuracy, {test}": row for test, row in comparison["accuracy"].items()}
    for name, row in {**rows, "pairs that flip": comparison["flips"]}.items():
        lead = format_accuracy(row["random directions"]["lead"], sign=True)
        yield f"| {name} | {' | '.join(format_accuracy(row[variant]) for variant in variants)} | {lead} |"
    yield ""


def _describe_lead(lead: Results) -> str:
    if lead["ci_low"] > 0:
        return "significantly better than"
    return "significantly worse than" if lead["ci_high"] < 0 else "not significantly better than"


def _render_standard_rm(comparison: Results) -> Iterator[str]:
    config = comparison["plan"]
    yield "## Comparison with a StandardRM\n"
    yield (
        "The StandardRM is the same backbone with all of its layers, fine-tuned by LoRA with a scalar head "
        f"and the Bradley-Terry loss on the same pairs: {config['epochs']} epochs, learning rate "
        f"{config['lr']:g}, rank {config['rank']}; threads: {comparison['threads']}. It reads a prompt "
        f"{comparison['prompts']}, as SparseRM does. Times cover everything from the pairs to the finished "
        "model, feature extraction included. CPU seconds add up the work of all cores; other programs on the "
        "machine affect them less.\n"
    )
    yield (
        "| pairs | model | accuracy | SparseRM's lead | seconds | CPU seconds | parameters | peak GiB "
        "| matrix products in |"
    )
    yield "|---|---|---|---|---|---|---|---|---|"
    for row in comparison["sizes"].values():
        for name, key in (("SparseRM", "sparse"), ("StandardRM", "standard")):
            model = row[key]
            lead = format_accuracy(row["lead"], sign=True) if key == "standard" else ""
            yield (
                f"| {row['pairs']} | {name} | {format_accuracy(model)} | {lead} "
                f"| {model['seconds']:,.0f} | {model['cpu_seconds']:,.0f} "
                f"| {model['trainable']:,} | {model['peak_gib']} | {model['precision']} |"
            )
    yield f"\nThe CPU time of the StandardRM is {_format_cost_ratios(comparison)}.\n"


def _render_trl_baseline(baseline: Results, comparison: Results) -> Iterator[str]:
    """Yield the cost of TRL's RewardTrainer as it ships, without the sharing of prompts used above."""
    stock, shared = baseline["cpu_seconds"]["stock"], baseline["cpu_seconds"]["siblings"]
    slowdown = stock / shared
    yield (
        "With TRL's RewardTrainer as it ships, which pads and repeats the prompt for each response, an "
        f"epoch of {baseline['pairs']} pairs takes {stock:,.0f} s of CPU time instead of {shared:,.0f} "
        f"(measured alternately; threads: {baseline['threads']}), {slowdown:.1f} times as long. At that "
        f"speed the CPU time of the StandardRM is {_format_cost_ratios(comparison, slowdown)}.\n"
    )


def _format_cost_ratios(comparison: Results, slowdown: float = 1.0) -> str:
    """Format the CPU time of the StandardRM, multiplied by `slowdown`, as multiples of SparseRM's."""
    ratios = (
        (row["standard"]["cpu_seconds"] / row["sparse"]["cpu_seconds"] * slowdown, row["pairs"])
        for row in comparison["sizes"].values()
    )
    return ", ".join(f"{ratio:.0f} times SparseRM's on {pairs} pairs" for ratio, pairs in ratios)
