"""How likely a policy finds what was said, token by token.

The packed engine reads: responses to one prompt share its computation, and nothing is padded.
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
    """A policy that reads."""

    def __init__(self, policy: Policy) -> None:
        llm = policy.load_model()
        layers = int(llm.config.num_hidden_layers)
        self.text = policy.text
        self._norm, self._head = llm.get_decoder().norm, llm.get_output_embeddings()
        self._cap = llm.config.to_dict().get("final_logit_softcapping")
        self._backbone = Backbone(
            llm.get_decoder(), name="policy", digest="", num_parameters=0, total_layers=layers
        )

    def compute(
        self, exchanges: Sequence[Item], report: Callable[[float], None] = lambda _: None
    ) -> list[Tensor]:
        """Log-likelihoods of each response's tokens and of the one that closes it; float64."""
        unique = list(dict.fromkeys(exchanges))
        encoded = self.text.encode(unique)
        found: dict[Item, Tensor] = {}
        for some in split_into_batches([one.ids for one in encoded], MAX_BATCH_TOKENS):
            read = self._pass([encoded[i] for i in some])
            found.update(zip([unique[i] for i in some], read, strict=True))
            report(len(found) / len(unique))
        return [found[one] for one in exchanges]

    @torch.inference_mode()
    def _pass(self, encoded: list[EncodedItem]) -> list[Tensor]:
        packed = pack([one.ids for one in encoded])
        rows = [packed.rows(at, one.response_start - 1, one.response_end) for at, one in enumerate(encoded)]
        layer = self._backbone.num_layers
        states = self._backbone.residuals(packed, {layer: packed.computed_rows})[layer]
        return [
            self._said(states.at(read), torch.tensor(one.ids[one.response_start :]))
            for read, one in zip(rows, encoded, strict=True)
        ]

    def _said(self, states: Tensor, tokens: Tensor) -> Tensor:
        """Of each token, after the state before it."""
        parts = []
        for some, said in zip(
            torch.split(states, MAX_LOGIT_ROWS), torch.split(tokens, MAX_LOGIT_ROWS), strict=True
        ):
            logits = self._head(self._norm(some.to(self._head.weight.dtype))).float()
            if self._cap:
                logits = (logits / self._cap).tanh() * self._cap
            chances = logits.log_softmax(-1)
            parts.append(chances.gather(1, said.to(chances.device)[:, None])[:, 0])
        return torch.cat(parts).double().cpu()
