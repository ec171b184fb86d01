"""What a score must be: the backbone as a checkpoint every server can load, and what transformers says of it.

The checkpoint is a sequence classifier with a random score head over the last token, cut where SparseRM cuts,
or whole. SparseRM's own rewards are checked against a bundle's head over transformers' own residuals.
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

LABELS = ("score", "nought")  # some servers take one label alone for a reranker
SEED, SPREAD = 0, 0.02
REPEATS = 9


@dataclass(frozen=True, slots=True)
class Reference:
    """The backbone that the served models read, where its files lie, and how deep it is read."""

    folder: Path
    config: Any
    text: ChatTokenizer
    models: Mapping[str, RewardModel]
    layers: Mapping[Depth, int]

    def checkpoint(self, depth: Depth, root: Path) -> Path:
        """A folder with the classifier; made once, and it appears only when it is whole."""
        final = root / f"{self.folder.name}-classifier-{self.layers[depth]}"
        if not final.exists():
            root.mkdir(parents=True, exist_ok=True)
            scratch = Path(tempfile.mkdtemp(dir=root))
            self._classifier(depth).save_pretrained(scratch)
            tokenizer = AutoTokenizer.from_pretrained(self.folder, model_max_length=self.text.max_tokens)
            tokenizer.pad_token = tokenizer.convert_ids_to_tokens(self.text.padding_token)
            tokenizer.save_pretrained(scratch)
            _for_older_readers(scratch)
            scratch.replace(final)
        return final

    @torch.inference_mode()
    def classifier_scores(self, depth: Depth, pairs: Sequence[BenchmarkItem]) -> list[float]:
        """What transformers says, one pair at a time, without padding."""
        classifier = self._classifier(depth)
        return [float(classifier(torch.tensor([pair.ids])).logits[0, 0]) for pair in pairs]

    @torch.inference_mode()
    def rewards(self, name: str, pairs: Sequence[BenchmarkItem]) -> list[float]:
        """What a reward model's head says over transformers' residuals."""
        model = self.models[name]
        decoder = self._decoder(model.card.layer)
        decoder.norm = torch.nn.Identity()
        return [_reward(model, decoder, pair) for pair in pairs]

    @torch.inference_mode()
    def time_forward(self, pair: BenchmarkItem) -> float:
        """Seconds the cut classifier takes for one pair, nothing around it: the median of several times."""
        classifier, ids = self._classifier(Depth.CUT), torch.tensor([pair.ids])
        times = []
        for _ in range(1 + REPEATS):
            started = time.perf_counter()
            classifier(ids)
            times.append(time.perf_counter() - started)
        return statistics.median(times[1:])

    def score_head(self) -> list[float]:
        """The score head, for servers that answer with embeddings."""
        generator = torch.Generator().manual_seed(SEED)
        return [float(x) for x in torch.randn(self.config.hidden_size, generator=generator) * SPREAD]

    @property
    def matrix_shapes(self) -> list[tuple[int, int]]:
        """Rows and columns of a layer's matrices, as servers multiply them: fused where they can be."""
        config = self.config
        inner = (config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_dim
        width, hidden = config.hidden_size, config.intermediate_size
        return [(width, inner), (width, 2 * hidden), (hidden, width)]

    def flops(self, depth: Depth, tokens: int) -> float:
        """Useful operations in an item of so many tokens: multiplied and added, attention causal."""
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
        config.pad_token_id, config.problem_type = self.text.padding_token, "regression"
        made = AutoModelForSequenceClassification.from_config(config).eval()
        made.base_model.load_state_dict(decoder.state_dict())
        with torch.no_grad():
            made.score.weight.zero_()
            made.score.weight[0] = torch.tensor(self.score_head())
        return made

    def _decoder(self, layers: int) -> PreTrainedModel:
        return AutoModel.from_pretrained(self.folder, num_hidden_layers=layers, dtype=torch.float32).eval()


def load_reference(settings: Settings) -> Reference:
    """The reference for what `sparserm serve` would serve under these settings."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    found = {
        name: bundle.load_bundle(settings.models_dir / name)
        for name in bundle.list_bundles(settings.models_dir)
    }
    models = {name: model for name, model in found.items() if name in (settings.model_names or found)}
    backbones = {model.card.backbone for model in models.values()}
    if len(backbones) != 1:
        raise BundleError(f"{len(backbones)} backbones in {settings.models_dir}; one is needed")
    folder = loading.fetch_full_backbone(backbones.pop(), settings, lambda *_: None)
    config = AutoConfig.from_pretrained(folder)
    text = ChatTokenizer(AutoTokenizer.from_pretrained(folder), max_tokens=settings.max_tokens)
    cut = max(model.card.layer for model in models.values())
    return Reference(folder, config, text, models, {Depth.CUT: cut, Depth.FULL: config.num_hidden_layers})


def _reward(model: RewardModel, decoder: PreTrainedModel, pair: BenchmarkItem) -> float:
    states = decoder(torch.tensor([pair.ids]), use_cache=False).last_hidden_state[0]
    begin, end = pooled_span(model.card.readout, pair.encoded)
    pooled = mean_pool(model.dictionary.project(states[begin:end]), [end - begin])
    return float(model.head.score_members(model.head.standardise(pooled)).mean())


def _for_older_readers(folder: Path) -> None:
    """Say the same as transformers 4 said it; later ones read both."""
    config = _read(folder / "config.json")
    rope = config.pop("rope_parameters")
    (folder / "config.json").write_text(json.dumps({**config, "rope_theta": rope["rope_theta"]}, indent=1))
    tokenizer = _read(folder / "tokenizer_config.json")
    tokenizer["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer, indent=1))


def _read(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text())
    return found
