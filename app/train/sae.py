"""The one door to sae_lens: train an SAE on harvested activations, load one for a reward model.

Everything that leaves this room is plain tensors; a packaged bundle never comes here.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from app.errors import SourceError
from app.model.directions import Dictionary

BATCH = 2048
DEAD_AFTER_TOKENS = 300_000


def train(
    rows: NDArray[np.float16],
    out: Path,
    *,
    width: int,
    k: float,
    samples: int,
    hook: str,
    seed: int,
    report: Callable[[int], None],
) -> None:
    """Train a BatchTopK SAE and save it as a JumpReLU one, normalisation folded back."""
    from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes.sae import SAEMetadata
    from sae_lens.training.sae_trainer import SAETrainer

    torch.manual_seed(seed)
    steps = samples // BATCH
    config = BatchTopKTrainingSAEConfig(
        d_in=rows.shape[1],
        d_sae=width,
        k=k,
        normalize_activations="expected_average_only_in",
        metadata=SAEMetadata(hook_name=hook),
    )
    trainer_config = SAETrainerConfig(
        total_training_samples=steps * BATCH,
        train_batch_size_samples=BATCH,
        lr=2e-4 / (width / 16384) ** 0.5,
        lr_end=0.0,
        lr_warm_up_steps=min(200, steps // 10),
        lr_decay_steps=steps // 4,
        dead_feature_window=max(DEAD_AFTER_TOKENS // BATCH, 1),
        n_batches_for_norm_estimate=20,
    )
    sae = BatchTopKTrainingSAE(config)
    with torch.no_grad():
        sample = np.sort(np.random.default_rng(seed).choice(len(rows), min(len(rows), 50_000), replace=False))
        scale = config.d_in**0.5 / np.linalg.norm(rows[sample].astype(np.float32), axis=1).mean()
        sae.b_dec.copy_(torch.from_numpy(rows[sample].astype(np.float32).mean(0) * scale))
    trainer = SAETrainer(trainer_config, sae, _batches(rows, seed, report))
    trainer.fit().save_inference_model(str(out))
    _halve(out / "sae_weights.safetensors")


def load(folder: Path) -> Dictionary:
    """An SAE that sae_lens saved, as plain tensors; refuses kinds whose latents cannot be read one by one."""
    from sae_lens import SAE

    sae = SAE.load_from_disk(folder, device="cpu")
    kind = sae.cfg.architecture()
    if kind not in ("jumprelu", "standard"):
        raise SourceError(
            f"{folder} holds a {kind} SAE; its latents depend on each other and cannot be sliced"
        )
    if sae.cfg.normalize_activations != "none":
        raise SourceError(f"{folder}: fold {sae.cfg.normalize_activations} into the weights before use")
    weights: dict[str, Tensor] = {name: tensor.detach().float() for name, tensor in sae.state_dict().items()}
    bias = weights["b_enc"]
    if sae.cfg.apply_b_dec_to_input:
        bias = bias - weights["b_dec"] @ weights["W_enc"]
    return Dictionary(
        encoder=weights["W_enc"].T.contiguous(),
        bias=bias,
        threshold=weights.get("threshold", torch.zeros_like(bias)),
        decoder=weights["W_dec"],
    )


def quality(rows: NDArray[np.float16], folder: Path) -> dict[str, float]:
    """Explained variance, mean active latents and share of dead ones on the given rows."""
    from sae_lens import SAE

    sae = SAE.load_from_disk(folder, device="cpu")
    x = torch.from_numpy(rows.astype(np.float32))
    with torch.no_grad():
        acts = sae.encode(x)
        error = (x - sae.decode(acts)).pow(2).sum()
    fired = acts > 0
    return {
        "explained_variance": 1 - float(error / (x - x.mean(0)).pow(2).sum()),
        "l0": float(fired.sum(1).float().mean()),
        "dead_share": float((~fired.any(0)).float().mean()),
        "rows": float(len(rows)),
    }


def note(folder: Path, **facts: object) -> None:
    """Write what is known about an SAE beside it."""
    (folder / "provenance.json").write_text(json.dumps(facts, indent=2) + "\n")


def _halve(file: Path) -> None:
    """Keep the weights at half precision: half the size, and sae_lens casts them back as it loads."""
    weights = load_file(file)
    save_file({name: tensor.half() for name, tensor in weights.items()}, file)
    file.chmod(0o644)


def _batches(rows: NDArray[np.float16], seed: int, report: Callable[[int], None]) -> Iterator[Tensor]:
    """Endless shuffled batches; `report` hears how many rows were handed out."""
    generator, given = np.random.default_rng(seed), 0
    while True:
        order = generator.permutation(len(rows))
        for start in range(0, len(order) - BATCH + 1, BATCH):
            yield torch.from_numpy(rows[np.sort(order[start : start + BATCH])].astype(np.float32))
            given += BATCH
            report(given)
