"""Reports beside a bundle: report.json with all measurements, report.md with tables, and figures as PNG."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from app.evaluate import figures, report_comparisons, report_contrasts, report_limitations, report_names
from app.evaluate.audit import shift
from app.evaluate.report_comparisons import format_accuracy
from app.evaluate.report_length import get_length_settings, render_length_settings
from app.reward.reward_model import ModelCard

Results = Mapping[str, Any]


def create(folder: Path, card: ModelCard, results: Results) -> None:
    """Write the report of a new bundle; the results and figures of an earlier bundle are removed."""
    for figure in folder.glob("*.png"):
        figure.unlink()
    _write_files(folder, card, results)


def update(folder: Path, card: ModelCard, results: Results) -> None:
    """Add results to the report of a bundle, replacing those with the same keys."""
    _write_files(folder, card, {**read(folder), **results})


def read(folder: Path) -> dict[str, Any]:
    """Return the results in a folder's report.json, or an empty dict without that file."""
    file = folder / "report.json"
    results: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    return results


def _write_files(folder: Path, card: ModelCard, results: Results) -> None:
    (folder / "report.json").write_text(json.dumps(results, indent=1) + "\n")
    figures.draw_report_figures(folder, results)
    (folder / "report.md").write_text("\n".join(_render(card, results)) + "\n")


def _render(card: ModelCard, results: Results) -> Iterator[str]:
    yield f"# {card.name}\n"
    yield f"{card.backbone}, layer {card.layer}, read-out: {card.readout}. {card.use.capitalize()}.\n"
    if "test" in results:
        yield from _render_test(results)
    else:
        yield "Not tested yet.\n"
    if "limitations" in results:
        yield from report_limitations.render_limitations(results["limitations"])
    yield from report_comparisons.render_comparisons(results)
    if "named" in results:
        yield from report_names.render_names(results["named"])
    if "verified" in results:
        yield from _render_audit(results["verified"])
    if "stress" in results:
        yield from _render_robustness(results["stress"])
    yield from _render_training(card, results)


def _render_test(results: Results) -> Iterator[str]:
    test = results["test"]
    yield (
        f"Test: {test['n']} pairs with prompts that are not in the training data. Intervals are 95 %, by "
        "bootstrap over prompts.\n"
    )
    yield "| model | accuracy | SparseRM's lead |"
    yield "|---|---|---|"
    yield f"| **SparseRM** | **{format_accuracy(test)}** | |"
    for name, row in results["baselines"].items():
        yield f"| {name} | {format_accuracy(row)} | {format_accuracy(row['lead'], sign=True)} |"
    yield ""
    yield from _render_slices(test, results["baselines"].get("longer response wins"))
    yield (
        f"Calibration error {test['ece']:.3f}, Brier score {test['brier']:.3f}; correlation of reward and "
        f"length within a prompt {test['length']['spearman']:+.2f} (Spearman).\n"
    )
    yield from _render_test_figures(results)


def _render_slices(test: Results, longer_wins: Results | None) -> Iterator[str]:
    slices = {**test["slices"]}
    slices["chosen is longer"] = test["length"]["chosen_longer"]
    slices["chosen is shorter"] = test["length"]["chosen_shorter"]
    yield "| subset of the test | accuracy | pairs |"
    yield "|---|---|---|"
    for name, row in slices.items():
        if row:
            yield f"| {name} | {format_accuracy(row)} | {row['n']} |"
    yield ""
    if "length_controlled" in test:
        yield from render_length_settings(get_length_settings(test, longer_wins))
        yield ""


def _render_test_figures(results: Results) -> Iterator[str]:
    """Yield the figures of the test; each alternative text states what the figure shows."""
    test, baselines = results["test"], results["baselines"]
    best = max(baselines, key=lambda name: baselines[name]["accuracy"])
    yield (
        f"![Accuracy on {test['n']} test pairs with 95 % intervals: SparseRM {format_accuracy(test)}, the "
        f"best of {len(baselines)} baselines ({best}) {format_accuracy(baselines[best])}.](accuracy.png)\n"
    )
    top = test["reliability"][-1]
    yield (
        f"![Calibration on {test['n']} test pairs: in the bin with the highest predicted probability "
        f"({top['said']:.0%} on average) people agree in {top['came']:.0%} [{top['ci_low']:.0%}, "
        f"{top['ci_high']:.0%}] of the pairs; calibration error {test['ece']:.3f}.](calibration.png)\n"
    )
    yield f"![Mean reward by response length: {_summarize_lengths(test['by_length'])}.](length.png)\n"


