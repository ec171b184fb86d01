"""Trains a StandardRM, the usual reward model: LoRA on every layer, a scalar head, Bradley-Terry loss.

It gets the same backbone, token ids and pairs as ours, and computes the prompt of a pair once, as ours does.
TRL trains it and writes checkpoints, so a killed run resumes; so does its scoring of the test pairs. The
result is stored with its time, size and memory.
"""

import hashlib
import json
import resource
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from app.align.policy import trl_trainers
from app.backbone.linear import has_bfloat16_instructions
from app.backbone.tokenization import ChatTokenizer
from app.errors import SourceError
from app.settings import Settings
from app.train.feature_cache import TensorCache, write_atomically
from app.types import EncodedItem, Pair, Progress
from benchmarks.research import shared_prompt_rows

MAX_TOKENS = 1024
HALF = "bfloat16"
MARGIN = "margin"


@dataclass(frozen=True, slots=True)
class StandardRMConfig:
    """Hyperparameters of a StandardRM; reports store them under these names.

    All are the defaults of TRL and peft but for the learning rate: with theirs a small LoRA hardly learns.
    """

    epochs: int = 3
    lr: float = 1e-3
    batch: int = 16
    rank: int = 16
    seed: int = 0


@dataclass(frozen=True, slots=True)
class StandardRMResult:
    """Margins on the test pairs, and the cost of training; reports store the fields under these names."""

    margins: list[float]
    seconds: float
    cpu_seconds: float
    trainable: int
    peak_gib: float
    precision: str


def train_and_score(
    backbone: Path,
    tokenizer: ChatTokenizer,
    train: list[Pair],
    test: list[Pair],
    config: StandardRMConfig,
    cache: Path,
    progress: Progress,
) -> StandardRMResult:
    """Train on some pairs and score others; a finished run is read from disk, a killed one resumes."""
    parts = (str(backbone), tokenizer.template_sha256, asdict(config), *map(repr, train), *map(repr, test))
    folder = cache / "standard" / hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
    result_file = folder / "result.json"
    if result_file.exists():
        return StandardRMResult(**json.loads(result_file.read_text()))
    folder.mkdir(parents=True, exist_ok=True)
    clock = TrainingClock(folder / "spent.json")
    model = train_standard_rm(backbone, tokenizer, train, config, clock, progress)
    seconds, cpu_seconds = clock.spent
    margins = score_margins(model, tokenizer, test, TensorCache(folder / "margins.sqlite"), progress)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    costs = (round(seconds, 1), round(cpu_seconds, 1), trainable, round(peak_gib, 2))
    result = StandardRMResult(margins.tolist(), *costs, get_precision())
    write_atomically(result_file, json.dumps(asdict(result)))
    return result


class TrainingClock:
    """Measures wall-clock and CPU seconds of training, over all runs up to their last checkpoint."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._before = json.loads(file.read_text()) if file.exists() else [0.0, 0.0]
        self._started = read_clocks()

    @property
    def spent(self) -> list[float]:
        """Wall-clock and CPU seconds so far."""
        clocks = zip(self._before, read_clocks(), self._started, strict=True)
        return [before + now - started for before, now, started in clocks]

    def save(self) -> None:
        """Write the seconds to the file; called with every checkpoint."""
        write_atomically(self.file, json.dumps(self.spent))


def read_clocks() -> tuple[float, float]:
    """Return wall-clock time and CPU time of this process; other processes hardly affect the latter."""
    return time.perf_counter(), time.process_time()


def get_precision() -> str:
    """Return the type in which matrices are multiplied: bfloat16 wherever the device supports it."""
    return HALF if torch.cuda.is_available() or has_bfloat16_instructions() else "float32"


def match_settings(settings: Settings) -> Settings:
    """Return settings with which our model reads as many tokens, in the same precision, as a StandardRM."""
    return settings.model_copy(update={"max_tokens": MAX_TOKENS, "dtype": get_precision()})


def train_standard_rm(
    backbone: Path,
    tokenizer: ChatTokenizer,
    pairs: list[Pair],
    config: StandardRMConfig,
    clock: TrainingClock,
    progress: Progress,
) -> PreTrainedModel:
    """Train a model on pairs, or resume; checkpoints are in the folder of the clock's file."""
    folder = clock.file.parent
    trainer = build_trainer(backbone, tokenizer, pairs, config, folder)
    trl_trainers.add_callbacks(trainer, lambda share: progress("StandardRM", share), clock.save)
    trl_trainers.train_or_resume(trainer, folder)
    return trainer.model.get_base_model().eval()


