"""One decoder layer, folded for serving: what transformers computes, in few passes over memory.

K and V are one product, gate and up another; the gain of the norm before a product is folded into it, so a
norm is one factor a row. Halves of a head that turn together lie side by side, so that rotating a position
in is one multiplication by a complex number of length one. Whatever the products are in, the stream between
layers stays in float32.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

from app.backbone.attention import Sight
from app.backbone.linear import Matrix
from app.errors import SourceError

KINDS = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text")
ONE_CENTRED = ("gemma2", "gemma3_text")
FULL, SLIDING = "full_attention", "sliding_attention"
ROTATIONS = ("default", "linear", "llama3", "yarn")
ACTIVATIONS = ("silu", "gelu", "gelu_pytorch_tanh")
TILE = 1024


@dataclass(frozen=True, slots=True)
class Shape:
    """What the layers of one backbone have in common."""

    heads: int
    groups: int
    size: int
    epsilon: float
    softcap: float | None
    activate: Callable[[Tensor], Tensor]

    @property
    def memory(self) -> int:
        """Numbers a token leaves behind for those after it: its key and value in every group."""
        return 2 * self.groups * self.size


@dataclass(frozen=True, slots=True)
class Layer:
    """The weights of one layer; gains are those that no product could take in."""

    shape: Shape
    look: str
    window: int | None
    scale: float
    queries: Matrix
    memory: Matrix
    head_gains: Tensor | None
    out: Matrix
    after_attention: Tensor | None
    gate_up: Matrix
    down: Matrix
    after_mlp: Tensor | None

    def __call__(
        self,
        stream: Tensor,
        row: Tensor,
        turns: Tensor,
        sight: Sight,
        read: Tensor | None = None,
    ) -> Tensor:
        """The stream after this layer, at the rows in `read` only if given; the stream is written over.

        `row` takes keys and values; what it holds of earlier tokens, before those of the stream, is attended
        to.
        """
        queries, keys, values = self._project(self._normed(stream), row, turns, read)
        seen = sight.attend(queries, keys, values, self.scale, self.shape.softcap)
        if read is not None:
            stream = stream[read]
        _add(stream, self.out(seen), self.after_attention, self.shape.epsilon)
        for tile in torch.split(stream, TILE):
            gate, up = self.gate_up(self._normed(tile)).chunk(2, dim=1)
            hidden = self.shape.activate(gate).mul_(up)
            _add(tile, self.down(hidden), self.after_mlp, self.shape.epsilon)
        return stream

    def _project(
        self, normed: Tensor, row: Tensor, turns: Tensor, read: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (Q, H, d), keys and values (T, G, d), turned to where they stand."""
        heads, groups, size = self.shape.heads, self.shape.groups, self.shape.size
        new = row[len(row) - len(normed) :]
        new.copy_(self.memory(normed))
        self._turn(new[:, : groups * size], turns, slice(heads, None))
        queries = self.queries(normed if read is None else normed[read])
        self._turn(queries, turns if read is None else turns[read], slice(heads))
        keys, values = row.view(len(row), 2, groups, size).unbind(1)
        return queries.view(-1, heads, size), keys, values

    def _turn(self, flat: Tensor, turns: Tensor, which: slice) -> None:
        """Normalise heads where the backbone does, and rotate them, in place."""
        heads = flat.view(len(flat), -1, self.shape.size)
        if self.head_gains is not None:
            heads.mul_(_factor(heads, self.shape.epsilon)).mul_(self.head_gains[which])
        pairs = heads.float().view(*heads.shape[:2], -1, 2)
        torch.view_as_complex(pairs).mul_(turns)
        if heads.dtype != torch.float32:
            heads.copy_(pairs.flatten(-2))

    def _normed(self, rows: Tensor) -> Tensor:
        return (rows * _factor(rows, self.shape.epsilon)).to(self.queries.dtype)

    @property
    def tensors(self) -> list[Tensor]:
        """Every weight of the layer."""
        found = [getattr(self, name) for name in self.__slots__]
        plain = [value for value in found if isinstance(value, Tensor)]
        return plain + [one for value in found if isinstance(value, Matrix) for one in value.tensors]


