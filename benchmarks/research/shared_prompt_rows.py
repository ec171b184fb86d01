"""Two answers to one prompt in one row, the prompt once, for a model that transformers and peft run.

Every token sees what it would see alone, so rewards and gradients are those of two rows, for less work.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from app.backbone.flex_attention import build_visibility_table
from app.backbone.packing import Segment, TokenIds, pack

Row = dict[str, Tensor]


def row(chosen: TokenIds, rejected: TokenIds) -> Row:
    """Ids and positions, which places each token sees (T, T), and `ends`, the places of the last tokens."""
    packed = pack([chosen, rejected])
    ends = [packed.rows(i, len(ids) - 1, len(ids)) for i, ids in enumerate((chosen, rejected))]
    return {
        "ids": torch.from_numpy(packed.ids),
        "positions": torch.from_numpy(packed.positions),
        "seen": _seen(packed.segments),
        "ends": torch.from_numpy(np.concatenate(ends)),
    }


def rewards(model: PreTrainedModel, both: Row, *, half: bool) -> Tensor:
    """The two rewards, (2,): hidden states in 16 bits if `half`, the scalar head in 32."""
    here = {name: tensor.to(model.device) for name, tensor in both.items()}
    veil = _veil(model, here["seen"], here["positions"], torch.bfloat16 if half else model.dtype)
    with torch.autocast(model.device.type, torch.bfloat16, enabled=half):
        hidden = model.base_model(
            input_ids=here["ids"][None],
            position_ids=here["positions"][None],
            attention_mask=veil,
            use_cache=False,
        ).last_hidden_state
    with torch.autocast(model.device.type, enabled=False):
        found: Tensor = model.score(hidden[0, here["ends"]].float())[:, 0]
    return found


def _seen(segments: Sequence[Segment]) -> Tensor:
    seen, places = build_visibility_table(segments)
    whole = np.repeat(seen, [segment.stop - segment.start for segment in segments], axis=0)
    return torch.from_numpy(whole & (places[:, None] >= places))


def _veil(
    model: PreTrainedModel, seen: Tensor, positions: Tensor, dtype: torch.dtype
) -> Tensor | dict[str, Tensor]:
    """What transformers adds to attention; one for each kind of layer where layers look back differently."""
    facts = model.config.to_dict()
    everything, window = _added(seen, dtype), facts.get("sliding_window")
    if not window:
        return everything
    near = _added(seen & (positions[:, None] - positions < window), dtype)
    if not facts.get("layer_types"):
        return near
    return {"full_attention": everything, "sliding_attention": near}


def _added(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where a token sees another and the least number where not."""
    return torch.zeros_like(seen, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)[None, None]
