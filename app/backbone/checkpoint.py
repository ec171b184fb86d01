"""Loads the text decoder of a checkpoint folder as a transformers model, cut to its first layers.

transformers initialises weights that a checkpoint lacks with random numbers; here that is an error.
"""

from typing import Any, NamedTuple

import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from app.backbone.architectures import check_supported
from app.errors import SourceError

TEXT_MODEL_PREFIX = r"^(model\.)?language_model\.(model\.)?"
"""What the weight names of the text model begin with in the checkpoint of a multimodal model."""


class TruncatedDecoder(NamedTuple):
    """The first layers of a decoder, and the size of the whole model."""

    decoder: PreTrainedModel
    num_parameters: int
    total_layers: int


def load_decoder(path: str, num_layers: int | None, dtype: torch.dtype) -> TruncatedDecoder:
    """Load the first `num_layers` layers of a decoder, or all of them for None."""
    config, is_multimodal = _load_text_config(path)
    total_layers, num_parameters = int(config.num_hidden_layers), _count_parameters(config)
    config.num_hidden_layers = resolve_num_layers(num_layers, total_layers)
    renames = {TEXT_MODEL_PREFIX: ""} if is_multimodal else None
    return TruncatedDecoder(_load(AutoModel, path, config, dtype, renames), num_parameters, total_layers)


def load_causal_lm(path: str, dtype: torch.dtype) -> PreTrainedModel:
    """Load the whole language model."""
    config, is_multimodal = _load_text_config(path)
    renames = {TEXT_MODEL_PREFIX: "model."} if is_multimodal else None
    return _load(AutoModelForCausalLM, path, config, dtype, renames)


def resolve_num_layers(num_layers: int | None, total: int) -> int:
    """Return the number of layers to keep: as requested, or all of them for None."""
    if num_layers is not None and not 1 <= num_layers <= total:
        raise SourceError(f"this backbone has {total} layers; {num_layers} were requested")
    return total if num_layers is None else num_layers


def _load_text_config(path: str) -> tuple[PreTrainedConfig, bool]:
    """Return the configuration of the text model, and whether it is part of a multimodal model."""
    try:
        whole = AutoConfig.from_pretrained(path)
        config = whole.get_text_config(decoder=True)
    except (ValueError, KeyError) as error:
        raise SourceError(f"{path}/config.json: {str(error).partition(chr(10))[0]}") from error
    check_supported(config)
    return config, config is not whole


def _load(
    model_class: Any, path: str, config: PreTrainedConfig, dtype: torch.dtype, renames: dict[str, str] | None
) -> PreTrainedModel:
    model, info = model_class.from_pretrained(
        path, config=config, dtype=dtype, use_safetensors=True, key_mapping=renames, output_loading_info=True
    )
    if missing := sorted(info["missing_keys"]):
        raise SourceError(f"{path} lacks {len(missing)} weights of its model, for example {missing[0]}")
    return model


def _count_parameters(config: PreTrainedConfig) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