def _summarize_lengths(sides: Mapping[str, list[Results]]) -> str:
    """Describe the first and the last point of both curves of the length figure."""
    return "; ".join(
        f"{name} responses {rows[0]['reward']:+.2f} around {rows[0]['tokens']:.0f} tokens and "
        f"{rows[-1]['reward']:+.2f} around {rows[-1]['tokens']:.0f}"
        for name, rows in sides.items()
    )


def _render_audit(audit: Results) -> Iterator[str]:
    yield "## Explanations, uncertainty and control\n"
    yield (
        f"Measured on {audit['n']} test pairs (explanations on {audit['explanations']['n']} of their "
        "responses). A contribution is a feature's share of a reward relative to the training mean. It is "
        "tested by removing directions and measuring how the reward changes.\n"
    )
    yield from _render_explanations(audit)
    if "contrasts" in audit:
        yield from report_contrasts.render_contrasts(audit["contrasts"])
    if audit["explanations"].get("muting"):
        yield from report_names.render_muting(audit["explanations"]["muting"])
    yield from _render_uncertainty(audit)
    yield from _render_control(audit)
    errors = ", ".join(f"{name} {ece:.3f}" for name, ece in audit["calibration"].items())
    yield f"\nCalibration error: {errors}.\n"


def _render_explanations(audit: Results) -> Iterator[str]:
    explanations = audit["explanations"]
    yield "| explanations | value |"
    yield "|---|---|"
    yield f"| largest residual of any response | {audit['residual']:.1e} |"
    yield (
        "| removing the ten largest contributors changes the reward at least three times as much as removing "
        f"ten random ones | {explanations['ten_largest_at_least_3x']:.1%} of responses; median ratio "
        f"{explanations['ten_largest_over_random']:.1f} |"
    )
    yield (
        "| rank correlation of a contribution with the change of the reward when its direction is removed "
        f"from the residual stream (Spearman) | {explanations['intervention_spearman']:.3f} |"
    )
    yield (
        "| the same with the contributions of a head whose inputs are shuffled "
        f"| {explanations['shuffled_head_spearman']:+.3f} |"
    )
    yield f"| sum of absolute contributions over the absolute sum | {explanations['cancellation']:.1f} |"
    yield (
        "| pairs of directions with an absolute cosine above .8, after orthonormalisation "
        f"| {explanations['near_parallel_directions']} |"
    )
    yield f"| share of the five features shown that have a name | {explanations['shown_named']:.0%} |"
    if explanations["shown_named"]:
        yield (
            "| share of those whose projection predicts when the latent fires "
            f"| {explanations['shown_tracking']:.0%} |"
        )
        yield f"| median balanced accuracy of those names | {explanations['shown_name_score']:.2f} |"


def _render_uncertainty(audit: Results) -> Iterator[str]:
    yield "\n| uncertainty sign | detects errors (AUROC) | accuracy on the more certain half | on all pairs |"
    yield "|---|---|---|---|"
    for name, row in audit["doubt"].items():
        accuracies = row["accuracy_at_coverage"]
        auroc = "" if row["auroc"] is None else f"{row['auroc']:.3f}"
        yield f"| {name} | {auroc} | {accuracies['0.5']:.3f} | {accuracies['1.0']:.3f} |"
    yield "\n| out-of-distribution responses | detected by the distance (AUROC) |"
    yield "|---|---|"
    for kind, auroc in audit["strangers"].items():
        yield f"| {kind} | {auroc:.3f} |"


def _render_control(audit: Results) -> Iterator[str]:
    yield ""
    yield from render_length_settings(audit["length"])
    yield "\n| steered concept | directions | factor | shift of its target | shift of the rest |"
    yield "|---|---|---|---|---|"
    for row in audit["steering"][:5]:
        name = row.get("concept") or row["cluster"]  # its key in reports of earlier versions
        yield (
            f"| {name} | {row['directions']} | {row['factor']:g} | {row['target']:+.2f} "
            f"| {row['rest']:+.3f} |"
        )


