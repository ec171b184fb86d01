"""The policy: the initial language model, the adapter that rounds have trained, and sampling from it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel

from app.align.policy import trl_trainers
from app.backbone.runtime import autotune
from app.backbone.tokenization import ChatTokenizer
from app.reward import loading
from app.settings import Settings
from app.types import Item, Message, Progress

Conversation = tuple[Message, ...]
MAX_BATCH_SAMPLES = 64


@dataclass(frozen=True, slots=True)
class Policy:
    """The folder of the initial language model, and the adapter of the last round, or None before round 1.

    Sampling and training use `dtype`; log-probabilities are computed in float32.
    """

    folder: Path
    text: ChatTokenizer
    device: torch.device
    dtype: torch.dtype = torch.float32
    adapter: Path | None = None

    @trl_trainers.ignore_peft_warning()
    def load_model(self) -> PreTrainedModel:
        """Load the language model in float32, with the adapter merged into its weights."""
        llm = AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32, use_safetensors=True)
        if self.adapter:
            llm = import_peft().PeftModel.from_pretrained(llm, self.adapter).merge_and_unload()
        return llm.to(self.device).eval()


@dataclass(frozen=True, slots=True)
class SamplingConfig:
    """How responses are sampled: how many per prompt, their maximum length, temperature and seed."""

    count: int
    new_tokens: int
    temperature: float
    seed: int


@dataclass(frozen=True, slots=True)
class Completion:
    """A response, and whether the policy finished it before the token limit."""

    response: str
    finished: bool


def load_policy(name: str, settings: Settings, max_tokens: int, progress: Progress) -> Policy:
    """Return the initial policy, after downloading the language model if necessary."""
    folder = loading.fetch_full_backbone(name, settings, progress)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    text = ChatTokenizer(AutoTokenizer.from_pretrained(folder), max_tokens=max_tokens)
    device = loading.resolve_device(settings)
    return Policy(folder, text, device, autotune.resolve_dtype(settings, device))


def import_peft() -> Any:
    """Import peft, which belongs to the optional extra `align`."""
    import peft

    return peft


@torch.inference_mode()
def sample_completions(
    policy: Policy,
    prompts: Sequence[Conversation],
    sampling: SamplingConfig,
    progress: Callable[[float], None],
) -> list[list[Completion]]:
    """Return `sampling.count` responses to each prompt.

    Prompts are sorted by length, and each batch has a seed of its own.
    """
    llm, text = policy.load_model().to(policy.dtype), policy.text
    prompt_ids = [_encode_prompt(text, prompt) for prompt in prompts]
    order = sorted(range(len(prompt_ids)), key=lambda i: (len(prompt_ids[i]), i))
    batch_size = max(MAX_BATCH_SAMPLES // sampling.count, 1)
    completions: list[list[Completion]] = [[] for _ in prompts]
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        torch.manual_seed(sampling.seed * 1_000_003 + start)
        sampled = _sample_batch(llm, text, [prompt_ids[i] for i in batch], sampling)
        for i, group in zip(batch, sampled, strict=True):
            completions[i] = group
        progress((start + len(batch)) / len(order))
    return completions


def _encode_prompt(text: ChatTokenizer, prompt: Conversation) -> list[int]:
    (encoded,) = text.encode([Item(prompt, ".")])
    return list(encoded.prompt_ids)


def _sample_batch(
    llm: PreTrainedModel, text: ChatTokenizer, prompts: list[list[int]], sampling: SamplingConfig
) -> list[list[Completion]]:
    """Generate responses to a batch of encoded prompts; shorter ones are padded on the left."""
    width = max(map(len, prompts))
    ids = torch.tensor([[text.padding_token] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    suppressed = [int(token) for token in text.tokenizer.all_special_ids if token != text.closing_token]
    config = GenerationConfig(
        do_sample=True, temperature=sampling.temperature, top_k=0, top_p=1.0,
        min_new_tokens=1, max_new_tokens=sampling.new_tokens, num_return_sequences=sampling.count,
        eos_token_id=text.closing_token, pad_token_id=text.padding_token, suppress_tokens=suppressed,
    )  # fmt: skip
    device = llm.device
    output = llm.generate(ids.to(device), attention_mask=mask.to(device), generation_config=config)
    completions = [_decode_completion(text, row) for row in output[:, width:].tolist()]
    count = sampling.count
    return [completions[start : start + count] for start in range(0, len(completions), count)]


def _decode_completion(text: ChatTokenizer, ids: list[int]) -> Completion:
    """Decode generated tokens up to the closing token; an empty response becomes a space."""
    finished = text.closing_token in ids
    tokens = ids[: ids.index(text.closing_token)] if finished else ids
    return Completion(str(text.tokenizer.decode(tokens, skip_special_tokens=True)) or " ", finished)
