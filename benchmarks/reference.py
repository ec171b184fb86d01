"""Reference scores: the backbone as a checkpoint that every server can load, and its scores in transformers.

The checkpoint is a sequence classifier with a random score head over the last token, with all layers or cut
where SparseRM cuts. SparseRM's rewards are checked against a bundle's head applied to transformers'
residuals.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
)
from transformers.utils import logging

from app.backbone.tokenization import ChatTokenizer
from app.errors import BundleError
from app.reward import bundle, loading
from app.reward.pooling import mean_pool, pooled_span
from app.reward.reward_model import RewardModel
from app.settings import Settings
from benchmarks.peers.peer import Depth
from benchmarks.workloads import BenchmarkItem

# Two labels: some servers treat a classifier with a single label as a reranker.
LABELS = ("score", "nought")
HEAD_SEED = 0
HEAD_STD = 0.02
TIMING_REPEATS = 9


@dataclass(frozen=True, slots=True)
class Reference:
    """The backbone that the served models read: its folder, config, tokenizer, and its layers per depth."""

    folder: Path
    config: Any
    tokenizer: ChatTokenizer
    models: Mapping[str, RewardModel]
    layers: Mapping[Depth, int]

    def checkpoint(self, depth: Depth, root: Path) -> Path:
        """The folder of the classifier; written once, and renamed into place when complete."""
        final = root / f"{self.folder.name}-classifier-{self.layers[depth]}"
        if not final.exists():
            root.mkdir(parents=True, exist_ok=True)
            scratch = Path(tempfile.mkdtemp(dir=root))
            self._classifier(depth).save_pretrained(scratch)
            tokenizer = AutoTokenizer.from_pretrained(self.folder, model_max_length=self.tokenizer.max_tokens)
            tokenizer.pad_token = tokenizer.convert_ids_to_tokens(self.tokenizer.padding_token)
            tokenizer.save_pretrained(scratch)
            _add_transformers_4_fields(scratch)
            scratch.replace(final)
        return final

    @torch.inference_mode()
    def classifier_scores(self, depth: Depth, items: Sequence[BenchmarkItem]) -> list[float]:
        """The classifier's scores in transformers, one item at a time, without padding."""
        classifier = self._classifier(depth)
        return [float(classifier(torch.tensor([item.ids])).logits[0, 0]) for item in items]

    @torch.inference_mode()
    def rewards(self, name: str, items: Sequence[BenchmarkItem]) -> list[float]:
        """A reward model's rewards computed from transformers' residuals."""
        model = self.models[name]
        decoder = self._decoder(model.card.layer)
        decoder.norm = torch.nn.Identity()
        return [_reward(model, decoder, item) for item in items]

    @torch.inference_mode()
    def time_forward(self, item: BenchmarkItem) -> float:
        """Median seconds of one forward pass of the cut classifier."""
        classifier, ids = self._classifier(Depth.CUT), torch.tensor([item.ids])
        times = []
        for _ in range(1 + TIMING_REPEATS):
            started = time.perf_counter()
            classifier(ids)
            times.append(time.perf_counter() - started)
        return statistics.median(times[1:])

    def score_head(self) -> list[float]:
        """The weights of the score head, for clients of servers that return embeddings."""
        generator = torch.Generator().manual_seed(HEAD_SEED)
        return [float(x) for x in torch.randn(self.config.hidden_size, generator=generator) * HEAD_STD]

    @property
    def matrix_shapes(self) -> list[tuple[int, int]]:
        """The shapes of a layer's matrix products, fused where servers can fuse them."""
        config = self.config
        inner = (config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_dim
        width, hidden = config.hidden_size, config.intermediate_size
        return [(width, inner), (width, 2 * hidden), (hidden, width)]

    def flops(self, depth: Depth, tokens: int) -> float:
        """The FLOPs of an item of `tokens` tokens, with causal attention."""
        config = self.config
        width, inner = config.hidden_size, config.num_attention_heads * config.head_dim
        keys = config.num_key_value_heads * config.head_dim
        linear = 2 * width * (inner + keys) + 3 * width * config.intermediate_size
        return float(tokens * self.layers[depth] * (2 * linear + 2 * inner * (tokens + 1)))

    def _classifier(self, depth: Depth) -> PreTrainedModel:
        decoder = self._decoder(self.layers[depth])
        config = decoder.config
        config.id2label = dict(enumerate(LABELS))
        config.label2id = {label: i for i, label in config.id2label.items()}
        config.pad_token_id, config.problem_type = self.tokenizer.padding_token, "regression"
        classifier = AutoModelForSequenceClassification.from_config(config).eval()
        classifier.base_model.load_state_dict(decoder.state_dict())
        with torch.no_grad():
            classifier.score.weight.zero_()
            classifier.score.weight[0] = torch.tensor(self.score_head())
        return classifier

    def _decoder(self, layers: int) -> PreTrainedModel:
        return AutoModel.from_pretrained(self.folder, num_hidden_layers=layers, dtype=torch.float32).eval()


def load_reference(settings: Settings) -> Reference:
    """The reference for the models that `sparserm serve` would serve with these settings."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    bundles = {
        name: bundle.load_bundle(settings.models_dir / name)
        for name in bundle.list_bundles(settings.models_dir)
    }
    models = {name: model for name, model in bundles.items() if name in (settings.model_names or bundles)}
    backbones = {model.card.backbone for model in models.values()}
    if len(backbones) != 1:
        raise BundleError(
            f"the models in {settings.models_dir} read {len(backbones)} backbones; "
            "choose models that share one"
        )
    folder = loading.fetch_full_backbone(backbones.pop(), settings, lambda *_: None)
    config = AutoConfig.from_pretrained(folder)
    tokenizer = ChatTokenizer(AutoTokenizer.from_pretrained(folder), max_tokens=settings.max_tokens)
    cut = max(model.card.layer for model in models.values())
    return Reference(
        folder, config, tokenizer, models, {Depth.CUT: cut, Depth.FULL: config.num_hidden_layers}
    )


def _reward(model: RewardModel, decoder: PreTrainedModel, item: BenchmarkItem) -> float:
    states = decoder(torch.tensor([item.ids]), use_cache=False).last_hidden_state[0]
    start, stop = pooled_span(model.card.readout, item.encoded.response_turn)
    pooled = mean_pool(model.dictionary.project(states[start:stop]), [stop - start])
    return float(model.head.score_members(model.head.standardise(pooled)).mean())


def _add_transformers_4_fields(folder: Path) -> None:
    """Write the config fields in the form that transformers 4 reads; later versions read both."""
    config = _read_json(folder / "config.json")
    rope = config.pop("rope_parameters")
    (folder / "config.json").write_text(json.dumps({**config, "rope_theta": rope["rope_theta"]}, indent=1))
    tokenizer = _read_json(folder / "tokenizer_config.json")
    tokenizer["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer, indent=1))


def _read_json(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text())
    return content
