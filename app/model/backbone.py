"""A frozen LLM cut after the deepest layer anybody reads: Packed → residuals.

Every linear layer sees one flat row; attention runs segment by segment over ancestors + itself,
through transformers' AttentionInterface, so any Llama-like architecture comes for free.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

from app.errors import SourceError
from app.model.packing import Packed, Segment

ATTENTION = "sparserm_packed"


@dataclass(frozen=True, slots=True)
class View:
    """A segment as attention needs it: where its keys lie and which of them each query may see."""

    start: int
    stop: int
    keys: slice | Tensor
    mask: Tensor | None


class Backbone:
    """The first layers of an LLM, resident on one device."""

    def __init__(
        self, decoder: PreTrainedModel, *, name: str, digest: str, parameters: int, total_layers: int
    ) -> None:
        _refuse_unsupported(decoder)
        AttentionInterface.register(ATTENTION, attend)
        decoder.set_attn_implementation(ATTENTION)
        decoder.eval().requires_grad_(requires_grad=False)
        self._norm, decoder.norm = decoder.norm, nn.Identity()
        self.decoder = decoder
        self.name = name
        self.digest = digest
        self.parameters = parameters
        self.total_layers = total_layers

    @property
    def layers(self) -> int:
        """How many layers were kept."""
        return len(self.decoder.layers)

    @property
    def width(self) -> int:
        """D, the width of the residual stream."""
        return int(self.decoder.config.hidden_size)

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        device: torch.device = self.decoder.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """The precision the layers run in; residuals leave in float32."""
        dtype: torch.dtype = self.decoder.dtype
        return dtype

    @torch.inference_mode()
    def residuals(self, packed: Packed, layers: Iterable[int]) -> dict[int, Tensor]:
        """The residual stream after each of the given layers, one float32 row (T, D) a packed token."""
        wanted = sorted(set(layers))
        states: dict[int, Tensor] = {}
        hooks = [
            self.decoder.layers[layer - 1].register_forward_hook(_keeper(states, layer)) for layer in wanted
        ]
        try:
            self.decoder(
                input_ids=torch.from_numpy(packed.ids)[None].to(self.device),
                position_ids=torch.from_numpy(packed.positions)[None].to(self.device),
                use_cache=False,
                views=views(packed.segments, self.device),
            )
        finally:
            for hook in hooks:
                hook.remove()
        return states

    @torch.inference_mode()
    def spoken(self, directions: Tensor) -> Tensor | None:
        """What each direction says in the vocabulary, (K, V) logits; None if the head was not kept."""
        if not self.decoder.config.tie_word_embeddings:
            return None
        embeddings: Tensor = self.decoder.get_input_embeddings().weight
        logits: Tensor = self._norm(directions.to(embeddings)) @ embeddings.T
        return logits.float()


def views(segments: Iterable[Segment], device: torch.device) -> list[View]:
    """What each segment attends to, prepared once a pass and used by every layer."""
    return [_view(segment, device) for segment in segments]


def attend(
    _module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    _mask: Tensor | None,
    *,
    views: list[View],
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention of every segment over its ancestors and itself."""
    grouped = query.shape[1] != key.shape[1]
    out = torch.empty_like(query)
    for view in views:
        out[:, :, view.start : view.stop] = scaled_dot_product_attention(
            query[:, :, view.start : view.stop],
            key[:, :, view.keys],
            value[:, :, view.keys],
            attn_mask=view.mask,
            is_causal=view.mask is None,
            scale=scaling,
            enable_gqa=grouped,
        )
    return out.transpose(1, 2).contiguous(), None


def _view(segment: Segment, device: torch.device) -> View:
    runs = [*segment.ancestors, (segment.start, segment.stop)]
    if not segment.ancestors:
        return View(segment.start, segment.stop, slice(segment.start, segment.stop), None)
    new, depth = segment.stop - segment.start, segment.depth
    mask = torch.ones(new, depth + new, dtype=torch.bool, device=device).tril(depth)
    if len(segment.ancestors) == 1 and runs[0][1] == segment.start:
        return View(segment.start, segment.stop, slice(runs[0][0], segment.stop), mask)
    keys = torch.cat([torch.arange(a, b, device=device) for a, b in runs])
    return View(segment.start, segment.stop, keys, mask)


def _keeper(states: dict[int, Tensor], layer: int) -> Any:
    def keep(_module: nn.Module, _inputs: Any, output: Tensor | tuple[Tensor, ...]) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        states[layer] = hidden[0].float()

    return keep


def _refuse_unsupported(decoder: PreTrainedModel) -> None:
    config = decoder.config.to_dict()
    if config.get("attn_logit_softcapping"):
        raise SourceError("this backbone caps its attention logits, which packed attention does not do yet")
    if config.get("sliding_window") and config.get("use_sliding_window", True):
        raise SourceError("this backbone uses sliding-window attention, which is not supported yet")
