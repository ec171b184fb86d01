"""The same checkpoint served in the simplest way: transformers, one padded batch, float32."""

from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

BATCH_SIZE = 8
MAX_WAIT_S = 0.005


class PaddedModel:
    """Scores texts or token ids, one padded batch at a time."""

    def __init__(self, folder: str) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()

    def score_texts(self, texts: list[str]) -> list[float]:
        """The scores of texts that already have the chat template."""
        return self._scores(
            self._tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt")
        )

    def score_ids(self, rows: list[list[int]]) -> list[float]:
        """The scores of token id lists."""
        return self._scores(self._tokenizer.pad({"input_ids": rows}, return_tensors="pt"))

    @torch.inference_mode()
    def _scores(self, batch: Any) -> list[float]:
        logits = self._model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        return [float(score) for score in logits[:, 0]]
