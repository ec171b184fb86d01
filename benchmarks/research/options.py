"""Options that the commands of this package share."""

from pathlib import Path
from typing import Annotated

import typer

from app.cli import common
from app.reward.reward_model import ModelCard, RewardModel
from app.train.jobs import BackboneLayer
from app.types import SaeInput

ModelArgument = Annotated[str, typer.Argument(help="A reward model made by `sparserm train`.")]
PairsArgument = Annotated[str, typer.Argument(help="The pairs it was trained on.")]
TestArgument = Annotated[str, typer.Argument(help="The pairs it is measured on.")]
SaeOption = Annotated[
    Path | None, typer.Option(help="Folder of the SAE of tokens it was made from, if it was made from one.")
]
BadRowOption = Annotated[common.BadRowPolicy, typer.Option(help="What to do about rows that cannot be read.")]


def find_k(model: RewardModel) -> int:
    """Return the number of directions of each sign that was asked for; one sign may have fewer."""
    signs = [feature.sign for feature in model.features]
    return max(signs.count(1), signs.count(-1))


def find_source(card: ModelCard, sae: Path | None) -> BackboneLayer | Path:
    """Return what the features of a model were made of; those of tokens need the folder of their SAE."""
    if card.sae_input is SaeInput.RESPONSES:
        return BackboneLayer(card.backbone, card.layer)
    return sae or common.DEFAULT_SAE
