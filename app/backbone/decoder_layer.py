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

from app.backbone.attention import AttentionMask
from app.backbone.linear import PackedLinear
from app.errors import SourceError

SUPPORTED_MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text")
ONE_CENTRED = ("gemma2", "gemma3_text")
FULL_ATTENTION, SLIDING_ATTENTION = "full_attention", "sliding_attention"
SUPPORTED_ROPE_TYPES = ("default", "linear", "llama3", "yarn")
SUPPORTED_ACTIVATIONS = ("silu", "gelu", "gelu_pytorch_tanh")
TILE = 1024


@dataclass(frozen=True, slots=True)
class LayerConfig:
    """What the layers of one backbone have in common."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_epsilon: float
    logit_softcap: float | None
    activation: Callable[[Tensor], Tensor]

    @property
    def kv_size(self) -> int:
        """Numbers a token leaves behind for those after it: its key and value in every group."""
        return 2 * self.num_kv_heads * self.head_dim


@dataclass(frozen=True, slots=True)
class DecoderLayer:
    """The weights of one layer; gains are those that no product could take in."""

    shape: LayerConfig
    layer_type: str
    window: int | None
    scale: float
    q_proj: PackedLinear
    kv_proj: PackedLinear
    qk_norm: Tensor | None
    o_proj: PackedLinear
    post_attention_norm: Tensor | None
    gate_up_proj: PackedLinear
    down_proj: PackedLinear
    post_mlp_norm: Tensor | None

    def __call__(
        self,
        stream: Tensor,
        row: Tensor,
        turns: Tensor,
        sight: AttentionMask,
        read: Tensor | None = None,
    ) -> Tensor:
        """The stream after this layer, at the rows in `read` only if given; the stream is written over.

        `row` takes keys and values; what it holds of earlier tokens, before those of the stream, is attended
        to.
        """
        queries, keys, values = self._project(self._normed(stream), row, turns, read)
        seen = sight.attend(queries, keys, values, self.scale, self.shape.logit_softcap)
        if read is not None:
            stream = stream[read]
        _add(stream, self.o_proj(seen), self.post_attention_norm, self.shape.norm_epsilon)
        for tile in torch.split(stream, TILE):
            gate, up = self.gate_up_proj(self._normed(tile)).chunk(2, dim=1)
            hidden = self.shape.activation(gate).mul_(up)
            _add(tile, self.down_proj(hidden), self.post_mlp_norm, self.shape.norm_epsilon)
        return stream

    def _project(
        self, normed: Tensor, row: Tensor, turns: Tensor, read: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (Q, H, d), keys and values (T, G, d), turned to where they stand."""
        heads, groups, size = self.shape.num_heads, self.shape.num_kv_heads, self.shape.head_dim
        new = row[len(row) - len(normed) :]
        new.copy_(self.kv_proj(normed))
        self._turn(new[:, : groups * size], turns, slice(heads, None))
        queries = self.q_proj(normed if read is None else normed[read])
        self._turn(queries, turns if read is None else turns[read], slice(heads))
        keys, values = row.view(len(row), 2, groups, size).unbind(1)
        return queries.view(-1, heads, size), keys, values

    def _turn(self, flat: Tensor, turns: Tensor, which: slice) -> None:
        """Normalise heads where the backbone does, and rotate them, in place."""
        heads = flat.view(len(flat), -1, self.shape.head_dim)
        if self.qk_norm is not None:
            heads.mul_(_factor(heads, self.shape.norm_epsilon)).mul_(self.qk_norm[which])
        pairs = heads.float().view(*heads.shape[:2], -1, 2)
        torch.view_as_complex(pairs).mul_(turns)
        if heads.dtype != torch.float32:
            heads.copy_(pairs.flatten(-2))

    def _normed(self, rows: Tensor) -> Tensor:
        return (rows * _factor(rows, self.shape.norm_epsilon)).to(self.q_proj.dtype)

    @property
    def tensors(self) -> list[Tensor]:
        """Every weight of the layer."""
        found = [getattr(self, name) for name in self.__slots__]
        plain = [value for value in found if isinstance(value, Tensor)]
        return plain + [one for value in found if isinstance(value, PackedLinear) for one in value.tensors]


