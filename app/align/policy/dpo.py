"""One round of DPO: LoRA on every linear layer, the start as the reference, TRL at the wheel.

The token ids are those the engine scores, and what the start thinks of them is computed beforehand with
prompts shared. TRL keeps checkpoints, so a killed round goes on.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from app.align.config import AlignmentConfig
from app.align.labelling import LabelledPair
from app.align.policy import trl_trainers
from app.align.policy.logprobs import SequenceLogprobs
from app.align.policy.model import Policy, import_peft
from app.errors import DataError

Row = dict[str, Any]


def build_rows(
    pairs: Sequence[LabelledPair], start: SequenceLogprobs, report: Callable[[float], None]
) -> list[Row]:
    """Token ids and the start's log-likelihood of both sides; pairs too long to share a prompt are left out.

    A response that was cut off teaches nothing about where to end.
    """
    sides = [one for pair in pairs for one in pair.items]
    encoded, chances = iter(start.text.encode(sides)), iter(start.compute(sides, report))
    found = []
    for pair in pairs:
        chosen, rejected = next(encoded), next(encoded)
        prompts = [list(one.ids[: one.response_start]) for one in (chosen, rejected)]
        row: Row = {"prompt_ids": prompts[0]}
        for name, one, said in (("chosen", chosen, pair.chosen), ("rejected", rejected, pair.rejected)):
            kept = len(one.ids) - one.response_start - (not said.finished)
            row[f"{name}_ids"] = list(one.ids[one.response_start :][:kept])
            row[f"ref_{name}_logps"] = float(next(chances)[:kept].sum())
        if prompts[0] == prompts[1]:
            found.append(row)
    return found


def train_adapter(
    policy: Policy,
    rows: list[Row],
    plan: AlignmentConfig,
    seed: int,
    folder: Path,
    report: Callable[[float], None],
) -> None:
    """Learn from the pairs of a round, from where the last one ended; the new adapter goes into a folder."""
    if not rows:
        raise DataError("not one pair is left to learn from")
    lora = import_peft()
    work = folder.parent / "checkpoints"
    hand = build_trainer(policy, rows, plan, seed, work)
    trl_trainers.add_callbacks(hand, report)
    if policy.adapter:
        before = lora.load_peft_weights(str(policy.adapter), device=str(policy.device))
        lora.set_peft_model_state_dict(hand.model, before)
    trl_trainers.train_or_resume(hand, work)
    hand.model.save_pretrained(folder)


@trl_trainers.ignore_peft_warning()
def build_trainer(policy: Policy, rows: list[Row], plan: AlignmentConfig, seed: int, work: Path) -> Any:
    """TRL's, with a fresh adapter on the start; it works in a folder."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from trl import DPOConfig, DPOTrainer

    class Prepared(DPOTrainer):  # type: ignore[misc] # trl is untyped
        """Takes rows as they are: encoded, and with what the start thinks of them."""

        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

        def _precompute_ref_logps(self, dataset: Any, *_: Any) -> Any:
            return dataset

    half = policy.dtype is torch.bfloat16
    config = DPOConfig(
        **trl_trainers.trainer_arguments(work, batch=plan.batch, step=plan.step, half=half), precompute_ref_log_probs=True,
        num_train_epochs=plan.epochs, learning_rate=plan.lr, beta=plan.beta, seed=seed,
    )  # fmt: skip
    lora = import_peft().LoraConfig(
        task_type="CAUSAL_LM", r=plan.rank, lora_alpha=2 * plan.rank, target_modules="all-linear"
    )
    llm = AutoModelForCausalLM.from_pretrained(policy.folder, dtype=torch.float32, use_safetensors=True)
    return Prepared(
        model=llm, args=config, train_dataset=Dataset.from_list(rows),
        processing_class=trl_trainers.padding_tokenizer(policy.text), peft_config=lora,
    )  # fmt: skip
