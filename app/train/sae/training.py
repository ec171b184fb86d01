"""The one door to sae_lens: train an SAE on harvested activations, load one for a reward model.

Everything that leaves this room is plain tensors; a packaged bundle never comes here.
"""

import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from huggingface_hub.errors import HfHubHTTPError
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from app.errors import SourceError
from app.reward.directions import Dictionary

BATCH = 2048
DEAD_AFTER_TOKENS = 300_000
NORM_BATCHES = 20
CHECKPOINT_EVERY = 250_000
WHOLE = "whole"
WEIGHTS = "sae_weights.safetensors"
KINDS = ("standard", "jumprelu", "gated", "topk")
RESCALED = "constant_norm_rescale"


def train_sae(
    rows: NDArray[np.float16],
    out: Path,
    *,
    width: int,
    k: float,
    samples: int,
    hook: str,
    seed: int,
    device: torch.device,
    checkpoints: Path,
    report: Callable[[int], None],
) -> None:
    """Train a BatchTopK SAE and save it as a JumpReLU one, normalisation folded back.

    A run that was killed goes on from its last checkpoint; they go when the result is whole.
    """
    from sae_lens.training.sae_trainer import SAETrainer

    sae = _untrained(rows, width, k, hook, seed, device)
    last = _last_checkpoint(checkpoints)
    done = int(last.name) if last else 0
    batches = _batches(rows, seed, report, skip=done // BATCH + NORM_BATCHES if last else 0)
    trainer = SAETrainer(
        _schedule(width, samples, device, checkpoints), sae, batches, save_checkpoint_fn=_keep_only_this
    )
    if last:
        sae.load_weights_from_checkpoint(last)
        trainer.load_trainer_state(last)
        trainer.n_training_steps = done // BATCH
        trainer.checkpoint_thresholds = [at for at in trainer.checkpoint_thresholds if at > done]
    trainer.fit().save_inference_model(str(out))
    _halve(out / WEIGHTS)
    shutil.rmtree(checkpoints, ignore_errors=True)


def _untrained(
    rows: NDArray[np.float16], width: int, k: float, hook: str, seed: int, device: torch.device
) -> Any:
    from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
    from sae_lens.saes.sae import SAEMetadata

    torch.manual_seed(seed)
    config = BatchTopKTrainingSAEConfig(
        d_in=rows.shape[1],
        d_sae=width,
        k=k,
        normalize_activations="expected_average_only_in",
        device=str(device),
        metadata=SAEMetadata(hook_name=hook),
    )
    sae = BatchTopKTrainingSAE(config)
    with torch.no_grad():
        sae.b_dec.copy_(_center(rows, seed))
    return sae


def _schedule(width: int, samples: int, device: torch.device, checkpoints: Path) -> Any:
    """The trainer's settings: how fast, how long, when a latent counts as dead."""
    from sae_lens.config import LoggingConfig, SAETrainerConfig

    steps = samples // BATCH
    return SAETrainerConfig(
        total_training_samples=steps * BATCH,
        train_batch_size_samples=BATCH,
        lr=2e-4 / (width / 16384) ** 0.5,
        lr_end=0.0,
        device=str(device),
        lr_warm_up_steps=min(200, steps // 10),
        lr_decay_steps=steps // 4,
        dead_feature_window=max(DEAD_AFTER_TOKENS // BATCH, 1),
        n_batches_for_norm_estimate=NORM_BATCHES,
        n_checkpoints=max(samples // CHECKPOINT_EVERY, 1),
        checkpoint_path=str(checkpoints),
        logger=LoggingConfig(log_to_wandb=False),
    )


def _center(rows: NDArray[np.float16], seed: int) -> Tensor:
    """The mean row at the scale the trainer sees, where the decoder's bias starts."""
    sample = np.sort(np.random.default_rng(seed).choice(len(rows), min(len(rows), 50_000), replace=False))
    some = rows[sample].astype(np.float32)
    scale = rows.shape[1] ** 0.5 / np.linalg.norm(some, axis=1).mean()
    return torch.from_numpy(some.mean(0) * scale)


def _keep_only_this(checkpoint_path: Path | None) -> None:
    """Mark a checkpoint as whole, then drop the ones before it."""
    if checkpoint_path is None:
        return
    (checkpoint_path / WHOLE).touch()
    for other in checkpoint_path.parent.iterdir():
        if other != checkpoint_path:
            shutil.rmtree(other)


def _last_checkpoint(folder: Path) -> Path | None:
    whole = [marker.parent for marker in folder.glob(f"*/{WHOLE}")]
    return max(whole, key=lambda checkpoint: int(checkpoint.name), default=None)


class LoadedSae(NamedTuple):
    """An SAE as plain tensors: its latents, what its decoder adds to them, and where it reads.

    `most` is the number of latents that fire at a token at most, where they compete for that.
    """

    dictionary: Dictionary
    bias: Tensor
    kind: str
    hook: str
    top_k: int | None

    def independent_latents(self) -> Dictionary:
        """The latents, if each can be read without the others."""
        if self.top_k is not None:
            raise SourceError(f"latents of a {self.kind} SAE compete; a recipe gives them a threshold first")
        return self.dictionary

    def activate(self, rows: Tensor) -> Tensor:
        """Activations of all latents, as the SAE itself has them."""
        found = self.dictionary.encode(rows)
        if self.top_k is None:
            return found
        best = found.topk(self.top_k, dim=1)
        return torch.zeros_like(found).scatter_(1, best.indices, best.values)


def load_sae(folder: Path) -> LoadedSae:
    """An SAE that sae_lens saved."""
    from sae_lens import SAE

    return _plain(SAE.load_from_disk(folder, device="cpu", dtype="float32"), str(folder))


def fetch_sae(release: str, name: str) -> LoadedSae:
    """An SAE of sae_lens's registry, or of any repository on the hub in its format."""
    from sae_lens import SAE

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what it warns of is refused below
            sae = SAE.from_pretrained(release, name, device="cpu", dtype="float32")
    except (ValueError, KeyError, OSError, HfHubHTTPError) as error:
        reason = str(error).partition("\n")[0]
        raise SourceError(f"cannot fetch the SAE {name!r} of {release}: {reason}") from error
    return _plain(sae, f"{release} {name}")


def save_sae(found: LoadedSae, folder: Path) -> None:
    """Keep latents that do not compete as a JumpReLU SAE of sae_lens's."""
    from sae_lens import JumpReLUSAE, JumpReLUSAEConfig
    from sae_lens.saes.sae import SAEMetadata

    latents = found.dictionary
    width, inputs = latents.encoder.shape
    config = JumpReLUSAEConfig(
        d_in=inputs,
        d_sae=width,
        apply_b_dec_to_input=False,
        normalize_activations=RESCALED if latents.input_norm else "none",
        metadata=SAEMetadata(hook_name=found.hook),
    )
    with torch.device("meta"):
        sae = JumpReLUSAE(config)
    tensors = {
        "W_enc": latents.encoder.T.contiguous(),
        "b_enc": latents.bias,
        "threshold": latents.threshold,
        "W_dec": latents.directions,
        "b_dec": found.bias,
    }
    sae.load_state_dict(tensors, assign=True)
    sae.save_model(folder)


def _plain(sae: Any, place: str) -> LoadedSae:
    """Any kind as JumpReLU latents: what is not linear up to the threshold is refused by name."""
    kind, said = sae.cfg.architecture(), sae.cfg
    if kind not in KINDS:
        raise SourceError(f"{place} holds a {kind} SAE; there are: {', '.join(KINDS)}")
    for what, fine in (("normalize_activations", ("none", RESCALED)), ("reshape_activations", ("none",))):
        if (how := getattr(said, what)) not in fine:
            raise SourceError(f"{place}: {what} is {how}, which is not in its weights")
    weights: dict[str, Tensor] = {name: tensor.detach().float() for name, tensor in sae.state_dict().items()}
    if kind == "gated":
        gain = weights["r_mag"].exp()
        weights["threshold"] = weights["b_mag"] - gain * weights["b_gate"]
        weights["b_enc"], weights["W_enc"] = weights["b_mag"], weights["W_enc"] * gain
    if kind == "topk" and said.rescale_acts_by_decoder_norm:
        norm = weights["W_dec"].norm(dim=1)
        weights["W_enc"], weights["b_enc"] = weights["W_enc"] * norm, weights["b_enc"] * norm
        weights["W_dec"] = weights["W_dec"] / norm[:, None]
    bias = weights["b_enc"]
    if said.apply_b_dec_to_input:
        bias = bias - weights["b_dec"] @ weights["W_enc"]
    dictionary = Dictionary(
        encoder=weights["W_enc"].T.contiguous(),
        bias=bias,
        threshold=weights.get("threshold", torch.zeros_like(bias)),
        directions=weights["W_dec"],
        input_norm=said.d_in**0.5 if said.normalize_activations == RESCALED else 0.0,
    )
    hook = str(said.metadata.hook_name or "")
    return LoadedSae(dictionary, weights["b_dec"], kind, hook, int(said.k) if kind == "topk" else None)


def write_provenance(folder: Path, /, **facts: object) -> None:
    """Write what is known about an SAE beside it."""
    (folder / "provenance.json").write_text(json.dumps(facts, indent=2) + "\n")


def _halve(file: Path) -> None:
    """Keep the weights at half precision: half the size, and sae_lens casts them back as it loads."""
    weights = load_file(file)
    save_file({name: tensor.half() for name, tensor in weights.items()}, file)
    file.chmod(0o644)


def _batches(
    rows: NDArray[np.float16], seed: int, report: Callable[[int], None], *, skip: int
) -> Iterator[Tensor]:
    """Endless shuffled batches from the given one on; `report` hears how many rows were handed out."""
    each = len(rows) // BATCH
    for number in count(skip):
        epoch, at = divmod(number, each)
        if at == 0 or number == skip:
            order = np.random.default_rng((seed, epoch)).permutation(len(rows))
        chosen = np.sort(order[at * BATCH : (at + 1) * BATCH])
        yield torch.from_numpy(rows[chosen].astype(np.float32))
        report((number - NORM_BATCHES) * BATCH)
