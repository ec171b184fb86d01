"""What was measured about a model: report.json for machines, report.md and pictures for eyes."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from app.evaluate import report_comparisons, report_figures
from app.evaluate.audit import shift
from app.evaluate.report_comparisons import cell
from app.reward.bundle import ModelCard

Found = Mapping[str, Any]


def begin(folder: Path, card: ModelCard, findings: Found) -> None:
    """Keep findings beside a new bundle; what was known was of the one before."""
    for picture in folder.glob("*.png"):
        picture.unlink()
    _keep(folder, card, findings)


def write(folder: Path, card: ModelCard, findings: Found) -> None:
    """Keep findings beside a bundle: what is new joins what was known."""
    _keep(folder, card, {**read(folder), **findings})


def read(folder: Path) -> dict[str, Any]:
    """What is known about the model in a folder."""
    file = folder / "report.json"
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    return found


def _keep(folder: Path, card: ModelCard, known: Found) -> None:
    (folder / "report.json").write_text(json.dumps(known, indent=1) + "\n")
    report_figures.draw(folder, known)
    (folder / "report.md").write_text("\n".join(_lines(card, known)) + "\n")


def _lines(card: ModelCard, known: Found) -> Iterator[str]:
    yield f"# {card.name}\n"
    yield f"{card.backbone}, layer {card.layer}, read-out: {card.readout}. {card.use.capitalize()}.\n"
    if "test" in known:
        yield from _test(known)
    else:
        yield "Not tested yet.\n"
    yield from report_comparisons.lines(known)
    if "verified" in known:
        yield from _verified(known["verified"])
    if "stress" in known:
        yield from _stress(known["stress"])
    yield from _training(card, known)


def _test(known: Found) -> Iterator[str]:
    test = known["test"]
    yield f"Test: {test['n']} pairs of unseen prompts. Intervals are 95 %, by bootstrap over prompts.\n"
    yield "| reads | accuracy | SparseRM's lead |"
    yield "|---|---|---|"
    yield f"| **SparseRM** | **{cell(test)}** | |"
    for name, found in known["baselines"].items():
        yield f"| {name} | {cell(found)} | {cell(found['lead'], sign=True)} |"
    yield ""
    parts = {**test["slices"]}
    parts["chosen is longer"] = test["length"]["chosen_longer"]
    parts["chosen is shorter"] = test["length"]["chosen_shorter"]
    yield "| part of the test | accuracy | pairs |"
    yield "|---|---|---|"
    for name, found in parts.items():
        if found:
            yield f"| {name} | {cell(found)} | {found['n']} |"
    yield ""
    yield (
        f"Calibration error {test['ece']:.3f}, Brier score {test['brier']:.3f}; correlation of reward and "
        f"length within a prompt {test['length']['spearman']:+.2f} (Spearman).\n"
    )
    yield from _test_pictures(known)


def _test_pictures(known: Found) -> Iterator[str]:
    """The pictures, each with what it shows in words for those who do not see it."""
    test, rivals = known["test"], known["baselines"]
    best = max(rivals, key=lambda name: rivals[name]["accuracy"])
    yield (
        f"![Accuracy on {test['n']} test pairs with 95 % intervals: SparseRM {cell(test)}, the best of "
        f"{len(rivals)} other ways, {best}, {cell(rivals[best])}.](accuracy.png)\n"
    )
    surest = test["reliability"][-1]
    yield (
        f"![Calibration on {test['n']} test pairs: where it says {surest['said']:.0%} on average, people "
        f"agree in {surest['came']:.0%} [{surest['ci_low']:.0%}, {surest['ci_high']:.0%}]; "
        f"calibration error {test['ece']:.3f}.](calibration.png)\n"
    )
    yield f"![Mean reward by length of response: {_by_length(test['by_length'])}.](length.png)\n"


def _by_length(sides: Mapping[str, list[Found]]) -> str:
    """Where the two lines begin and end."""
    return "; ".join(
        f"{name} responses {rows[0]['reward']:+.2f} around {rows[0]['tokens']:.0f} tokens and "
        f"{rows[-1]['reward']:+.2f} around {rows[-1]['tokens']:.0f}"
        for name, rows in sides.items()
    )


def _verified(found: Found) -> Iterator[str]:
    shown = found["explanations"]
    yield "## Can it be trusted?\n"
    yield (
        f"On {found['n']} test pairs (explanations on {shown['n']} of their responses). Contributions are "
        "shares of a score relative to the training mean; what they predict is tested by taking "
        "directions away.\n"
    )
    yield "| explanations | figure |"
    yield "|---|---|"
    yield f"| largest residual of any answer | {found['residual']:.1e} |"
    yield (
        "| taking out the ten largest contributors moves the reward at least three times as far as ten "
        f"random ones | {shown['ten_largest_at_least_3x']:.1%} of responses; in the median "
        f"{shown['ten_largest_over_random']:.1f} times |"
    )
    yield (
        "| contribution against what the reward loses when its direction leaves the residual (Spearman) "
        f"| {shown['intervention_spearman']:.3f} |"
    )
    yield f"| the same against a head with its inputs mixed up | {shown['shuffled_head_spearman']:+.3f} |"
    yield f"| sizes of contributions over the size of their sum | {shown['cancellation']:.1f} |"
    parallel = shown["near_parallel_directions"]
    yield f"| pairs of directions closer than a cosine of .8, once made orthonormal | {parallel} |"
    yield f"| of the five features shown, named | {shown['shown_named']:.0%} |"
    if shown["shown_named"]:
        yield f"| of those, projection tells when the latent fires | {shown['shown_tracking']:.0%} |"
        yield f"| of those, median balanced accuracy of the name | {shown['shown_name_score']:.2f} |"
    yield from _doubt(found)
    yield from _control(found)
    errors = ", ".join(f"{name} {ece:.3f}" for name, ece in found["calibration"].items())
    yield f"\nCalibration error: {errors}.\n"


def _doubt(found: Found) -> Iterator[str]:
    yield "\n| sign of doubt | finds errors (AUROC) | accuracy on the surer half | on all |"
    yield "|---|---|---|---|"
    for name, row in found["doubt"].items():
        kept = row["accuracy_at_coverage"]
        auroc = "" if row["auroc"] is None else f"{row['auroc']:.3f}"
        yield f"| {name} | {auroc} | {kept['0.5']:.3f} | {kept['1.0']:.3f} |"
    yield "\n| strange responses | told by the distance (AUROC) |"
    yield "|---|---|"
    for kind, auroc in found["strangers"].items():
        yield f"| {kind} | {auroc:.3f} |"


def _control(found: Found) -> Iterator[str]:
    yield "\n| length control | accuracy | chosen is longer | chosen is shorter | reward and length |"
    yield "|---|---|---|---|---|"
    for what, row in found["length"].items():
        length = row["length"]
        parts = [cell(one) if one else "" for one in (length["chosen_longer"], length["chosen_shorter"])]
        yield f"| {what} | {cell(row)} | {parts[0]} | {parts[1]} | {length['spearman']:+.2f} |"
    yield "\n| steered cluster | directions | factor | its target moves | the rest moves |"
    yield "|---|---|---|---|---|"
    for row in found["steering"][:5]:
        yield (
            f"| {row['cluster']} | {row['directions']} | {row['factor']:g} | {row['target']:+.2f} "
            f"| {row['rest']:+.3f} |"
        )


def _stress(found: Found) -> Iterator[str]:
    yield "## Under pressure\n"
    changes = found["transforms"].values()
    drop, flips = (sum(row[key] for row in changes) / len(changes) for key in ("drop", "flips"))
    yield f"{found['n']} test pairs, both answers said otherwise; on average {drop:+.3f} and {flips:.1%}.\n"
    yield "| the same said otherwise | accuracy | lost | pairs that change sides |"
    yield "|---|---|---|---|"
    for what, row in found["transforms"].items():
        yield f"| {what} | {row['accuracy']:.3f} | {row['drop']:+.3f} | {row['flips']:.1%} |"
    yield (
        f"\nBad answers dressed up, on the {found['attacked']} pairs ranked right before. An answer is "
        "noticed where its distance is at the 99th percentile or beyond. Drift is the largest stability "
        f"index of the monitor when a policy answers all {found['n']} prompts so (the answers as they are: "
        f"{found['honest_psi']:.2f}; the example alert fires above {shift.MOVED}).\n"
    )
    yield "| attack | overtakes the good answer | is noticed | overtakes unnoticed | drift |"
    yield "|---|---|---|---|---|"
    for what, row in found["attacks"].items():
        shares = (row["overtakes"], row["strange"], row["overtakes_unnoticed"])
        yield f"| {what} | {' | '.join(f'{share:.1%}' for share in shares)} | {row['psi']:.2f} |"
    climb = found["climb"]
    yield (
        f"\nAn attacker who may edit {climb['edits']} words, keeping what raises the reward, gains "
        f"{climb['gain'][-1]:.2f} deviations on average over {climb['answers']} bad answers; "
        f"{climb['gain_unnoticed']:.2f} before the distance notices, as it does in the end in "
        f"{climb['strange_at_the_end']:.0%}.\n"
    )


def _training(card: ModelCard, known: Found) -> Iterator[str]:
    yield "## How it was made\n"
    for data in card.data:
        yield f"- {data.name}: {data.pairs} pairs, {data.license}, sha256 {data.sha256}"
    if "training" not in known:
        return
    training, selection, names = known["training"], known["selection"], known["names"]
    yield f"- SAE {card.sae}, sha256 {card.sae_sha256}"
    yield from _origin(known.get("sae", {}))
    yield f"- {card.trained_parameters:,} trained parameters in {card.heads} heads"
    yield (
        f"- {training['prompts']} prompts; {training['seconds_extracting']} s for features (less what was on "
        f"the shelf), {training['seconds_fitting']} s for the rest"
    )
    yield (
        f"- selection: {selection['false_discovery']:.0%} of the selected latents would be selected by "
        "chance (sides swapped at random); another sample of prompts agrees on "
        f"{selection['overlap']:.0%} (Jaccard)"
    )
    yield (
        f"- names: {names['named']} of {names['directions']} directions; "
        f"{names['projection_tells_firing']} projections tell when their latent fires"
    )


def _origin(origin: Found) -> Iterator[str]:
    """How good our SAE is; where somebody else's comes from, and what was changed about when it fires."""
    if quality := origin.get("quality"):
        yield (
            f"  - variance explained: {quality['explained_variance_response']:.3f} on response tokens, "
            f"{quality['explained_variance_ends']:.3f} where a turn ends; "
            f"{quality['l0_response']:.0f} latents active at a response token"
        )
        yield f"  - latents silent on {quality['tokens']:,.0f} held-out tokens: {quality['dead_share']:.1%}"
        yield (
            "  - of what the language model loses without this layer's residual, the reconstruction saves "
            f"{quality['loss_recovered']:.1%}"
        )
        if "seed_agreement" in quality:
            found = quality["seed_agreement"]
            yield f"  - directions that another seed finds, too (cosine above .7): {found:.0%}"
    if "release" in origin:
        yield f"  - {origin['release']} {origin['id']}, a {origin['kind']} SAE of {origin['hook']}"
    if firing := origin.get("firing"):
        yield (
            f"  - its latents compete for {firing['most']} places a token; here each fires above "
            f"{firing['threshold']:.4g}. On {firing['tokens']:,} other tokens of the training pairs "
            f"{firing['l0']:.1f} fire on average; {firing['right']:.1%} of them do so in the SAE itself, and "
            f"{firing['found']:.1%} of those that do so there fire here"
        )
