"""The reward model everybody trains: the same backbone, LoRA on every layer, a scalar head, Bradley-Terry.

It sees the same token ids as ours and the same pairs, and reads a pair's prompt once, as ours does. TRL
trains it and keeps checkpoints, so a killed run goes on, as its scoring of the test pairs does; what came out
is kept with its time, size and memory.
"""

import hashlib
import json
import resource
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from app.align.policy import trl_trainers
from app.backbone.linear import has_bfloat16_instructions
from app.backbone.tokenization import Text
from app.errors import SourceError
from app.train.feature_cache import TensorCache, write_atomically
from app.types import EncodedItem, Pair
from benchmarks.research import shared_prompt_rows

MAX_TOKENS = 1024
HALF = "bfloat16"
MARGIN = "margin"


@dataclass(frozen=True, slots=True)
class StandardPlan:
    """How it is trained: as TRL and peft have it, but for the rate: at theirs a small LoRA hardly learns."""

    epochs: int = 3
    lr: float = 1e-3
    batch: int = 16
    rank: int = 16
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Standard:
    """What came out: margins on the test pairs, and what it cost."""

    margins: list[float]
    seconds: float
    cpu_seconds: float
    trainable: int
    peak_gib: float
    precision: str


def run(
    backbone: Path,
    text: Text,
    train: list[Pair],
    test: list[Pair],
    plan: StandardPlan,
    cache: Path,
    report: Callable[[str, float], None],
) -> Standard:
    """Train on some pairs, score others; a finished run is read back, a killed one goes on."""
    parts = (str(backbone), text.digest, asdict(plan), *map(repr, train), *map(repr, test))
    home = cache / "standard" / hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
    done = home / "result.json"
    if done.exists():
        return Standard(**json.loads(done.read_text()))
    home.mkdir(parents=True, exist_ok=True)
    clock = Clock(home / "spent.json")
    taught = trained(backbone, text, train, plan, clock, report)
    seconds, cpu = clock.spent
    apart = margins(taught, text, test, TensorCache(home / "margins.sqlite"), report)
    trainable = sum(p.numel() for p in taught.parameters() if p.requires_grad)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    costs = (round(seconds, 1), round(cpu, 1), trainable, round(peak, 2))
    found = Standard(apart.tolist(), *costs, precision())
    write_atomically(done, json.dumps(asdict(found)))
    return found


class Clock:
    """Seconds of training by the wall and of all cores, with earlier, cut runs as far as they were kept."""

    def __init__(self, note: Path) -> None:
        self.note = note
        self._before = json.loads(note.read_text()) if note.exists() else [0.0, 0.0]
        self._started = clocks()

    @property
    def spent(self) -> list[float]:
        """Seconds so far, by the wall and of all cores."""
        parts = zip(self._before, clocks(), self._started, strict=True)
        return [before + now - started for before, now, started in parts]

    def keep(self) -> None:
        """Note them down, with a checkpoint."""
        write_atomically(self.note, json.dumps(self.spent))


def clocks() -> tuple[float, float]:
    """Now by the wall, and what all cores have worked for this process: the second bears company better."""
    return time.perf_counter(), time.process_time()


def precision() -> str:
    """What its products are computed in: 16 bits wherever the device has them, as its users would."""
    return HALF if torch.cuda.is_available() or has_bfloat16_instructions() else "float32"


def trained(
    backbone: Path,
    text: Text,
    pairs: list[Pair],
    plan: StandardPlan,
    clock: Clock,
    report: Callable[[str, float], None],
) -> PreTrainedModel:
    """A model taught by pairs, or the rest of it; what is done lies beside the clock's note."""
    home = clock.note.parent
    made = trainer(backbone, text, pairs, plan, home)
    trl_trainers.add_callbacks(made, lambda share: report("StandardRM", share), clock.keep)
    trl_trainers.train_or_resume(made, home)
    return made.model.get_base_model().eval()


