"""Tiny SAEs of every kind, made by sae_lens itself, with weights at which some latents fire."""

from pathlib import Path
from typing import Any

import torch

from tests.support import tiny

HOOK = f"blocks.{tiny.LAYERS - 2}.hook_resid_post"
LATENTS = 128
TOP_K = 9


def build_sae(kind: str, **conventions: Any) -> Any:
    """Return an SAE of a kind, by its name in sae_lens."""
    from sae_lens import SAE
    from sae_lens.saes.sae import SAEMetadata

    extra = {"k": TOP_K} if kind in ("topk", "abstopk") else {}
    hook = conventions.pop("hook", HOOK)
    config = {"d_in": tiny.WIDTH, "d_sae": LATENTS, "device": "cpu", "dtype": "float32", "architecture": kind}
    sae = SAE.from_dict({**config, **extra, **conventions})
    sae.cfg.metadata = SAEMetadata(hook_name=hook)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in sae.named_parameters():
            weight.normal_(0, 0.3 if name in ("W_enc", "W_dec") else 0.1, generator=generator)
    return sae


def write_sae(folder: Path, kind: str, **conventions: Any) -> Path:
    """Save such an SAE in a folder with sae_lens; return the folder."""
    build_sae(kind, **conventions).save_model(folder)
    return folder
