"""How good an SAE is, on chats it was not trained on.

Explained variance apart for response tokens and for the tokens that end a turn, because rewards are read
there; and what the language model loses when it has to go on from the reconstruction.
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

SAME = 0.7
Reconstruct = Callable[[Tensor], Tensor]


def make_reconstruct(dictionary: Dictionary, bias: Tensor) -> Reconstruct:
    """Residuals → what the dictionary makes of them."""
    return lambda rows: (
        (dictionary.encode(rows) @ dictionary.directions + bias) / dictionary.input_scale(rows)
    )


def measure_fidelity(
    chats: list[EncodedItem],
    backbone: Backbone,
    layer: int,
    dictionary: Dictionary,
    bias: Tensor,
    report: Callable[[int], None],
) -> dict[str, float]:
    """Explained variance, mean active latents, and the share of latents that never fire here."""
    rows = [_rows(chat, backbone, layer, report, i + 1) for i, chat in enumerate(chats)]
    responses = torch.cat(
        [row[chat.response_start : chat.response_end] for row, chat in zip(rows, chats, strict=True)]
    )
    ends = torch.cat(
        [row[chat.response_end - 1 : chat.response_end + 1] for row, chat in zip(rows, chats, strict=True)]
    )
    everything = torch.cat([row[1:] for row in rows])
    rebuild = make_reconstruct(dictionary, bias)
    fired = torch.stack([(dictionary.encode(part) > 0).any(0) for part in torch.split(everything, 4096)]).any(
        0
    )
    return {
        "explained_variance_response": _explained(responses, rebuild),
        "explained_variance_ends": _explained(ends, rebuild),
        "explained_variance": _explained(everything, rebuild),
        "l0_response": _active(responses, dictionary),
        "l0": _active(everything, dictionary),
        "dead_share": float((~fired).float().mean()),
        "tokens": float(len(everything)),
    }


def measure_loss_recovered(
    chats: list[EncodedItem], llm: PreTrainedModel, layer: int, rebuild: Reconstruct
) -> float:
    """Share of the language model's loss kept by the reconstruction: 0 as with a zeroed layer, 1 lossless."""
    clean = _loss(chats, llm, layer, lambda rows: rows)
    rebuilt = _loss(chats, llm, layer, rebuild)
    nothing = _loss(chats, llm, layer, torch.zeros_like)
    return (nothing - rebuilt) / (nothing - clean)


def measure_agreement(ours: Dictionary, theirs: Dictionary) -> float:
    """Share of our directions that another seed found too (cosine above 0.7)."""
    a, b = (torch.nn.functional.normalize(d.directions, dim=1) for d in (ours, theirs))
    return float(((a @ b.T).amax(1) > SAME).float().mean())


def _rows(
    chat: EncodedItem, backbone: Backbone, layer: int, report: Callable[[int], None], number: int
) -> Tensor:
    packed = pack([chat.ids])
    rows = backbone.residuals(packed, {layer: packed.computed_rows})[layer].values
    report(number)
    return rows


def _explained(rows: Tensor, rebuild: Reconstruct) -> float:
    error = sum(float((part - rebuild(part)).pow(2).sum()) for part in torch.split(rows, 4096))
    return 1 - error / float((rows - rows.mean(0)).pow(2).sum())


def _active(rows: Tensor, dictionary: Dictionary) -> float:
    counts = [(dictionary.encode(part) > 0).sum(1) for part in torch.split(rows, 4096)]
    return float(torch.cat(counts).float().mean())


def _loss(chats: list[EncodedItem], llm: PreTrainedModel, layer: int, change: Reconstruct) -> float:
    """Mean next-token loss with the residuals after a layer changed, the first token's left alone."""
    total, tokens = 0.0, 0
    with torch.inference_mode(), _changed(llm, layer, change):
        for chat in chats:
            ids = torch.tensor([chat.ids], device=llm.device)
            logits = llm(input_ids=ids).logits[0, 1:-1].float()
            total += float(cross_entropy(logits, ids[0, 2:], reduction="sum"))
            tokens += ids.shape[1] - 2
    return total / tokens


@contextmanager
def _changed(llm: PreTrainedModel, layer: int, change: Reconstruct) -> Iterator[None]:
    def hook(_module: object, _inputs: object, output: Tensor | tuple[Tensor, ...]) -> object:
        hidden = output[0] if isinstance(output, tuple) else output
        new = torch.cat([hidden[:, :1], change(hidden[0, 1:].float())[None].to(hidden.dtype)], dim=1)
        return (new, *output[1:]) if isinstance(output, tuple) else new

    handle = llm.model.layers[layer - 1].register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
