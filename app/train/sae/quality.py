"""Measures an SAE on chats it was not trained on: explained variance, sparsity, and loss recovered.

Explained variance is also measured separately for response tokens and for the tokens that end a turn, because
rewards are read there. Loss recovered compares the language model's loss with and without the reconstruction.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from app.backbone.backbone import Backbone
from app.backbone.packing import pack
from app.reward.directions import Dictionary
from app.types import EncodedItem

MIN_SAME_COSINE = 0.7
"""Directions of two SAEs count as the same above this cosine similarity."""
CHUNK_ROWS = 4096
"""Rows encoded at once, to bound the memory of their activations."""
Reconstruct = Callable[[Tensor], Tensor]


def make_reconstruct(dictionary: Dictionary, bias: Tensor) -> Reconstruct:
    """Return a function from residuals to their reconstruction by the SAE."""
    return lambda rows: (
        (dictionary.encode(rows) @ dictionary.directions + bias) / dictionary.input_scale(rows)
    )


def measure_fidelity(
    chats: list[EncodedItem],
    backbone: Backbone,
    layer: int,
    dictionary: Dictionary,
    bias: Tensor,
    progress: Callable[[int], None],
) -> dict[str, float]:
    """Return explained variance, mean number of active latents, and the share of latents that never fire."""
    rows = []
    for done, chat in enumerate(chats, 1):
        rows.append(_compute_residuals(chat, backbone, layer))
        progress(done)
    responses = torch.cat(
        [row[chat.response_start : chat.response_end] for row, chat in zip(rows, chats, strict=True)]
    )
    ends = torch.cat(
        [row[chat.response_end - 1 : chat.response_end + 1] for row, chat in zip(rows, chats, strict=True)]
    )
    all_rows = torch.cat([row[1:] for row in rows])
    reconstruct = make_reconstruct(dictionary, bias)
    fired = torch.stack(
        [(dictionary.encode(chunk) > 0).any(0) for chunk in torch.split(all_rows, CHUNK_ROWS)]
    )
    return {
        "explained_variance_response": _explained_variance(responses, reconstruct),
        "explained_variance_ends": _explained_variance(ends, reconstruct),
        "explained_variance": _explained_variance(all_rows, reconstruct),
        "l0_response": _mean_active_latents(responses, dictionary),
        "l0": _mean_active_latents(all_rows, dictionary),
        "dead_share": float((~fired.any(0)).float().mean()),
        "tokens": float(len(all_rows)),
    }


def measure_loss_recovered(
    chats: list[EncodedItem], llm: PreTrainedModel, layer: int, reconstruct: Reconstruct
) -> float:
    """Return the share of the language model's loss that the reconstruction keeps.

    1 is lossless; 0 is as bad as residuals of zero after the layer.
    """
    clean = _mean_loss(chats, llm, layer, lambda rows: rows)
    reconstructed = _mean_loss(chats, llm, layer, reconstruct)
    zeroed = _mean_loss(chats, llm, layer, torch.zeros_like)
    return (zeroed - reconstructed) / (zeroed - clean)


def measure_agreement(dictionary: Dictionary, other: Dictionary) -> float:
    """Return the share of directions that an SAE of another seed, `other`, also has."""
    a, b = (torch.nn.functional.normalize(d.directions, dim=1) for d in (dictionary, other))
    return float(((a @ b.T).amax(1) > MIN_SAME_COSINE).float().mean())


def _compute_residuals(chat: EncodedItem, backbone: Backbone, layer: int) -> Tensor:
    packed = pack([chat.ids])
    return backbone.residuals(packed, {layer: packed.computed_rows})[layer].values


def _explained_variance(rows: Tensor, reconstruct: Reconstruct) -> float:
    error = sum(float((chunk - reconstruct(chunk)).pow(2).sum()) for chunk in torch.split(rows, CHUNK_ROWS))
    return 1 - error / float((rows - rows.mean(0)).pow(2).sum())


def _mean_active_latents(rows: Tensor, dictionary: Dictionary) -> float:
    counts = [(dictionary.encode(chunk) > 0).sum(1) for chunk in torch.split(rows, CHUNK_ROWS)]
    return float(torch.cat(counts).float().mean())


def _mean_loss(chats: list[EncodedItem], llm: PreTrainedModel, layer: int, replace: Reconstruct) -> float:
    """Return the mean next-token loss; residuals after a layer are replaced, except the first token's."""
    total, tokens = 0.0, 0
    with torch.inference_mode(), _replace_residuals(llm, layer, replace):
        for chat in chats:
            ids = torch.tensor([chat.ids], device=llm.device)
            logits = llm(input_ids=ids).logits[0, 1:-1].float()
            total += float(cross_entropy(logits, ids[0, 2:], reduction="sum"))
            tokens += ids.shape[1] - 2
    return total / tokens


@contextmanager
def _replace_residuals(llm: PreTrainedModel, layer: int, replace: Reconstruct) -> Iterator[None]:
    """Replace the residuals after a layer during the forward pass; the first token's stay as they are."""

    def hook(_module: object, _inputs: object, output: Tensor | tuple[Tensor, ...]) -> object:
        hidden = output[0] if isinstance(output, tuple) else output
        new = torch.cat([hidden[:, :1], replace(hidden[0, 1:].float())[None].to(hidden.dtype)], dim=1)
        return (new, *output[1:]) if isinstance(output, tuple) else new

    handle = llm.model.layers[layer - 1].register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
