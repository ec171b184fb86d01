"""TRL's trainers as they are used here: quiet, checkpointed, heard, going on where they were killed."""

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from app.backbone.tokenization import Text

CHECKPOINT_STEPS = 10
Heard = Callable[[float], None]


@contextmanager
def ignore_peft_warning() -> Iterator[None]:
    """Without what peft has to hear from transformers, of which it asks something by an old name."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield


def trainer_arguments(folder: Path, *, batch: int, step: int, half: bool) -> dict[str, Any]:
    """What every trainer of TRL's is told; it works in a folder."""
    cuda = torch.cuda.is_available()
    return {
        "output_dir": str(folder), "per_device_train_batch_size": step,
        "gradient_accumulation_steps": max(batch // step, 1),
        "save_strategy": "steps", "save_steps": CHECKPOINT_STEPS, "save_total_limit": 1,
        "logging_strategy": "no", "report_to": [], "disable_tqdm": True,
        "max_length": None, "activation_checkpointing": False,
        "bf16": half, "use_cpu": not cuda, "dataloader_pin_memory": cuda,
    }  # fmt: skip


def add_callbacks(trainer: Any, report: Heard, saved: Callable[[], None] = lambda: None) -> None:
    """Have a trainer tell its steps, and when it has kept a checkpoint, and print nothing."""
    from transformers import PrinterCallback, TrainerCallback

    class Listener(TrainerCallback):  # type: ignore[misc] # transformers is untyped
        """Passes on what the trainer tells."""

        def on_step_end(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
            report(state.global_step / max(state.max_steps, 1))

        def on_save(self, _args: Any, _state: Any, _control: Any, **_: Any) -> None:
            saved()

    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Listener())


@ignore_peft_warning()
def train_or_resume(trainer: Any, folder: Path) -> None:
    """Train, from the newest checkpoint in a folder that was written to its end if there is one."""
    whole = [state.parent for state in folder.glob("checkpoint-*/trainer_state.json")]
    last = max(whole, key=lambda found: int(found.name.partition("-")[2]), default=None)
    trainer.train(resume_from_checkpoint=str(last) if last else None)


def padding_tokenizer(text: Text) -> Any:
    """A tokenizer that pads as scoring does."""
    tokenizer = copy.deepcopy(text.tokenizer)
    tokenizer.pad_token_id = text.padding
    return tokenizer
