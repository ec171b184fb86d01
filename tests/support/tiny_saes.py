"""Tiny SAEs of every kind, written by sae_lens itself, with weights at which something happens."""

from pathlib import Path
from typing import Any

import torch

from tests.support import tiny

HOOK = f"blocks.{tiny.LAYERS - 2}.hook_resid_post"
LATENTS, MOST = 128, 9


def made(kind: str, **conventions: Any) -> Any:
    """An SAE of a kind by its name in sae_lens, ready to encode."""
    from sae_lens import SAE
    from sae_lens.saes.sae import SAEMetadata

    extra = {"k": MOST} if kind in ("topk", "abstopk") else {}
    hook = conventions.pop("hook", HOOK)
    said = {"d_in": tiny.WIDTH, "d_sae": LATENTS, "device": "cpu", "dtype": "float32", "architecture": kind}
    sae = SAE.from_dict({**said, **extra, **conventions})
    sae.cfg.metadata = SAEMetadata(hook_name=hook)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in sae.named_parameters():
            weight.normal_(0, 0.3 if name in ("W_enc", "W_dec") else 0.1, generator=generator)
    return sae


def on_disk(folder: Path, kind: str, **conventions: Any) -> Path:
    """The same in a folder, as sae_lens saves it."""
    made(kind, **conventions).save_model(folder)
    return folder
