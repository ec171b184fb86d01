"""Runs both responses of a pair in one row, the prompt once, through a model of transformers and peft.

The attention mask lets every token attend to what it would attend to in a row of its own. So rewards and
gradients are the same as with two rows, for less work.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from app.backbone.flex_attention import build_visibility_table
from app.backbone.packing import Segment, TokenIds, pack

PairRow = dict[str, Tensor]


def build_row(chosen: TokenIds, rejected: TokenIds) -> PairRow:
    """Return `ids` and `positions` (T), the `mask` (T, T), and `ends` (2), the rows of the last tokens."""
    packed = pack([chosen, rejected])
    ends = [packed.rows(i, len(ids) - 1, len(ids)) for i, ids in enumerate((chosen, rejected))]
    return {
        "ids": torch.from_numpy(packed.ids),
        "positions": torch.from_numpy(packed.positions),
        "mask": _build_mask(packed.segments),
        "ends": torch.from_numpy(np.concatenate(ends)),
    }


def score_row(model: PreTrainedModel, row: PairRow, *, half: bool) -> Tensor:
    """Return the two rewards, (2,): hidden states in bfloat16 if `half`, the scalar head in float32."""
    row = {name: tensor.to(model.device) for name, tensor in row.items()}
    bias = _build_attention_bias(
        model, row["mask"], row["positions"], torch.bfloat16 if half else model.dtype
    )
    with torch.autocast(model.device.type, torch.bfloat16, enabled=half):
        hidden = model.base_model(
            input_ids=row["ids"][None],
            position_ids=row["positions"][None],
            attention_mask=bias,
            use_cache=False,
        ).last_hidden_state
    with torch.autocast(model.device.type, enabled=False):
        rewards: Tensor = model.score(hidden[0, row["ends"]].float())[:, 0]
    return rewards


def _build_mask(segments: Sequence[Segment]) -> Tensor:
    """Return a mask (T, T) that is true where a token attends to another."""
    visible, positions = build_visibility_table(segments)
    mask = np.repeat(visible, [segment.stop - segment.start for segment in segments], axis=0)
    return torch.from_numpy(mask & (positions[:, None] >= positions))


def _build_attention_bias(
    model: PreTrainedModel, mask: Tensor, positions: Tensor, dtype: torch.dtype
) -> Tensor | dict[str, Tensor]:
    """Return the mask as transformers adds it to attention scores: one, or one for each type of layer."""
    config = model.config.to_dict()
    full, window = _to_bias(mask, dtype), config.get("sliding_window")
    if not window:
        return full
    sliding = _to_bias(mask & (positions[:, None] - positions < window), dtype)
    if not config.get("layer_types"):
        return sliding
    return {"full_attention": full, "sliding_attention": sliding}


def _to_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return 0 where the mask is true and the smallest number of the type elsewhere, (1, 1, T, T)."""
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)[None, None]
