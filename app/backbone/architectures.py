"""Which backbone architectures are supported, and the facts that differ between them.

To add one: append its `model_type` to SUPPORTED_MODEL_TYPES, state what it does differently below, adapt
`fold_layer` in decoder_layer.py if its layers have other parts, and add a toy configuration to ARCHITECTURES
in tests/support/tiny.py; the tests then compare its layers with those of transformers. A configuration with a
part that is not listed here is refused before weights are loaded, so that no wrong reward is computed.
"""

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig

from app.errors import SourceError

SUPPORTED_MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text")
UNIT_OFFSET_NORM_MODEL_TYPES = ("gemma2", "gemma3_text")
"""Architectures whose checkpoints store the weights of their norms minus one."""
FULL_ATTENTION = "full_attention"
SLIDING_ATTENTION = "sliding_attention"
SUPPORTED_ROPE_TYPES = ("default", "linear", "llama3", "yarn")
SUPPORTED_ACTIVATIONS = ("silu", "gelu", "gelu_pytorch_tanh")


def check_supported(config: PreTrainedConfig) -> None:
    """Raise SourceError if any part of the architecture is not supported."""
    entries = config.to_dict()
    if config.model_type not in SUPPORTED_MODEL_TYPES:
        supported = ", ".join(SUPPORTED_MODEL_TYPES)
        raise SourceError(
            f"a backbone of type {config.model_type!r} is not supported; there are: {supported}"
        )
    if entries.get("mlp_bias"):
        raise SourceError("this backbone's MLP has biases, which is not supported")
    if entries.get("use_bidirectional_attention"):
        raise SourceError("this backbone uses bidirectional attention, which is not supported")
    if (activation := resolve_activation(config)) not in SUPPORTED_ACTIVATIONS:
        supported = ", ".join(SUPPORTED_ACTIVATIONS)
        raise SourceError(f"activation {activation!r} is not supported; there are: {supported}")
    for rope in _rope_parameters(entries):
        _check_rope(rope)


def resolve_layer_type(config: PreTrainedConfig, index: int) -> str:
    """Return whether layer `index` uses full or sliding-window attention, in the terms of transformers."""
    entries = config.to_dict()
    if entries.get("layer_types"):
        layer_type = str(entries["layer_types"][index])
    else:
        layer_type = SLIDING_ATTENTION if entries.get("sliding_window") else FULL_ATTENTION
    if layer_type not in (FULL_ATTENTION, SLIDING_ATTENTION):
        raise SourceError(f"layer {index} of this backbone uses {layer_type}, which is not supported")
    return layer_type


def resolve_activation(config: PreTrainedConfig) -> str:
    """Return the name of the MLP's activation; Gemma has a field of its own for it."""
    entries = config.to_dict()
    return str(entries.get("hidden_activation") or entries["hidden_act"])


def norm_weight_offset(config: PreTrainedConfig) -> float:
    """Return what has to be added to the norm weights of a checkpoint."""
    return float(config.model_type in UNIT_OFFSET_NORM_MODEL_TYPES)


def _rope_parameters(entries: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the rotary parameters: one set for all layers, or one for each layer type."""
    rope = entries.get("rope_parameters") or {}
    by_layer_type = [rope[kind] for kind in (FULL_ATTENTION, SLIDING_ATTENTION) if kind in rope]
    return by_layer_type or [rope]


def _check_rope(rope: Mapping[str, Any]) -> None:
    rope_type, share = rope.get("rope_type", "default"), rope.get("partial_rotary_factor", 1.0)
    if rope_type not in SUPPORTED_ROPE_TYPES or share != 1.0:
        raise SourceError(
            f"rotary positions of type {rope_type!r} over {share:.0%} of a head are not supported; "
            f"there are, over 100%: {', '.join(SUPPORTED_ROPE_TYPES)}"
        )
