"""Log-probabilities of responses under a policy, token by token.

They are computed on packed batches: responses to a prompt share its computation, and nothing is padded.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from app.align.policy.model import Policy
from app.backbone.backbone import Backbone
from app.backbone.packing import pack, split_into_batches
from app.types import EncodedItem, Item

MAX_BATCH_TOKENS = 2048
MAX_LOGIT_ROWS = 256


class SequenceLogprobs:
    """Computes the log-probabilities of responses under a policy."""

    def __init__(self, policy: Policy) -> None:
        llm = policy.load_model()
        layers = int(llm.config.num_hidden_layers)
        self.text = policy.text
        self._norm, self._lm_head = llm.get_decoder().norm, llm.get_output_embeddings()
        self._softcap = llm.config.to_dict().get("final_logit_softcapping")
        self._backbone = Backbone(
            llm.get_decoder(), name="policy", digest="", num_parameters=0, total_layers=layers
        )

    def compute(
        self, items: Sequence[Item], progress: Callable[[float], None] = lambda _: None
    ) -> list[Tensor]:
        """Return the log-probabilities of each response's tokens and its closing token, float64."""
        unique = list(dict.fromkeys(items))
        encoded = self.text.encode(unique)
        logprobs: dict[Item, Tensor] = {}
        for batch in split_into_batches([item.ids for item in encoded], MAX_BATCH_TOKENS):
            batch_logprobs = self._compute_batch([encoded[i] for i in batch])
            logprobs.update(zip([unique[i] for i in batch], batch_logprobs, strict=True))
            progress(len(logprobs) / len(unique))
        return [logprobs[item] for item in items]

    @torch.inference_mode()
    def _compute_batch(self, encoded: list[EncodedItem]) -> list[Tensor]:
        packed = pack([item.ids for item in encoded])
        rows = [
            packed.rows(index, item.response_start - 1, item.response_end)
            for index, item in enumerate(encoded)
        ]
        layer = self._backbone.num_layers
        states = self._backbone.residuals(packed, {layer: packed.computed_rows})[layer]
        return [
            self._gather_logprobs(states.at(item_rows), torch.tensor(item.ids[item.response_start :]))
            for item_rows, item in zip(rows, encoded, strict=True)
        ]

    def _gather_logprobs(self, states: Tensor, tokens: Tensor) -> Tensor:
        """Return the log-probability of each token given the state before it, (N, D) and (N,) to (N,).

        Logits are computed for at most MAX_LOGIT_ROWS rows at a time, which bounds their memory.
        """
        parts = []
        for chunk, targets in zip(
            torch.split(states, MAX_LOGIT_ROWS), torch.split(tokens, MAX_LOGIT_ROWS), strict=True
        ):
            logits = self._lm_head(self._norm(chunk.to(self._lm_head.weight.dtype))).float()
            if self._softcap:
                logits = (logits / self._softcap).tanh() * self._softcap
            logprobs = logits.log_softmax(-1)
            parts.append(logprobs.gather(1, targets.to(logprobs.device)[:, None])[:, 0])
        return torch.cat(parts).double().cpu()
