"""A real reward model at toy size: 4-layer Llama or a relative, byte-level tokenizer, JumpReLU, heads.

Fake by shrinking, never by mocking: everything here runs the shipped code on random weights.
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
from app.backbone.tokenization import Text
from app.reward import loading
from app.reward.bundle import DIGESTED_FILES, save_bundle
from app.reward.calibration import Calibration
from app.reward.directions import Dictionary
from app.reward.engine import Engine
from app.reward.head import Head
from app.reward.reward_model import ModelCard, Probe, RewardModel, TrainingData
from app.settings import Settings
from app.types import Explain, Feature, Item, Message, Pooling, Score, ScoredItem, ScoreJob, ScoreOptions

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
MODELS = {"alpha": (4, Pooling.MEAN), "beta": (3, Pooling.END), "gamma": (2, Pooling.LAST)}
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


def save_backbone(folder: Path, *, kind: str = "llama", seed: int = 0, template: str = TEMPLATE) -> Path:
    """A random language model and its tokenizer, as a user would have them on disk."""
    torch.manual_seed(seed)
    tokenizer = _tokenizer(template)
    special = ARCHITECTURES.get(kind, {})
    config = AutoConfig.for_model(
        special.get("model_type", kind),
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
        **{name: value for name, value in special.items() if name != "model_type"},
    )
    llm = AutoModelForCausalLM.from_config(config)
    for name, weight in llm.named_parameters():
        if name.endswith(("norm.weight", "bias")):
            torch.nn.init.normal_(weight.data, 1.0 if weight.data.mean() > 0.5 else 0.0, 0.2)
    llm.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_settings(root: Path, **given: object) -> Settings:
    """Settings whose models and cache lie under one folder."""
    base = {
        "models_dir": root / "models",
        "cache_dir": root / "cache",
        "device": "cpu",
        "dtype": "float32",
        "max_tokens": 256,
        "max_batch_tokens": 1024,
    }
    return Settings().model_copy(update={**base, **given})


def build_models(root: Path, kind: str = "llama") -> Settings:
    """A models folder with three bundles on one tiny backbone, ready for `home.engine`."""
    made = make_settings(root)
    folder = save_backbone(root / "backbone", kind=kind)
    backbone, text = loading.load_backbone(str(folder), None, made, lambda *_: None)
    for seed, (name, (layer, readout)) in enumerate(MODELS.items()):
        model = make_reward_model(name, backbone, text, layer=layer, readout=readout, seed=seed)
        save_bundle(model, made.models_dir / name)
    return made


def build_engine(root: Path) -> Engine:
    """A tiny engine with all three models."""
    return loading.load_engine(build_models(root), lambda *_: None)


def make_reward_model(
    name: str, backbone: Backbone, text: Text, *, layer: int, readout: Pooling, seed: int
) -> RewardModel:
    """Random directions and heads that are at home on this backbone."""
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
        make_card(name, backbone, text, layer, readout, head), dictionary, head, calibration, features, ()
    )
    return replace(model, probes=_probes(model, backbone, text))


def full_dictionary(seed: int) -> Dictionary:
    """A JumpReLU dictionary with every latent."""
    generator = torch.Generator().manual_seed(1000 + seed)
    decoder = torch.nn.functional.normalize(torch.randn(LATENTS, WIDTH, generator=generator), dim=1)
    return Dictionary(decoder.clone(), torch.zeros(LATENTS), torch.full((LATENTS,), 0.05), decoder)


def make_card(
    name: str, backbone: Backbone, text: Text, layer: int, readout: Pooling, head: Head
) -> ModelCard:
    """A manifest for a model that was never trained on anything."""
    return ModelCard(
        name=name, task="toy", backbone=backbone.name, backbone_digest=backbone.digest,
        template_sha256=text.digest, layer=layer, readout=readout, directions=K, heads=HEADS, hidden=HIDDEN,
        loss="none", sae="random", sae_sha256=hashlib.sha256(name.encode()).hexdigest(),
        data=(TrainingData("none", "0" * 64, 0, "CC0-1.0"),), use="tests", temperature=0.75, metrics={},
        trained_parameters=head.num_parameters, versions={},
    )  # fmt: skip


def make_item(prompt: str, response: str) -> Item:
    """One question and one answer."""
    return Item((Message("user", prompt),), response)


def rewrite_digests(folder: Path) -> None:
    """Make SHA256SUMS agree with whatever lies in a bundle."""
    digests = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in DIGESTED_FILES}
    (folder / "SHA256SUMS").write_text("".join(f"{found}  {name}\n" for name, found in digests.items()))


def random_items(count: int, seed: int = 0) -> list[Item]:
    """Conversations of random words that share prompts, prefixes of responses, or nothing."""
    rng = random.Random(seed)
    prompts = [_words(rng, 3, 12) for _ in range(max(count // 4, 1))]
    openings = [_words(rng, 1, 5) for _ in range(3)]
    return [
        make_item(rng.choice(prompts), f"{rng.choice(openings)} {_words(rng, 1, 20)}") for _ in range(count)
    ]


def compute_residuals(backbone: Backbone, packed: PackedBatch, layer: int) -> torch.Tensor:
    """Residuals after a layer at every row."""
    return backbone.residuals(packed, {layer: packed.computed_rows})[layer].values


def score_items(engine: Engine, exchanges: Sequence[Item], ask: ScoreOptions) -> list[tuple[Score, ...]]:
    """Scores of one batch."""
    results = engine.score([ScoreJob(one, ask) for one in engine.encode(exchanges)])
    return [result.scores for result in results if isinstance(result, ScoredItem)]


def _probes(model: RewardModel, backbone: Backbone, text: Text) -> tuple[Probe, ...]:
    asked = [make_item("amber river?", "quiet stone"), make_item("seven", "maple orbit violet")]
    alone = Engine(backbone, text, {model.card.name: model})
    found = score_items(alone, asked, ScoreOptions((model.card.name,), Explain.NONE))
    return tuple(Probe(one, score[0].reward) for one, score in zip(asked, found, strict=True))


def _tokenizer(template: str) -> PreTrainedTokenizerFast:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*special, *alphabet])}
    merges = []
    for word in WORDS:
        left = "Ġ"
        for letter in word:
            merges.append((left, letter))
            left += letter
            vocabulary.setdefault(left, len(vocabulary))
    raw = Tokenizer(models.BPE(vocabulary, list(dict.fromkeys(merges))))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token=special[1], eos_token=special[2], pad_token=special[2]
    )
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    tokenizer.chat_template = template
    return tokenizer


def _words(rng: random.Random, low: int, high: int) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(low, high)))
