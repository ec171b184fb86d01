"""The language model that is aligned: its start, what rounds have added to it, and what it says."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel

from app.align.policy import trl_trainers
from app.backbone.model_sources import Progress
from app.backbone.runtime import precision
from app.backbone.tokenization import Text
from app.errors import SourceError
from app.reward import loading
from app.settings import Settings
from app.types import Item, Message

Conversation = tuple[Message, ...]
MAX_BATCH_SAMPLES = 64


@dataclass(frozen=True, slots=True)
class Policy:
    """Where the start lies, how it reads, and the adapter of the last round; None is the start itself.

    It speaks and learns in `dtype`; what it finds likely is read in float32.
    """

    folder: Path
    text: Text
    device: torch.device
    dtype: torch.dtype = torch.float32
    adapter: Path | None = None

    @trl_trainers.ignore_peft_warning()
    def load_model(self) -> PreTrainedModel:
        """The language model with the adapter worked in, in float32."""
        llm = AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32, use_safetensors=True)
        if self.adapter:
            llm = import_peft().PeftModel.from_pretrained(llm, self.adapter).merge_and_unload()
        return llm.to(self.device).eval()


@dataclass(frozen=True, slots=True)
class SamplingConfig:
    """How responses are drawn."""

    count: int
    new_tokens: int
    temperature: float
    seed: int


@dataclass(frozen=True, slots=True)
class Completion:
    """A response, and whether the policy ended it itself."""

    response: str
    finished: bool


def load_policy(name: str, settings: Settings, max_tokens: int, progress: Progress) -> Policy:
    """A policy before its first round."""
    folder = loading.fetch_full_backbone(name, settings, progress)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    text = Text(AutoTokenizer.from_pretrained(folder), max_tokens=max_tokens)
    device = loading.resolve_device(settings)
    return Policy(folder, text, device, precision.exact(settings, device))


def import_peft() -> Any:
    """The library of adapters, or what to install."""
    try:
        import peft
    except ImportError as error:
        raise SourceError(
            f"aligning needs the extra 'align': pip install 'sparserm[align]' ({error})"
        ) from error
    return peft


@torch.inference_mode()
def sample_completions(
    policy: Policy, prompts: Sequence[Conversation], drawing: SamplingConfig, report: Callable[[float], None]
) -> list[list[Completion]]:
    """Responses to every prompt; prompts of a length go together, each batch with a seed of its own."""
    llm, text = policy.load_model().to(policy.dtype), policy.text
    asked = [_asked(text, turns) for turns in prompts]
    order = sorted(range(len(asked)), key=lambda i: (len(asked[i]), i))
    batch = max(MAX_BATCH_SAMPLES // drawing.count, 1)
    found: list[list[Completion]] = [[] for _ in prompts]
    for at in range(0, len(order), batch):
        some = order[at : at + batch]
        torch.manual_seed(drawing.seed * 1_000_003 + at)
        for i, said in zip(some, _batch(llm, text, [asked[i] for i in some], drawing), strict=True):
            found[i] = said
        report((at + len(some)) / len(order))
    return found


def _asked(text: Text, turns: Conversation) -> list[int]:
    (encoded,) = text.encode([Item(turns, ".")])
    return list(encoded.prompt_ids)


def _batch(
    llm: PreTrainedModel, text: Text, asked: list[list[int]], drawing: SamplingConfig
) -> list[list[Completion]]:
    width = max(map(len, asked))
    ids = torch.tensor([[text.padding] * (width - len(one)) + one for one in asked])
    mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in asked])
    others = [int(one) for one in text.tokenizer.all_special_ids if one != text.closing]
    config = GenerationConfig(
        do_sample=True, temperature=drawing.temperature, top_k=0, top_p=1.0, min_new_tokens=1,
        max_new_tokens=drawing.new_tokens, num_return_sequences=drawing.count, eos_token_id=text.closing,
        pad_token_id=text.padding, suppress_tokens=others,
    )  # fmt: skip
    device = llm.device
    out = llm.generate(ids.to(device), attention_mask=mask.to(device), generation_config=config)
    said = [_said(text, row) for row in out[:, width:].tolist()]
    return [said[at : at + drawing.count] for at in range(0, len(said), drawing.count)]


def _said(text: Text, ids: list[int]) -> Completion:
    finished = text.closing in ids
    words = ids[: ids.index(text.closing)] if finished else ids
    return Completion(str(text.tokenizer.decode(words, skip_special_tokens=True)) or " ", finished)