def fold_layer(layer: Any, number: int, config: PreTrainedConfig) -> DecoderLayer:
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
    pairs = torch.arange(shape.head_dim).reshape(2, -1).T.flatten()
    look = resolve_layer_type(config, number)
    return DecoderLayer(
        shape=shape,
        layer_type=look,
        window=int(config.sliding_window) if look == SLIDING_ATTENTION else None,
        scale=float(attention.scaling),
        q_proj=_projection(attention, ("q_proj",), pairs, norms["input_layernorm"]),
        kv_proj=_projection(attention, ("k_proj", "v_proj"), pairs, norms["input_layernorm"]),
        qk_norm=_head_gains(norms, pairs, shape, attention.q_proj.weight),
        o_proj=PackedLinear(attention.o_proj.weight, attention.o_proj.bias),
        post_attention_norm=norms["post_attention_layernorm"] if sandwiched else None,
        gate_up_proj=PackedLinear(_folded(torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]), before_mlp)),
        down_proj=PackedLinear(mlp.down_proj.weight),
        post_mlp_norm=norms["post_feedforward_layernorm"] if sandwiched else None,
    )


def resolve_layer_type(config: PreTrainedConfig, number: int) -> str:
    """How far back a layer looks, in transformers' words."""
    told = config.to_dict()
    if told.get("layer_types"):
        look = str(told["layer_types"][number])
    else:
        look = SLIDING_ATTENTION if told.get("sliding_window") else FULL_ATTENTION
    if look not in (FULL_ATTENTION, SLIDING_ATTENTION):
        raise SourceError(f"layer {number} of this backbone does {look}, which is not supported")
    return look


def check_supported(config: PreTrainedConfig) -> None:
    """Only architectures whose every part is known are computed."""
    told = config.to_dict()
    if config.model_type not in SUPPORTED_MODEL_TYPES:
        known = ", ".join(SUPPORTED_MODEL_TYPES)
        raise SourceError(f"a backbone of type {config.model_type!r} is not supported; there are: {known}")
    if told.get("mlp_bias"):
        raise SourceError("this backbone's MLP has biases, which is not supported")
    if told.get("use_bidirectional_attention"):
        raise SourceError("this backbone looks ahead, so its tokens cannot share prefixes")
    if (activation := _activation(told)) not in SUPPORTED_ACTIVATIONS:
        raise SourceError(
            f"activation {activation!r} is not supported; there are: {', '.join(SUPPORTED_ACTIVATIONS)}"
        )
    for rotation in _rotations(told):
        kind, share = rotation.get("rope_type", "default"), rotation.get("partial_rotary_factor", 1.0)
        if kind not in SUPPORTED_ROPE_TYPES or share != 1.0:
            raise SourceError(
                f"positions of type {kind!r} over {share:.0%} of a head are not supported; "
                f"there are, over all of it: {', '.join(SUPPORTED_ROPE_TYPES)}"
            )


def _shape(attention: Any, config: PreTrainedConfig) -> LayerConfig:
    told = config.to_dict()
    size = int(attention.head_dim)
    return LayerConfig(
        num_heads=attention.q_proj.out_features // size,
        num_kv_heads=attention.k_proj.out_features // size,
        head_dim=size,
        norm_epsilon=float(config.rms_norm_eps),
        logit_softcap=told.get("attn_logit_softcapping"),
        activation=ACT2FN[_activation(told)],
    )


def _activation(told: Mapping[str, Any]) -> str:
    return str(told.get("hidden_activation") or told["hidden_act"])


def _rotations(told: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """How positions are turned in: one way, or one for each way of looking."""
    rotation = told.get("rope_parameters") or {}
    apart = [rotation[look] for look in (FULL_ATTENTION, SLIDING_ATTENTION) if look in rotation]
    return apart or [rotation]


def _projection(attention: Any, names: tuple[str, ...], pairs: Tensor, gain: Tensor) -> PackedLinear:
    """Rows of Q, or of K and V in one; those of Q and K with the halves of each head interleaved."""

    def rows(name: str, part: str) -> Tensor:
        found: Tensor = getattr(getattr(attention, name), part)
        heads = found.view(-1, len(pairs), *found.shape[1:])
        return found if name == "v_proj" else heads[:, pairs].flatten(0, 1)

    weight = _folded(torch.cat([rows(name, "weight") for name in names]), gain)
    biased = attention.q_proj.bias is not None
    return PackedLinear(weight, torch.cat([rows(name, "bias") for name in names]) if biased else None)


def _head_gains(norms: dict[str, Tensor], pairs: Tensor, shape: LayerConfig, like: Tensor) -> Tensor | None:
    if "q_norm" not in norms:
        return None
    gains = [
        norms["q_norm"][pairs].expand(shape.num_heads, -1),
        norms["k_norm"][pairs].expand(shape.num_kv_heads, -1),
    ]
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
