"""Trains, loads and saves SAEs with sae_lens; no other module of the server imports it.

Other modules get plain tensors. A bundle contains the latents that it needs, so serving does not use
sae_lens.
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

BATCH_SIZE = 2048
DEAD_AFTER_TOKENS = 300_000
"""A latent that has not fired for this many tokens counts as dead in training."""
NORM_BATCHES = 20
"""Batches from which sae_lens estimates the norm of the activations before training."""
MAX_CENTER_ROWS = 50_000
"""Rows whose mean initialises the decoder bias."""
CHECKPOINT_SAMPLES = 250_000
COMPLETE_MARKER = "whole"
"""Empty file that marks a checkpoint as completely written."""
WEIGHTS_FILE = "sae_weights.safetensors"
PROVENANCE_FILE = "provenance.json"
SUPPORTED_KINDS = ("standard", "jumprelu", "gated", "topk")
RESCALED = "constant_norm_rescale"
"""sae_lens's name for inputs that are scaled to a constant norm."""


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
    progress: Callable[[int], None],
) -> None:
    """Train a BatchTopK SAE with `width` latents and save it as a JumpReLU SAE for unnormalised inputs.

    A killed run resumes from its last checkpoint in `checkpoints`, which is deleted at the end. `progress`
    receives the number of rows that were trained on.
    """
    from sae_lens.training.sae_trainer import SAETrainer

    sae = _initialise(rows, width, k, hook, seed, device)
    last = _find_last_checkpoint(checkpoints)
    done = int(last.name) if last else 0
    batches = _iter_batches(rows, seed, progress, skip=done // BATCH_SIZE + NORM_BATCHES if last else 0)
    trainer = SAETrainer(
        _configure_trainer(width, samples, device, checkpoints),
        sae,
        batches,
        save_checkpoint_fn=_delete_older_checkpoints,
    )
    if last:
        sae.load_weights_from_checkpoint(last)
        trainer.load_trainer_state(last)
        trainer.n_training_steps = done // BATCH_SIZE
        trainer.checkpoint_thresholds = [
            threshold for threshold in trainer.checkpoint_thresholds if threshold > done
        ]
    trainer.fit().save_inference_model(str(out))
    _convert_to_half(out / WEIGHTS_FILE)
    shutil.rmtree(checkpoints, ignore_errors=True)


def _initialise(
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
        sae.b_dec.copy_(_compute_center(rows, seed))
    return sae


def _configure_trainer(width: int, samples: int, device: torch.device, checkpoints: Path) -> Any:
    """Return the trainer's settings: learning rate, length, checkpoints, and when a latent counts as dead."""
    from sae_lens.config import LoggingConfig, SAETrainerConfig

    steps = samples // BATCH_SIZE
    return SAETrainerConfig(
        total_training_samples=steps * BATCH_SIZE,
        train_batch_size_samples=BATCH_SIZE,
        lr=2e-4 / (width / 16384) ** 0.5,
        lr_end=0.0,
        device=str(device),
        lr_warm_up_steps=min(200, steps // 10),
        lr_decay_steps=steps // 4,
        dead_feature_window=max(DEAD_AFTER_TOKENS // BATCH_SIZE, 1),
        n_batches_for_norm_estimate=NORM_BATCHES,
        n_checkpoints=max(samples // CHECKPOINT_SAMPLES, 1),
        checkpoint_path=str(checkpoints),
        logger=LoggingConfig(log_to_wandb=False),
    )


def _compute_center(rows: NDArray[np.float16], seed: int) -> Tensor:
    """Return the mean row at the scale of the normalised inputs, the initial value of the decoder's bias."""
    indices = np.sort(
        np.random.default_rng(seed).choice(len(rows), min(len(rows), MAX_CENTER_ROWS), replace=False)
    )
    sample = rows[indices].astype(np.float32)
    scale = rows.shape[1] ** 0.5 / np.linalg.norm(sample, axis=1).mean()
    return torch.from_numpy(sample.mean(0) * scale)


def _delete_older_checkpoints(checkpoint_path: Path | None) -> None:
    """Mark a checkpoint as complete, then delete the others."""
    if checkpoint_path is None:
        return
    (checkpoint_path / COMPLETE_MARKER).touch()
    for other in checkpoint_path.parent.iterdir():
        if other != checkpoint_path:
            shutil.rmtree(other)


def _find_last_checkpoint(folder: Path) -> Path | None:
    complete = [marker.parent for marker in folder.glob(f"*/{COMPLETE_MARKER}")]
    return max(complete, key=lambda checkpoint: int(checkpoint.name), default=None)


class LoadedSae(NamedTuple):
    """An SAE as plain tensors: its latents, the decoder bias, the kind by sae_lens's name, and the hook.

    `top_k` is the number of latents that may fire at a token, for SAEs whose latents compete; else None.
    """

    dictionary: Dictionary
    bias: Tensor
    kind: str
    hook: str
    top_k: int | None

    def independent_latents(self) -> Dictionary:
        """Return the latents; fails if a latent's activation depends on the other latents."""
        if self.top_k is not None:
            raise SourceError(
                f"latents of a {self.kind} SAE compete; use it in a recipe, which fits a threshold first"
            )
        return self.dictionary

    def activate(self, rows: Tensor) -> Tensor:
        """Return the activations of all latents, the same as sae_lens computes."""
        activations = self.dictionary.encode(rows)
        if self.top_k is None:
            return activations
        largest = activations.topk(self.top_k, dim=1)
        return torch.zeros_like(activations).scatter_(1, largest.indices, largest.values)


def load_sae(folder: Path) -> LoadedSae:
    """Load an SAE that sae_lens saved."""
    from sae_lens import SAE

    return _convert(SAE.load_from_disk(folder, device="cpu", dtype="float32"), str(folder))


def fetch_sae(release: str, name: str) -> LoadedSae:
    """Download an SAE of sae_lens's registry, or of any hub repository in its format."""
    from sae_lens import SAE

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what it warns of is rejected by _convert
            sae = SAE.from_pretrained(release, name, device="cpu", dtype="float32")
    except (ValueError, KeyError, OSError, HfHubHTTPError) as error:
        reason = str(error).partition("\n")[0]
        raise SourceError(f"cannot fetch the SAE {name!r} of {release}: {reason}") from error
    return _convert(sae, f"{release} {name}")


def save_sae(sae: LoadedSae, folder: Path) -> None:
    """Save an SAE whose latents do not compete, as a JumpReLU SAE in sae_lens's format."""
    from sae_lens import JumpReLUSAE, JumpReLUSAEConfig
    from sae_lens.saes.sae import SAEMetadata

    latents = sae.dictionary
    width, inputs = latents.encoder.shape
    config = JumpReLUSAEConfig(
        d_in=inputs,
        d_sae=width,
        apply_b_dec_to_input=False,
        normalize_activations=RESCALED if latents.input_norm else "none",
        metadata=SAEMetadata(hook_name=sae.hook),
    )
    with torch.device("meta"):
        module = JumpReLUSAE(config)
    tensors = {
        "W_enc": latents.encoder.T.contiguous(),
        "b_enc": latents.bias,
        "threshold": latents.threshold,
        "W_dec": latents.directions,
        "b_dec": sae.bias,
    }
    module.load_state_dict(tensors, assign=True)
    module.save_model(folder)


def _convert(sae: Any, source: str) -> LoadedSae:
    """Convert an SAE of any supported kind to JumpReLU latents; fails for other kinds and conventions."""
    config = sae.cfg
    kind = config.architecture()
    if kind not in SUPPORTED_KINDS:
        raise SourceError(f"{source} holds a {kind} SAE; supported kinds are: {', '.join(SUPPORTED_KINDS)}")
    for option, supported in (
        ("normalize_activations", ("none", RESCALED)),
        ("reshape_activations", ("none",)),
    ):
        if (value := getattr(config, option)) not in supported:
            raise SourceError(
                f"{source}: {option} is {value}, which is not part of its weights and so not supported"
            )
    weights: dict[str, Tensor] = {name: tensor.detach().float() for name, tensor in sae.state_dict().items()}
    if kind == "gated":
        gain = weights["r_mag"].exp()
        weights["threshold"] = weights["b_mag"] - gain * weights["b_gate"]
        weights["b_enc"], weights["W_enc"] = weights["b_mag"], weights["W_enc"] * gain
    if kind == "topk" and config.rescale_acts_by_decoder_norm:
        norm = weights["W_dec"].norm(dim=1)
        weights["W_enc"], weights["b_enc"] = weights["W_enc"] * norm, weights["b_enc"] * norm
        weights["W_dec"] = weights["W_dec"] / norm[:, None]
    bias = weights["b_enc"]
    if config.apply_b_dec_to_input:
        bias = bias - weights["b_dec"] @ weights["W_enc"]
    dictionary = Dictionary(
        encoder=weights["W_enc"].T.contiguous(),
        bias=bias,
        threshold=weights.get("threshold", torch.zeros_like(bias)),
        directions=weights["W_dec"],
        input_norm=config.d_in**0.5 if config.normalize_activations == RESCALED else 0.0,
    )
    hook = str(config.metadata.hook_name or "")
    return LoadedSae(dictionary, weights["b_dec"], kind, hook, int(config.k) if kind == "topk" else None)


def write_provenance(folder: Path, /, **facts: object) -> None:
    """Write facts about an SAE into its folder."""
    (folder / PROVENANCE_FILE).write_text(json.dumps(facts, indent=2) + "\n")


def _convert_to_half(file: Path) -> None:
    """Convert the weights in a file to half precision; sae_lens converts them back when it loads them."""
    weights = load_file(file)
    save_file({name: tensor.half() for name, tensor in weights.items()}, file)
    file.chmod(0o644)


def _iter_batches(
    rows: NDArray[np.float16], seed: int, progress: Callable[[int], None], *, skip: int
) -> Iterator[Tensor]:
    """Yield shuffled batches without end, starting at number `skip`; `progress` receives the rows yielded."""
    batches_per_epoch = len(rows) // BATCH_SIZE
    for number in count(skip):
        epoch, batch = divmod(number, batches_per_epoch)
        if batch == 0 or number == skip:
            order = np.random.default_rng((seed, epoch)).permutation(len(rows))
        indices = np.sort(order[batch * BATCH_SIZE : (batch + 1) * BATCH_SIZE])
        yield torch.from_numpy(rows[indices].astype(np.float32))
        progress((number - NORM_BATCHES) * BATCH_SIZE)
