"""`python -m benchmarks.research.label_noise`: finds flipped labels, and trains on a repaired copy.

Labels of a share of the training pairs are flipped at random. The first figure is how many of them are among
the first tenth that `sparserm audit` lists. Then a share is flipped, and a model is trained on the clean
pairs, on the noisy ones, and on copies from which the audit has dropped, or flipped back, as many pairs.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from app.cli import common
from app.data.pairs import read_pairs
from app.evaluate.accuracy import bootstrap_mean, pair_wins
from app.reward import bundle
from app.reward.reward_model import RewardModel
from app.train import jobs, steps
from app.train.features import PairFeatures
from app.train.head.baselines import ComparisonData, train_linear_probe
from app.train.head.linear import LinearHeadConfig
from app.train.pair_audit.labels import compute_heldout_margins
from app.train.sae.choice import choose_response_sae
from app.train.sae.response_sae import ResponseSaeConfig
from app.train.selection import LatentSource, SelectionData
from app.train.steps import ExtractedPairs
from app.types import SaeInput
from benchmarks.research import options, variants

LISTED_SHARE = 0.1
app = typer.Typer(add_completion=False)
Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class NoisyPairs:
    """Training pairs with flipped labels, and their rows in the order of the audit."""

    extracted: ExtractedPairs
    flipped: Rows
    suspicious: Rows

    def select(self, drop: Collection[int], flip: Rows) -> ExtractedPairs:
        """Return the pairs without some rows and with the labels of others flipped."""
        kept = [row for row in range(len(self.extracted.pairs)) if row not in drop]
        return subset(replace(self.extracted, features=flip_rows(self.extracted.features, flip)), kept)


@app.command()
def main(
    model: options.ModelArgument,
    pairs: options.PairsArgument,
    test: options.TestArgument,
    find_share: Annotated[float, typer.Option(help="Share of labels that are flipped to be found.")] = 0.05,
    repair_share: Annotated[float, typer.Option(help="Share of labels that are flipped and repaired.")] = 0.2,
    limit: Annotated[int, typer.Option(min=0, help="Maximum number of training pairs; 0 uses all.")] = 0,
    seed: int = 0,
) -> None:
    """Print which share of flipped labels is found, and the accuracy on clean, noisy and repaired pairs."""
    settings = common.load_settings()
    with common.exit_on_error(), common.show_progress() as progress:
        trained = bundle.load_bundle(settings.models_dir / model)
        extractor = jobs.load_feature_extractor(options.find_source(trained.card, None), settings, progress)
        train_pairs = read_pairs(pairs)
        train, held_out = (
            steps.extract(rows, extractor, settings.cache, progress)
            for rows in (train_pairs[: limit or len(train_pairs)], read_pairs(test))
        )
        few, many = (add_noise(train, trained, share, seed) for share in (find_share, repair_share))
        listed = few.suspicious[: int(LISTED_SHARE * len(few.suspicious))]
        share_found = np.isin(few.flipped, listed).mean()
        worst = many.suspicious[: len(many.flipped)]
        none = np.zeros(0, dtype=np.int64)
        copies = {
            "clean": train, f"{repair_share:.0%} flipped": many.extracted,
            "as many dropped": many.select(set(worst.tolist()), none),
            "as many flipped back": many.select((), worst),
        }  # fmt: skip
        table = Table("training pairs", "SparseRM", "linear probe")
        for done, (name, copy) in enumerate(copies.items()):
            progress("training", done / len(copies))
            table.add_row(name, *measure(copy, held_out, trained, seed))
    print(f"{share_found:.3f} of {len(few.flipped)} flipped labels are in the first {LISTED_SHARE:.0%}")
    Console().print(table)


def add_noise(train: ExtractedPairs, model: RewardModel, share: float, seed: int) -> NoisyPairs:
    """Flip a share of the labels, and order the pairs as the audit does."""
    count = len(train.pairs)
    flipped = np.random.default_rng(seed).choice(count, int(share * count), replace=False)
    noisy = replace(train, features=flip_rows(train.features, flipped))
    margins = compute_heldout_margins(noisy.features, model.card.layer, noisy.groups, lambda _: None)
    return NoisyPairs(noisy, flipped, np.argsort(margins, kind="stable"))


def flip_rows(features: PairFeatures, rows: Rows) -> PairFeatures:
    """Return the features with chosen and rejected responses of some pairs exchanged."""
    index = features.response_index.clone()
    index[rows] = index[rows].flip(1)
    return replace(features, response_index=index)


def subset(extracted: ExtractedPairs, rows: list[int]) -> ExtractedPairs:
    """Return some of the pairs."""
    return ExtractedPairs([extracted.pairs[row] for row in rows], extracted.features.subset(rows))


def measure(train: ExtractedPairs, test: ExtractedPairs, model: RewardModel, seed: int) -> tuple[str, str]:
    """Return the accuracy of the method and of a linear probe, with intervals over prompts."""
    card, k = model.card, options.find_k(model)
    selection = SelectionData(train.features, train.groups, k, seed)
    sae = choose_response_sae(
        selection, card.layer, card.readout, ResponseSaeConfig(seed=seed), lambda _: None
    )
    latents = LatentSource(sae.dictionary, SaeInput.RESPONSES, card.layer, card.readout)
    data = ComparisonData(
        train.pairs, train.features, test.pairs, test.features, latents, card.layer, card.readout, k,
        LinearHeadConfig(seed=seed),
    )  # fmt: skip
    results = []
    for method in (variants.train_method, train_linear_probe):
        accuracy = bootstrap_mean(pair_wins(torch.as_tensor(method(data))), test.groups)
        results.append(f"{accuracy.accuracy:.3f} [{accuracy.ci_low:.3f}, {accuracy.ci_high:.3f}]")
    return results[0], results[1]


if __name__ == "__main__":
    app()
