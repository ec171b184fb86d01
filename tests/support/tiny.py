"""Reward models at toy size: a 4-layer Llama or similar, byte-level tokenizer, JumpReLU SAE and heads.

Nothing is mocked: all tests run the shipped code, on small random weights.
"""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from app.backbone.backbone import Backbone
from app.backbone.packing import PackedBatch
from app.backbone.tokenization import ChatTokenizer
from app.reward import loading
from app.reward.bundle import DIGESTED_FILES, save_bundle
from app.reward.calibration import Calibration
from app.reward.directions import Dictionary
from app.reward.engine import Engine
from app.reward.head import Head
from app.reward.passages import PassageReading, PassageWeighting
from app.reward.reward_model import ModelCard, Probe, RewardModel, TrainingData
from app.scores import Score, ScoredItem
from app.settings import Settings
from app.types import Explain, Feature, Item, Message, Pooling, ScoreJob, ScoreOptions

WIDTH, LAYERS, LATENTS, K, HEADS, HIDDEN = 64, 4, 96, 16, 3, 24
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SLIDING, FULL = "sliding_attention", "full_attention"
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama3": {
        "model_type": "llama",
        "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
        },
    },
    "mistral": {"sliding_window": 12, "head_dim": 32},
    "qwen2": {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1},
    "qwen3": {"head_dim": 32},
    "gemma2": {
        "head_dim": 32, "sliding_window": 11, "query_pre_attn_scalar": 24, "attn_logit_softcapping": 0.02,
    },
    "gemma3": {
        "model_type": "gemma3_text", "head_dim": 32, "sliding_window": 10, "query_pre_attn_scalar": 24,
        "layer_types": [SLIDING, SLIDING, FULL, SLIDING],
        "rope_parameters": {
            SLIDING: {"rope_type": "default", "rope_theta": 1e4},
            FULL: {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
        },
    },
}  # fmt: skip
MODELS = {
    "alpha": (4, Pooling.MEAN),
    "beta": (3, Pooling.END),
    "gamma": (2, Pooling.LAST),
    "delta": (4, Pooling.MEAN),
}
PASSAGES = {"delta": PassageReading(PassageWeighting.WORST, sharpness=2.0, share=0.7)}
"""How models read passages; the others read the whole response only."""
COMPOSITES = """
[both]
about = "alpha, and a little beta"
weights = { alpha = 3, beta = 1 }

[worst]
mode = "worst"
weights = { alpha = 1, beta = 1, gamma = 1 }

[careful]
mode = "cautious"
penalty = 0.5
weights = { alpha = 1, gamma = 1 }
"""
COMPOSITE_NAMES = ("both", "worst", "careful")
WORDS = [
    "river",
    "stone",
    "amber",
    "quiet",
    "lantern",
    "seven",
    "maple",
    "orbit",
    "violet",
    "thunder",
    "paper",
    "glass",
]


def save_backbone(
    folder: Path, *, architecture: str = "llama", seed: int = 0, template: str = TEMPLATE
) -> Path:
    """Save a random language model and its tokenizer, in the form users have on disk."""
    torch.manual_seed(seed)
    tokenizer = _make_tokenizer(template)
    options = ARCHITECTURES.get(architecture, {})
    config = AutoConfig.for_model(
        options.get("model_type", architecture),
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=96,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=True,
        **{name: value for name, value in options.items() if name != "model_type"},
    )
    llm = AutoModelForCausalLM.from_config(config)
    for name, weight in llm.named_parameters():
        if name.endswith(("norm.weight", "bias")):
            torch.nn.init.normal_(weight.data, 1.0 if weight.data.mean() > 0.5 else 0.0, 0.2)
    llm.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_settings(folder: Path, **changes: object) -> Settings:
    """Return settings with the models and the cache in one folder."""
    defaults = {
        "models_dir": folder / "models",
        "cache_dir": folder / "cache",
        "device": "cpu",
        "dtype": "float32",
        "max_tokens": 256,
        "max_batch_tokens": 1024,
    }
    return Settings().model_copy(update={**defaults, **changes})


def build_models(folder: Path, architecture: str = "llama") -> Settings:
    """Save a tiny backbone and three bundles; return settings for `loading.load_engine`."""
    settings = make_settings(folder)
    backbone_folder = save_backbone(folder / "backbone", architecture=architecture)
    backbone, text = loading.load_backbone(str(backbone_folder), None, settings, lambda *_: None)
    for seed, (name, (layer, pooling)) in enumerate(MODELS.items()):
        model = make_reward_model(name, backbone, text, layer=layer, pooling=pooling, seed=seed)
        save_bundle(model, settings.models_dir / name)
    return settings


def build_engine(folder: Path) -> Engine:
    """Build the three tiny models and load them into an engine."""
    return loading.load_engine(build_models(folder), lambda *_: None)