def _render_robustness(stress: Results) -> Iterator[str]:
    yield "## Robustness\n"
    rewrites = stress["transforms"].values()
    drop, flips = (sum(row[key] for row in rewrites) / len(rewrites) for key in ("drop", "flips"))
    yield (
        f"{stress['n']} test pairs whose responses or prompt are rewritten without changing the meaning. On "
        f"average a rewrite costs {drop:+.3f} accuracy and flips {flips:.1%} of the pairs.\n"
    )
    yield "| rewrite | accuracy | lost | pairs that flip |"
    yield "|---|---|---|---|"
    for name, row in stress["transforms"].items():
        yield f"| {name} | {row['accuracy']:.3f} | {row['drop']:+.3f} | {row['flips']:.1%} |"
    yield from _render_attacks(stress)
    yield from _render_attack_search(stress["climb"])


def _render_attacks(stress: Results) -> Iterator[str]:
    yield (
        f"\nAttacks change the rejected response of the {stress['attacked']} pairs that are ranked correctly "
        "without them. A response is flagged if its distance is at the 99th percentile or above. Drift is "
        "the largest population stability index (PSI) that the drift monitor reports if a policy answers "
        f"all {stress['n']} prompts this way (unchanged responses: {stress['honest_psi']:.2f}; the example "
        f"alert fires above {shift.ALERT_THRESHOLD}).\n"
    )
    yield "| attack | overtakes the chosen response | is flagged | overtakes without a flag | drift (PSI) |"
    yield "|---|---|---|---|---|"
    for name, row in stress["attacks"].items():
        shares = (row["overtakes"], row["strange"], row["overtakes_unnoticed"])
        yield f"| {name} | {' | '.join(f'{share:.1%}' for share in shares)} | {row['psi']:.2f} |"


def _render_attack_search(search: Results) -> Iterator[str]:
    yield (
        f"\nA greedy search that edits up to {search['edits']} words of a rejected response raises the "
        f"reward by {search['gain'][-1]:.2f} standard deviations on average over {search['answers']} "
        f"responses, and by {search['gain_unnoticed']:.2f} before the distance flags the response. At the "
        f"end of the search {search['strange_at_the_end']:.0%} of the responses are flagged.\n"
    )


def _render_training(card: ModelCard, results: Results) -> Iterator[str]:
    yield "## Training\n"
    for data in card.data:
        yield f"- {data.name}: {data.pairs} pairs, {data.license}, sha256 {data.sha256}"
    if "training" not in results:
        return
    training, selection, names = results["training"], results["selection"], results["names"]
    yield f"- SAE {card.sae}, sha256 {card.sae_sha256}"
    yield from _render_sae(results.get("sae", {}))
    yield f"- {card.trained_parameters:,} trained parameters in {card.heads} heads"
    yield (
        f"- {training['prompts']} prompts; {training['seconds_extracting']} s for features that were not "
        f"cached, {training['seconds_fitting']} s for the rest"
    )
    yield (
        f"- selection: estimated false discovery rate of the selected latents "
        f"{selection['false_discovery']:.0%} (chosen and rejected swapped at random); overlap with the "
        f"selection on another sample of prompts {selection['overlap']:.0%} (Jaccard)"
    )
    yield (
        f"- names: {names['named']} of {names['directions']} directions; "
        f"{names['projection_tells_firing']} projections predict when their latent fires"
    )


def _render_sae(sae: Results) -> Iterator[str]:
    """Yield the quality of an SAE trained here, or the source and firing threshold of a downloaded one."""
    if quality := sae.get("quality"):
        yield (
            f"  - variance explained: {quality['explained_variance_response']:.3f} on response tokens, "
            f"{quality['explained_variance_ends']:.3f} on tokens that end a turn; "
            f"{quality['l0_response']:.0f} latents active at a response token"
        )
        yield (
            f"  - latents that never fire on {quality['tokens']:,.0f} held-out tokens: "
            f"{quality['dead_share']:.1%}"
        )
        yield (
            "  - share of the language model's loss increase without this layer's residual that the "
            f"reconstruction recovers: {quality['loss_recovered']:.1%}"
        )
        if "seed_agreement" in quality:
            agreement = f"{quality['seed_agreement']:.0%}"
            yield f"  - directions that training with another seed also finds (cosine above .7): {agreement}"
    if "release" in sae:
        yield f"  - {sae['release']} {sae['id']}, a {sae['kind']} SAE of {sae['hook']}"
    if firing := sae.get("firing"):
        yield (
            f"  - the SAE keeps only the {firing['most']} largest latents of each token; here each latent "
            f"fires above a threshold of {firing['threshold']:.4g}. On {firing['tokens']:,} other tokens of "
            f"the training pairs {firing['l0']:.1f} latents fire on average; {firing['right']:.1%} of them "
            f"also fire in the SAE, and {firing['found']:.1%} of those that fire in the SAE fire here"
        )
