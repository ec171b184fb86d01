"""DPO training of one round: LoRA on every linear layer, with the initial policy as the reference.

It uses TRL's trainer on token ids as the engine encodes them. The reference log-probabilities are computed
beforehand on packed batches. TRL saves checkpoints, so an interrupted round resumes.
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
    pairs: Sequence[LabelledPair], reference: SequenceLogprobs, progress: Callable[[float], None]
) -> list[Row]:
    """Return token ids and reference log-probabilities of both responses of each pair.

    Pairs whose prompts were truncated differently are left out. The closing token of a response that was cut
    off is removed, so that the policy does not learn to stop there.
    """
    items = [item for pair in pairs for item in pair.items]
    encoded = iter(reference.text.encode(items))
    logprobs = iter(reference.compute(items, progress))
    rows = []
    for pair in pairs:
        chosen, rejected = next(encoded), next(encoded)
        row: Row = {"prompt_ids": list(chosen.prompt_ids)}
        sides = (("chosen", chosen, pair.chosen), ("rejected", rejected, pair.rejected))
        for name, item, completion in sides:
            length = len(item.ids) - item.response_start - (not completion.finished)
            row[f"{name}_ids"] = list(item.ids[item.response_start :][:length])
            row[f"ref_{name}_logps"] = float(next(logprobs)[:length].sum())
        if chosen.prompt_ids == rejected.prompt_ids:
            rows.append(row)
    return rows


def train_adapter(
    policy: Policy,
    rows: list[Row],
    config: AlignmentConfig,
    seed: int,
    folder: Path,
    progress: Callable[[float], None],
) -> None:
    """Train the policy's adapter on the rows of a round and save the new adapter in `folder`.

    Checkpoints are stored beside the folder and removed by the caller.
    """
    if not rows:
        raise DataError("no pair is left to train on; lower min_margin or increase per_round")
    peft = import_peft()
    work = folder.parent / "checkpoints"
    trainer = build_trainer(policy, rows, config, seed, work)
    trl_trainers.add_callbacks(trainer, progress)
    if policy.adapter:
        weights = peft.load_peft_weights(str(policy.adapter), device=str(policy.device))
        peft.set_peft_model_state_dict(trainer.model, weights)
    trl_trainers.train_or_resume(trainer, work)
    trainer.model.save_pretrained(folder)


@trl_trainers.ignore_peft_warning()
def build_trainer(policy: Policy, rows: list[Row], config: AlignmentConfig, seed: int, work: Path) -> Any:
    """Return TRL's DPO trainer with a new adapter on the initial policy; it writes checkpoints to `work`."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from trl import DPOConfig, DPOTrainer

    class PreparedDataDPOTrainer(DPOTrainer):  # type: ignore[misc] # trl is untyped
        """Uses the rows as they are: already encoded and with reference log-probabilities."""

        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

        def _precompute_ref_logps(self, dataset: Any, *_: Any) -> Any:
            return dataset

    half = policy.dtype is torch.bfloat16
    arguments = trl_trainers.trainer_arguments(work, batch=config.batch, step=config.step, half=half)
    trl_config = DPOConfig(
        **arguments, precompute_ref_log_probs=True,
        num_train_epochs=config.epochs, learning_rate=config.lr, beta=config.beta, seed=seed,
    )  # fmt: skip
    lora_config = import_peft().LoraConfig(
        task_type="CAUSAL_LM", r=config.rank, lora_alpha=2 * config.rank, target_modules="all-linear"
    )
    llm = AutoModelForCausalLM.from_pretrained(policy.folder, dtype=torch.float32, use_safetensors=True)
    return PreparedDataDPOTrainer(
        model=llm, args=trl_config, train_dataset=Dataset.from_list(rows),
        processing_class=trl_trainers.padding_tokenizer(policy.text), peft_config=lora_config,
    )  # fmt: skip