@trl_trainers.ignore_peft_warning()
def trainer(
    backbone: Path, text: Text, pairs: list[Pair], plan: StandardPlan, home: Path, *, stock: bool = False
) -> Any:
    """TRL's trainer, ready to teach pairs: given both answers in one row, or as it ships."""
    try:
        from datasets import Dataset
        from peft import LoraConfig, TaskType
        from trl import RewardConfig, RewardTrainer
    except ImportError as error:
        message = f"a StandardRM needs the extra 'align': pip install 'sparserm[align]' ({error})"
        raise SourceError(message) from error
    half = precision() == HALF
    ids = [[one.ids for one in _encoded(text, pair)] for pair in pairs]
    rows = [{"chosen_ids": a, "rejected_ids": b, "length": len(a) + len(b)} for a, b in ids]
    config = RewardConfig(
        **trl_trainers.trainer_arguments(home, batch=plan.batch, step=1, half=half),
        num_train_epochs=plan.epochs, learning_rate=plan.lr, seed=plan.seed, warmup_steps=0.1,
        remove_unused_columns=False, train_sampling_strategy="group_by_length", length_column_name="length",
    )  # fmt: skip
    lora = LoraConfig(
        task_type=TaskType.SEQ_CLS, r=plan.rank, lora_alpha=2 * plan.rank,
        target_modules="all-linear", modules_to_save=["score"],
    )  # fmt: skip
    kind, collator = (RewardTrainer, None) if stock else (_trainer(half), _collated)
    return kind(
        model=_model(backbone, text, plan), args=config, train_dataset=Dataset.from_list(rows),
        data_collator=collator, processing_class=trl_trainers.padding_tokenizer(text), peft_config=lora,
    )  # fmt: skip


def margins(
    model: PreTrainedModel,
    text: Text,
    pairs: list[Pair],
    shelf: TensorCache,
    report: Callable[[str, float], None],
) -> Tensor:
    """Reward of chosen minus rejected; what is on this model's shelf is not computed again."""
    items = [hashlib.sha256(repr(pair.items).encode()).hexdigest() for pair in pairs]
    found = {item: row[MARGIN] for item, row in shelf.get(MARGIN, items).items()}
    for done, (item, pair) in enumerate(zip(items, pairs, strict=True), 1):
        if item not in found:
            found[item] = _margin(model, text, pair)
            shelf.put([(MARGIN, item, {MARGIN: found[item]})])
        report("scoring the test", done / len(pairs))
    return torch.stack([found[item] for item in items])


@torch.inference_mode()
def _margin(model: PreTrainedModel, text: Text, pair: Pair) -> Tensor:
    chosen, rejected = (one.ids for one in _encoded(text, pair))
    rewards = shared_prompt_rows.rewards(
        model, shared_prompt_rows.row(chosen, rejected), half=precision() == HALF
    )
    return rewards[0].double() - rewards[1].double()


def _trainer(half: bool) -> Any:  # noqa: FBT001 # one thing to say
    """TRL's trainer, given both answers of a pair in one row."""
    from trl import RewardTrainer

    class Trainer(RewardTrainer):  # type: ignore[misc] # trl is untyped
        """Bradley-Terry, as in TRL."""

        def compute_loss(self, model: Any, inputs: Any, *_: Any, **__: Any) -> Tensor:
            whole = self.accelerator.unwrap_model(model).get_base_model()
            chosen, rejected = shared_prompt_rows.rewards(whole, inputs, half=half)
            return -logsigmoid(chosen - rejected)

    return Trainer


def _collated(pairs: list[dict[str, Any]]) -> shared_prompt_rows.Row:
    (pair,) = pairs
    return shared_prompt_rows.row(tuple(pair["chosen_ids"]), tuple(pair["rejected_ids"]))


def _model(backbone: Path, text: Text, plan: StandardPlan) -> PreTrainedModel:
    torch.manual_seed(plan.seed)
    frozen = getattr(torch, precision())
    model = AutoModelForSequenceClassification.from_pretrained(backbone, num_labels=1, dtype=frozen)
    model.score.float()
    model.config.pad_token_id = text.padding
    return model


def _encoded(text: Text, pair: Pair) -> list[EncodedItem]:
    return text.encode(pair.items)
