"""One decoder layer, folded for serving: computes what transformers computes, with fewer memory accesses.

K and V are one product, and so are gate and up. The weight of the norm before a product is folded into the
product, so the norm itself is one factor a row. The two halves of a head that rotate together are
interleaved, so applying rotary embeddings is one multiplication by a complex number of modulus one. Products
run in the dtype of the weights; the hidden states between layers are always float32.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

from app.backbone.architectures import (
    SLIDING_ATTENTION,
    norm_weight_offset,
    resolve_activation,
    resolve_layer_type,
)
from app.backbone.attention import AttentionMask
from app.backbone.linear import PackedLinear

MLP_TILE_ROWS = 1024


@dataclass(frozen=True, slots=True)
class LayerConfig:
    """What all layers of one backbone have in common."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_epsilon: float
    logit_softcap: float | None
    activation: Callable[[Tensor], Tensor]

    @property
    def kv_size(self) -> int:
        """The numbers stored for one token in one layer: its key and value in every KV head, 2·G·d."""
        return 2 * self.num_kv_heads * self.head_dim


@dataclass(frozen=True, slots=True)
class DecoderLayer:
    """The weights of one layer; the norm weights kept here cannot be folded into a product."""

    config: LayerConfig
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
        hidden_states: Tensor,
        kv: Tensor,
        rotary: Tensor,
        mask: AttentionMask,
        output_rows: Tensor | None = None,
    ) -> Tensor:
        """Return hidden states (T, D) after this layer, only at `output_rows` if given; overwrites the input.

        `kv` (cached rows + T, 2·G·d) receives the new keys and values in its last T rows. The rows before
        them hold the keys and values of earlier tokens, which are attended to as well.
        """
        queries, keys, values = self._project(self._normalise(hidden_states), kv, rotary, output_rows)
        attended = mask.attend(queries, keys, values, self.scale, self.config.logit_softcap)
        if output_rows is not None:
            hidden_states = hidden_states[output_rows]
        _add_residual(
            hidden_states, self.o_proj(attended), self.post_attention_norm, self.config.norm_epsilon
        )
        for tile in torch.split(hidden_states, MLP_TILE_ROWS):
            gate, up = self.gate_up_proj(self._normalise(tile)).chunk(2, dim=1)
            activated = self.config.activation(gate).mul_(up)
            _add_residual(tile, self.down_proj(activated), self.post_mlp_norm, self.config.norm_epsilon)
        return hidden_states

    def _project(
        self, normed: Tensor, kv: Tensor, rotary: Tensor, output_rows: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries (Q, H, d), keys and values (T, G, d), with rotary embeddings applied."""
        num_heads, num_kv_heads, head_dim = (
            self.config.num_heads, self.config.num_kv_heads, self.config.head_dim,
        )  # fmt: skip
        new_kv = kv[len(kv) - len(normed) :]
        new_kv.copy_(self.kv_proj(normed))
        self._rotate(new_kv[:, : num_kv_heads * head_dim], rotary, slice(num_heads, None))
        queries = self.q_proj(normed if output_rows is None else normed[output_rows])
        self._rotate(queries, rotary if output_rows is None else rotary[output_rows], slice(num_heads))
        keys, values = kv.view(len(kv), 2, num_kv_heads, head_dim).unbind(1)
        return queries.view(-1, num_heads, head_dim), keys, values

    def _rotate(self, flat: Tensor, rotary: Tensor, norm_heads: slice) -> None:
        """Apply the per-head norm, where the backbone has one, and the rotary embeddings, in place.

        `norm_heads` are the rows of `qk_norm` that belong to these heads.
        """
        heads = flat.view(len(flat), -1, self.config.head_dim)
        if self.qk_norm is not None:
            heads.mul_(_inverse_rms(heads, self.config.norm_epsilon)).mul_(self.qk_norm[norm_heads])
        pairs = heads.float().view(*heads.shape[:2], -1, 2)
        torch.view_as_complex(pairs).mul_(rotary)
        if heads.dtype != torch.float32:
            heads.copy_(pairs.flatten(-2))

    def _normalise(self, rows: Tensor) -> Tensor:
        return (rows * _inverse_rms(rows, self.config.norm_epsilon)).to(self.q_proj.dtype)

    @property
    def tensors(self) -> list[Tensor]:
        """All weights of the layer."""
        fields = [getattr(self, name) for name in self.__slots__]
        norms = [value for value in fields if isinstance(value, Tensor)]
        linears = [value for value in fields if isinstance(value, PackedLinear)]
        return norms + [tensor for linear in linears for tensor in linear.tensors]


def fold_layer(layer: Any, index: int, config: PreTrainedConfig) -> DecoderLayer:
    """Convert layer `index` of a transformers model to the folded form."""
    attention, mlp = layer.self_attn, layer.mlp
    layer_config, offset = _layer_config(attention, config), norm_weight_offset(config)
    norms = {
        name: (norm.weight.float() + offset)
        for name, norm in [*layer.named_children(), *attention.named_children()]
        if name.endswith("norm")
    }
    # Gemma has norms before and after each block; the others name the norm before the MLP post_attention.
    has_post_norms = "pre_feedforward_layernorm" in norms
    pre_mlp_norm = norms["pre_feedforward_layernorm" if has_post_norms else "post_attention_layernorm"]
    interleaved = torch.arange(layer_config.head_dim).reshape(2, -1).T.flatten()
    layer_type = resolve_layer_type(config, index)
    return DecoderLayer(
        config=layer_config,
        layer_type=layer_type,
        window=int(config.sliding_window) if layer_type == SLIDING_ATTENTION else None,
        scale=float(attention.scaling),
        q_proj=_fold_projections(attention, ("q_proj",), interleaved, norms["input_layernorm"]),
        kv_proj=_fold_projections(attention, ("k_proj", "v_proj"), interleaved, norms["input_layernorm"]),
        qk_norm=_qk_norm(norms, interleaved, layer_config, attention.q_proj.weight),
        o_proj=PackedLinear(attention.o_proj.weight, attention.o_proj.bias),
        post_attention_norm=norms["post_attention_layernorm"] if has_post_norms else None,
        gate_up_proj=PackedLinear(
            _fold_norm(torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]), pre_mlp_norm)
        ),
        down_proj=PackedLinear(mlp.down_proj.weight),
        post_mlp_norm=norms["post_feedforward_layernorm"] if has_post_norms else None,
    )


def _layer_config(attention: Any, config: PreTrainedConfig) -> LayerConfig:
    head_dim = int(attention.head_dim)
    return LayerConfig(
        num_heads=attention.q_proj.out_features // head_dim,
        num_kv_heads=attention.k_proj.out_features // head_dim,
        head_dim=head_dim,
        norm_epsilon=float(config.rms_norm_eps),
        logit_softcap=config.to_dict().get("attn_logit_softcapping"),
        activation=ACT2FN[resolve_activation(config)],
    )


def _fold_projections(
    attention: Any, names: tuple[str, ...], interleaved: Tensor, norm_weight: Tensor
) -> PackedLinear:
    """Concatenate projections and fold the norm before them; Q and K get interleaved head halves."""

    def rows(name: str, part: str) -> Tensor:
        tensor: Tensor = getattr(getattr(attention, name), part)
        heads = tensor.view(-1, len(interleaved), *tensor.shape[1:])
        return tensor if name == "v_proj" else heads[:, interleaved].flatten(0, 1)

    weight = _fold_norm(torch.cat([rows(name, "weight") for name in names]), norm_weight)
    has_bias = attention.q_proj.bias is not None
    return PackedLinear(weight, torch.cat([rows(name, "bias") for name in names]) if has_bias else None)


def _qk_norm(
    norms: dict[str, Tensor], interleaved: Tensor, config: LayerConfig, like: Tensor
) -> Tensor | None:
    """Return (H + G, d) weights of the norms of query and key heads; None if there are no such norms."""
    if "q_norm" not in norms:
        return None
    q_norm = norms["q_norm"][interleaved].expand(config.num_heads, -1)
    k_norm = norms["k_norm"][interleaved].expand(config.num_kv_heads, -1)
    return torch.cat([q_norm, k_norm]).to(like)


def _fold_norm(weight: Tensor, norm_weight: Tensor) -> Tensor:
    return (weight.float() * norm_weight).to(weight)


def _inverse_rms(values: Tensor, epsilon: float) -> Tensor:
    """Return the factor that scales each row to a mean square of one."""
    norm: Tensor = torch.linalg.vector_norm(values, dim=-1, keepdim=True, dtype=torch.float32)
    return norm.square_().div_(values.shape[-1]).add_(epsilon).rsqrt_()


def _add_residual(hidden_states: Tensor, update: Tensor, norm_weight: Tensor | None, epsilon: float) -> None:
    """Add an update to the hidden states in place, normalised first where the architecture does so."""
    hidden_states += update if norm_weight is None else update * _inverse_rms(update, epsilon) * norm_weight
