"""Two answers to one prompt in one row, the prompt once, for a model that transformers and peft run.

Every token sees what it would see alone, so rewards and gradients are those of two rows, for less work.
"""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from app.model.packing import Ids, Segment, pack

Row = dict[str, Tensor]


def row(chosen: Ids, rejected: Ids) -> Row:
    """What a model with a scalar head is given, and `ends`, the places of the two last tokens."""
    packed = pack([chosen, rejected])
    ends = [packed.rows(i, len(ids) - 1, len(ids)) for i, ids in enumerate((chosen, rejected))]
    return {
        "input_ids": torch.from_numpy(packed.ids)[None],
        "position_ids": torch.from_numpy(packed.positions)[None],
        "attention_mask": _seen(packed.segments, len(packed.ids))[None, None],
        "ends": torch.from_numpy(np.concatenate(ends)),
    }


def rewards(model: PreTrainedModel, both: Row, *, half: bool) -> Tensor:
    """The two rewards, (2,): hidden states in 16 bits if `half`, the scalar head in 32."""
    given = {name: tensor.to(model.device) for name, tensor in both.items() if name != "ends"}
    with torch.autocast(model.device.type, torch.bfloat16, enabled=half):
        hidden = model.base_model(**given, use_cache=False).last_hidden_state
    with torch.autocast(model.device.type, enabled=False):
        found: Tensor = model.score(hidden[0, both["ends"].to(model.device)].float())[:, 0]
    return found


def _seen(segments: Iterable[Segment], tokens: int) -> Tensor:
    """(T, T): which places each token attends to."""
    seen = torch.zeros(tokens, tokens).bool()
    for segment in segments:
        own = slice(segment.start, segment.stop)
        seen[own, own] = torch.ones(own.stop - own.start, own.stop - own.start).tril().bool()
        for start, stop in segment.ancestors:
            seen[own, start:stop] = True
    return seen
