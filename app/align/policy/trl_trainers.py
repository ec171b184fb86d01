"""Common setup of TRL's trainers: quiet, with checkpoints and progress, resuming interrupted training."""

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from app.backbone.tokenization import ChatTokenizer

CHECKPOINT_STEPS = 10


@contextmanager
def ignore_peft_warning() -> Iterator[None]:
    """Ignore the deprecation warning that transformers raises because peft reads an attribute's old name."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield


def trainer_arguments(folder: Path, *, batch: int, step: int, half: bool) -> dict[str, Any]:
    """Return the arguments that all TRL trainers share; they write to `folder`.

    `batch` is the number of pairs per optimizer step, `step` that per forward pass; `half` selects bfloat16.
    """
    cuda = torch.cuda.is_available()
    return {
        "output_dir": str(folder), "per_device_train_batch_size": step,
        "gradient_accumulation_steps": max(batch // step, 1),
        "save_strategy": "steps", "save_steps": CHECKPOINT_STEPS, "save_total_limit": 1,
        "logging_strategy": "no", "report_to": [], "disable_tqdm": True,
        "max_length": None, "activation_checkpointing": False,
        "bf16": half, "use_cpu": not cuda, "dataloader_pin_memory": cuda,
    }  # fmt: skip


def add_callbacks(
    trainer: Any, progress: Callable[[float], None], on_checkpoint: Callable[[], None] = lambda: None
) -> None:
    """Make a trainer report its progress and its checkpoints, and print nothing."""
    from transformers import PrinterCallback, TrainerCallback

    class ProgressCallback(TrainerCallback):  # type: ignore[misc] # transformers is untyped
        """Forwards the trainer's events."""

        def on_step_end(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
            progress(state.global_step / max(state.max_steps, 1))

        def on_save(self, _args: Any, _state: Any, _control: Any, **_: Any) -> None:
            on_checkpoint()

    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(ProgressCallback())


@ignore_peft_warning()
def train_or_resume(trainer: Any, folder: Path) -> None:
    """Train, from the newest complete checkpoint in the folder if there is one."""
    complete = [state.parent for state in folder.glob("checkpoint-*/trainer_state.json")]
    last = max(complete, key=lambda path: int(path.name.partition("-")[2]), default=None)
    trainer.train(resume_from_checkpoint=str(last) if last else None)


def padding_tokenizer(text: ChatTokenizer) -> Any:
    """Return a copy of the tokenizer that pads with the same token as scoring."""
    tokenizer = copy.deepcopy(text.tokenizer)
    tokenizer.pad_token_id = text.padding_token
    return tokenizer