@trl_trainers.ignore_peft_warning()
def build_trainer(
    backbone: Path,
    tokenizer: ChatTokenizer,
    pairs: list[Pair],
    config: StandardRMConfig,
    folder: Path,
    *,
    unmodified: bool = False,
) -> Any:
    """Return TRL's trainer: with both responses of a pair in one row, or `unmodified`, as TRL ships it."""
    try:
        from datasets import Dataset
        from peft import LoraConfig, TaskType
        from trl import RewardConfig, RewardTrainer
    except ImportError as error:
        message = f"a StandardRM needs the extra 'align': pip install 'sparserm[align]' ({error})"
        raise SourceError(message) from error
    half = get_precision() == HALF
    ids = [[item.ids for item in _encode(tokenizer, pair)] for pair in pairs]
    rows = [{"chosen_ids": a, "rejected_ids": b, "length": len(a) + len(b)} for a, b in ids]
    arguments = RewardConfig(
        **trl_trainers.trainer_arguments(folder, batch=config.batch, step=1, half=half),
        num_train_epochs=config.epochs, learning_rate=config.lr, seed=config.seed, warmup_steps=0.1,
        remove_unused_columns=False, train_sampling_strategy="group_by_length", length_column_name="length",
    )  # fmt: skip
    lora = LoraConfig(
        task_type=TaskType.SEQ_CLS, r=config.rank, lora_alpha=2 * config.rank,
        target_modules="all-linear", modules_to_save=["score"],
    )  # fmt: skip
    trainer, collator = (RewardTrainer, None) if unmodified else (_make_row_trainer(half), _collate)
    return trainer(
        model=_load_model(backbone, tokenizer, config), args=arguments, train_dataset=Dataset.from_list(rows),
        data_collator=collator, processing_class=trl_trainers.padding_tokenizer(tokenizer), peft_config=lora,
    )  # fmt: skip


def score_margins(
    model: PreTrainedModel,
    tokenizer: ChatTokenizer,
    pairs: list[Pair],
    cache: TensorCache,
    progress: Progress,
) -> Tensor:
    """Return the rewards of chosen minus rejected (N,); margins in the model's cache are not recomputed."""
    keys = [hashlib.sha256(repr(pair.items).encode()).hexdigest() for pair in pairs]
    margins = {key: tensors[MARGIN] for key, tensors in cache.get(MARGIN, keys).items()}
    for done, (key, pair) in enumerate(zip(keys, pairs, strict=True), 1):
        if key not in margins:
            margins[key] = _score_margin(model, tokenizer, pair)
            cache.put([(MARGIN, key, {MARGIN: margins[key]})])
        progress("scoring the test", done / len(pairs))
    return torch.stack([margins[key] for key in keys])


@torch.inference_mode()
def _score_margin(model: PreTrainedModel, tokenizer: ChatTokenizer, pair: Pair) -> Tensor:
    chosen, rejected = (item.ids for item in _encode(tokenizer, pair))
    row = shared_prompt_rows.build_row(chosen, rejected)
    rewards = shared_prompt_rows.score_row(model, row, half=get_precision() == HALF)
    return rewards[0].double() - rewards[1].double()


def _make_row_trainer(half: bool) -> Any:  # noqa: FBT001 # its only argument
    """Return a subclass of TRL's trainer that gets both responses of a pair in one row."""
    from trl import RewardTrainer

    class RowTrainer(RewardTrainer):  # type: ignore[misc] # trl is untyped
        """Computes TRL's Bradley-Terry loss from one row."""

        def compute_loss(self, model: Any, inputs: Any, *_: Any, **__: Any) -> Tensor:
            base_model = self.accelerator.unwrap_model(model).get_base_model()
            chosen, rejected = shared_prompt_rows.score_row(base_model, inputs, half=half)
            return -logsigmoid(chosen - rejected)

    return RowTrainer


def _collate(pairs: list[dict[str, Any]]) -> shared_prompt_rows.PairRow:
    (pair,) = pairs
    return shared_prompt_rows.build_row(tuple(pair["chosen_ids"]), tuple(pair["rejected_ids"]))


def _load_model(backbone: Path, tokenizer: ChatTokenizer, config: StandardRMConfig) -> PreTrainedModel:
    torch.manual_seed(config.seed)
    dtype = getattr(torch, get_precision())
    model = AutoModelForSequenceClassification.from_pretrained(backbone, num_labels=1, dtype=dtype)
    model.score.float()
    model.config.pad_token_id = tokenizer.padding_token
    return model


def _encode(tokenizer: ChatTokenizer, pair: Pair) -> list[EncodedItem]:
    return tokenizer.encode(pair.items)