def make_reward_model(
    name: str, backbone: Backbone, text: ChatTokenizer, *, layer: int, pooling: Pooling, seed: int
) -> RewardModel:
    """Make a reward model with random directions and heads for this backbone."""
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    latents = torch.randperm(LATENTS, generator=generator)[:K]
    dictionary = full_dictionary(seed).select(latents)
    head = Head(
        rand(K), rand(K).abs() + 0.5, (rand(HEADS, HIDDEN, K) / K**0.5).half(), rand(HEADS, HIDDEN),
        rand(HEADS, HIDDEN) / HIDDEN, rand(HEADS),
    ).to(torch.device("cpu"))  # fmt: skip
    ranks = torch.linspace(-3, 3, 201, dtype=torch.float64)
    calibration = Calibration(
        0.75, ranks.repeat(2, 1), torch.eye(K, dtype=torch.float64), torch.full((K,), 0.5).double(),
        ranks + 4,
        torch.tensor([[1.0, 4.0, 8.0], [-0.5, 0.2, 0.4]]).double(),
        torch.linspace(-1.3, 1.3, 9).double().repeat(K, 1),
    )  # fmt: skip

    features = tuple(Feature(int(latent), 1 if i < K // 2 else -1) for i, latent in enumerate(latents))
    model = RewardModel(
        make_card(name, backbone, text, layer, pooling, head), dictionary, head, calibration, features, ()
    )
    return replace(model, probes=make_probes(model, backbone, text))


def full_dictionary(seed: int) -> Dictionary:
    """Return a random JumpReLU SAE with all latents."""
    generator = torch.Generator().manual_seed(1000 + seed)
    decoder = torch.nn.functional.normalize(torch.randn(LATENTS, WIDTH, generator=generator), dim=1)
    return Dictionary(decoder.clone(), torch.zeros(LATENTS), torch.full((LATENTS,), 0.05), decoder)


def make_card(
    name: str, backbone: Backbone, text: ChatTokenizer, layer: int, pooling: Pooling, head: Head
) -> ModelCard:
    """Make the card of a model that was not trained."""
    return ModelCard(
        name=name, task="toy", backbone=backbone.name, backbone_digest=backbone.digest,
        template_sha256=text.template_sha256, layer=layer, readout=pooling, directions=K, heads=HEADS,
        hidden=HIDDEN, loss="none", sae="random", sae_sha256=hashlib.sha256(name.encode()).hexdigest(),
        data=(TrainingData("none", "0" * 64, 0, "CC0-1.0"),), use="tests", temperature=0.75, metrics={},
        trained_parameters=head.num_parameters, versions={}, passages=PASSAGES.get(name),
    )  # fmt: skip


def make_item(prompt: str, response: str) -> Item:
    """Make an item with a single user message."""
    return Item((Message("user", prompt),), response)


def rewrite_digests(folder: Path) -> None:
    """Rewrite SHA256SUMS to match the current files of a bundle."""
    digests = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in DIGESTED_FILES}
    (folder / "SHA256SUMS").write_text("".join(f"{digest}  {name}\n" for name, digest in digests.items()))


def random_items(count: int, seed: int = 0) -> list[Item]:
    """Return items of random words. Some share a prompt, and some also the beginning of the response."""
    rng = random.Random(seed)
    prompts = [_random_words(rng, 3, 12) for _ in range(max(count // 4, 1))]
    openings = [_random_words(rng, 1, 5) for _ in range(3)]
    return [
        make_item(rng.choice(prompts), f"{rng.choice(openings)} {_random_words(rng, 1, 20)}")
        for _ in range(count)
    ]


def compute_residuals(backbone: Backbone, packed: PackedBatch, layer: int) -> torch.Tensor:
    """Return the residuals after a layer at every row of the batch."""
    return backbone.residuals(packed, {layer: packed.computed_rows})[layer].values


def score_items(engine: Engine, items: Sequence[Item], options: ScoreOptions) -> list[tuple[Score, ...]]:
    """Score items in one batch; leave out items that fail."""
    results = engine.score([ScoreJob(encoded, options) for encoded in engine.encode(items)])
    return [result.scores for result in results if isinstance(result, ScoredItem)]


def make_probes(model: RewardModel, backbone: Backbone, text: ChatTokenizer) -> tuple[Probe, ...]:
    """Return two items with the rewards that a model gives them."""
    items = [make_item("amber river?", "quiet stone"), make_item("seven", "maple orbit violet")]
    engine = Engine(backbone, text, {model.card.name: model})
    scores = score_items(engine, items, ScoreOptions((model.card.name,), Explain.NONE))
    return tuple(Probe(item, score.reward) for item, (score,) in zip(items, scores, strict=True))


def _make_tokenizer(template: str) -> PreTrainedTokenizerFast:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*special, *alphabet])}
    merges = []
    for word in WORDS:
        prefix = "Ġ"
        for letter in word:
            merges.append((prefix, letter))
            prefix += letter
            vocabulary.setdefault(prefix, len(vocabulary))
    raw = Tokenizer(models.BPE(vocabulary, list(dict.fromkeys(merges))))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token=special[1], eos_token=special[2], pad_token=special[2]
    )
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    tokenizer.chat_template = template
    return tokenizer


def _random_words(rng: random.Random, low: int, high: int) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(low, high)))
