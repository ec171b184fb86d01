"""Chooses among SAEs of responses that were trained with different seeds.

Two such SAEs find different latents, and the accuracy of the reward models made from them differs. So
several are trained, and the one with whose selected directions a linear head has the lowest loss is kept.
"""

from collections.abc import Callable
from dataclasses import replace

from app.train.head.linear_tuning import compute_held_out_loss
from app.train.head.training_set import TrainingSet
from app.train.sae.response_sae import ResponseSae, ResponseSaeConfig, train_response_sae
from app.train.selection import LatentSource, SelectionData
from app.types import Pooling, SaeInput


def choose_response_sae(
    data: SelectionData,
    layer: int,
    pooling: Pooling,
    config: ResponseSaeConfig,
    progress: Callable[[float], None],
) -> ResponseSae:
    """Train SAEs with consecutive seeds; return the one with the lowest loss of preferences.

    The loss is that of a linear head on the selected directions, on prompts it was not fitted on.
    """
    if config.candidates < 1:
        raise ValueError("an SAE of responses needs at least one candidate")
    residuals = data.features.pooled_residuals(layer, pooling).flatten(0, 1)
    saes: list[ResponseSae] = []
    losses: list[float] = []
    for index in range(config.candidates):

        def report(done: float, index: int = index) -> None:
            progress((index + done) / config.candidates)

        seed = config.seed * config.candidates + index
        saes.append(train_response_sae(residuals, replace(config, seed=seed), report))
        source = LatentSource(saes[-1].dictionary, SaeInput.RESPONSES, layer, pooling)
        losses.append(compute_preference_loss(data, source))
    return saes[losses.index(min(losses))]


def compute_preference_loss(data: SelectionData, source: LatentSource) -> float:
    """Return the loss of a linear head on the directions that are selected from an SAE."""
    selection, dictionary = data.select(source)
    vectors = data.features.pooled_residuals(source.layer, source.pooling)
    training_set = TrainingSet.from_vectors(
        vectors, dictionary.directions, data.groups,
        token_counts=data.features.lengths(), signs=selection.signs,
    )  # fmt: skip
    return compute_held_out_loss(training_set, data.seed)