def fold(layer: Any, number: int, config: PreTrainedConfig) -> Layer:
    """A layer of transformers' in the form above."""
    attention, mlp = layer.self_attn, layer.mlp
    shape, centre = _shape(attention, config), float(config.model_type in ONE_CENTRED)
    norms = {
        name: (norm.weight.float() + centre)
        for name, norm in [*layer.named_children(), *attention.named_children()]
        if name.endswith("norm")
    }
    sandwiched = "pre_feedforward_layernorm" in norms
    before_mlp = norms["pre_feedforward_layernorm" if sandwiched else "post_attention_layernorm"]
    pairs = torch.arange(shape.size).reshape(2, -1).T.flatten()
    look = layer_look(config, number)
    return Layer(
        shape=shape,
        look=look,
        window=int(config.sliding_window) if look == SLIDING else None,
        scale=float(attention.scaling),
        queries=_projection(attention, ("q_proj",), pairs, norms["input_layernorm"]),
        memory=_projection(attention, ("k_proj", "v_proj"), pairs, norms["input_layernorm"]),
        head_gains=_head_gains(norms, pairs, shape, attention.q_proj.weight),
        out=Matrix(attention.o_proj.weight, attention.o_proj.bias),
        after_attention=norms["post_attention_layernorm"] if sandwiched else None,
        gate_up=Matrix(_folded(torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]), before_mlp)),
        down=Matrix(mlp.down_proj.weight),
        after_mlp=norms["post_feedforward_layernorm"] if sandwiched else None,
    )


def layer_look(config: PreTrainedConfig, number: int) -> str:
    """How far back a layer looks, in transformers' words."""
    told = config.to_dict()
    if told.get("layer_types"):
        look = str(told["layer_types"][number])
    else:
        look = SLIDING if told.get("sliding_window") else FULL
    if look not in (FULL, SLIDING):
        raise SourceError(f"layer {number} of this backbone does {look}, which is not supported")
    return look


def refuse_unknown(config: PreTrainedConfig) -> None:
    """Only architectures whose every part is known are computed."""
    told = config.to_dict()
    if config.model_type not in KINDS:
        known = ", ".join(KINDS)
        raise SourceError(f"a backbone of type {config.model_type!r} is not supported; there are: {known}")
    if told.get("mlp_bias"):
        raise SourceError("this backbone's MLP has biases, which is not supported")
    if told.get("use_bidirectional_attention"):
        raise SourceError("this backbone looks ahead, so its tokens cannot share prefixes")
    if (activation := _activation(told)) not in ACTIVATIONS:
        raise SourceError(f"activation {activation!r} is not supported; there are: {', '.join(ACTIVATIONS)}")
    for rotation in _rotations(told):
        kind, share = rotation.get("rope_type", "default"), rotation.get("partial_rotary_factor", 1.0)
        if kind not in ROTATIONS or share != 1.0:
            raise SourceError(
                f"positions of type {kind!r} over {share:.0%} of a head are not supported; "
                f"there are, over all of it: {', '.join(ROTATIONS)}"
            )


def _shape(attention: Any, config: PreTrainedConfig) -> Shape:
    told = config.to_dict()
    size = int(attention.head_dim)
    return Shape(
        heads=attention.q_proj.out_features // size,
        groups=attention.k_proj.out_features // size,
        size=size,
        epsilon=float(config.rms_norm_eps),
        softcap=told.get("attn_logit_softcapping"),
        activate=ACT2FN[_activation(told)],
    )


def _activation(told: Mapping[str, Any]) -> str:
    return str(told.get("hidden_activation") or told["hidden_act"])


def _rotations(told: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """How positions are turned in: one way, or one for each way of looking."""
    rotation = told.get("rope_parameters") or {}
    apart = [rotation[look] for look in (FULL, SLIDING) if look in rotation]
    return apart or [rotation]


def _projection(attention: Any, names: tuple[str, ...], pairs: Tensor, gain: Tensor) -> Matrix:
    """Rows of Q, or of K and V in one; those of Q and K with the halves of each head interleaved."""

    def rows(name: str, part: str) -> Tensor:
        found: Tensor = getattr(getattr(attention, name), part)
        heads = found.view(-1, len(pairs), *found.shape[1:])
        return found if name == "v_proj" else heads[:, pairs].flatten(0, 1)

    weight = _folded(torch.cat([rows(name, "weight") for name in names]), gain)
    biased = attention.q_proj.bias is not None
    return Matrix(weight, torch.cat([rows(name, "bias") for name in names]) if biased else None)


def _head_gains(norms: dict[str, Tensor], pairs: Tensor, shape: Shape, like: Tensor) -> Tensor | None:
    if "q_norm" not in norms:
        return None
    gains = [norms["q_norm"][pairs].expand(shape.heads, -1), norms["k_norm"][pairs].expand(shape.groups, -1)]
    return torch.cat(gains).to(like)


def _folded(weight: Tensor, gain: Tensor) -> Tensor:
    return (weight.float() * gain).to(weight)


def _factor(values: Tensor, epsilon: float) -> Tensor:
    """What brings each row to a mean square of one."""
    norm: Tensor = torch.linalg.vector_norm(values, dim=-1, keepdim=True, dtype=torch.float32)
    return norm.square_().div_(values.shape[-1]).add_(epsilon).rsqrt_()


def _add(stream: Tensor, found: Tensor, gain: Tensor | None, epsilon: float) -> None:
    """Add a product to the stream, through the norm that follows it where there is one."""
    stream += found if gain is None else found * _factor(found, epsilon) * gain
