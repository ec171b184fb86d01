"""A folder of weights → a model of transformers': the part that reads text, cut, with nothing made up.

transformers fills weights it does not find with random numbers; here that is an error.
"""

from typing import Any, NamedTuple

import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from app.backbone.decoder_layer import check_supported
from app.errors import SourceError

TEXT_MODEL_PREFIX = r"^(model\.)?language_model\.(model\.)?"


class TruncatedDecoder(NamedTuple):
    """The first layers of a decoder, and the size of what they were cut from."""

    decoder: PreTrainedModel
    num_parameters: int
    total_layers: int


def load_decoder(path: str, layers: int | None, dtype: torch.dtype) -> TruncatedDecoder:
    """The first `layers` layers of a decoder, all of them for None."""
    config, inside = _config(path)
    total, parameters = int(config.num_hidden_layers), _count_parameters(config)
    config.num_hidden_layers = resolve_num_layers(layers, total)
    return TruncatedDecoder(
        _load(AutoModel, path, config, dtype, {TEXT_MODEL_PREFIX: ""} if inside else None), parameters, total
    )


def load_causal_lm(path: str, dtype: torch.dtype) -> PreTrainedModel:
    """The whole language model."""
    config, inside = _config(path)
    return _load(AutoModelForCausalLM, path, config, dtype, {TEXT_MODEL_PREFIX: "model."} if inside else None)


def resolve_num_layers(layers: int | None, total: int) -> int:
    """How many layers to keep of those there are."""
    if layers is not None and not 1 <= layers <= total:
        raise SourceError(f"this backbone has {total} layers; {layers} were asked for")
    return total if layers is None else layers


def _config(path: str) -> tuple[PreTrainedConfig, bool]:
    """The configuration of the text part, and whether it stands inside that of a model that also sees."""
    try:
        whole = AutoConfig.from_pretrained(path)
        config = whole.get_text_config(decoder=True)
    except (ValueError, KeyError) as error:
        raise SourceError(f"{path}/config.json: {str(error).partition(chr(10))[0]}") from error
    check_supported(config)
    return config, config is not whole


def _load(
    kind: Any, path: str, config: PreTrainedConfig, dtype: torch.dtype, names: dict[str, str] | None
) -> PreTrainedModel:
    model, found = kind.from_pretrained(
        path, config=config, dtype=dtype, use_safetensors=True, key_mapping=names, output_loading_info=True
    )
    if missing := sorted(found["missing_keys"]):
        raise SourceError(f"{path} lacks {len(missing)} weights of its model, {missing[0]} for one")
    return model


def _count_parameters(config: PreTrainedConfig) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
