"""The same checkpoint as anybody would serve it: transformers, one padded batch, float32."""

from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

BATCH, WAIT_S = 8, 0.005


class Padded:
    """Scores of texts or of token ids, a batch at a time."""

    def __init__(self, folder: str) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()

    def texts(self, texts: list[str]) -> list[float]:
        """Scores of texts that carry their template."""
        return self._scores(
            self._tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt")
        )

    def ids(self, rows: list[list[int]]) -> list[float]:
        """Scores of token ids."""
        return self._scores(self._tokenizer.pad({"input_ids": rows}, return_tensors="pt"))

    @torch.inference_mode()
    def _scores(self, batch: Any) -> list[float]:
        logits = self._model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        return [float(score) for score in logits[:, 0]]
