"""Pretrained SAEs: every kind that sae_lens saves computes the same here as there, or is rejected by name."""

from pathlib import Path
from typing import Any

import pytest
import torch

from app.errors import SourceError
from app.train.sae import import_pretrained, quality, training
from tests.support import tiny, tiny_saes

KINDS_AND_OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("standard", {}),
    ("standard", {"normalize_activations": "constant_norm_rescale"}),
    ("jumprelu", {}),
    ("gated", {}),
    ("topk", {"rescale_acts_by_decoder_norm": False}),
    ("topk", {"rescale_acts_by_decoder_norm": True}),
]


def random_rows(count: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, tiny.WIDTH, generator=torch.Generator().manual_seed(seed))


def is_close(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    return torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("subtracted", [True, False])
@pytest.mark.parametrize(("kind", "options"), KINDS_AND_OPTIONS)
def test_every_kind_computes_the_same_as_in_sae_lens(
    kind: str, options: dict[str, Any], tmp_path: Path, *, subtracted: bool
) -> None:
    options = {**options, "apply_b_dec_to_input": subtracted}
    theirs = tiny_saes.build_sae(kind, **options)
    ours = training.load_sae(tiny_saes.write_sae(tmp_path, kind, **options))
    z = random_rows(64)
    with torch.no_grad():
        latents = theirs.encode(z)
        reconstruction = theirs.decode(latents)
    assert 0 < float((latents > 0).float().mean()) < 0.9
    assert is_close(ours.activate(z), latents)
    if ours.top_k is None:
        assert is_close(quality.make_reconstruct(ours.dictionary, ours.bias)(z), reconstruction)
    else:
        assert is_close(ours.activate(z) @ ours.dictionary.directions + ours.bias, reconstruction)
    assert (ours.kind, ours.hook, ours.top_k) == (
        kind,
        tiny_saes.HOOK,
        tiny_saes.TOP_K if kind == "topk" else None,
    )


@pytest.mark.parametrize("normalised", ["none", "constant_norm_rescale"])
@pytest.mark.parametrize("kind", ["standard", "jumprelu", "gated"])
def test_selected_latents_and_saved_copies_are_exact(kind: str, normalised: str, tmp_path: Path) -> None:
    theirs = tiny_saes.build_sae(kind, normalize_activations=normalised)
    ours = training.load_sae(tiny_saes.write_sae(tmp_path / "theirs", kind, normalize_activations=normalised))
    training.save_sae(ours, tmp_path / "ours")
    again = training.load_sae(tmp_path / "ours")
    chosen, z = torch.tensor([5, 90, 17]), random_rows(64)
    with torch.no_grad():
        expected = theirs.encode(z)[:, chosen]
    assert again.kind == "jumprelu"
    for sae in (ours, again):
        assert is_close(sae.independent_latents().select(chosen).encode(z), expected)


@pytest.mark.parametrize(
    "kind", ["batchtopk", "matryoshka_batchtopk", "topk", "gated", "jumprelu", "standard"]
)
def test_what_sae_lens_trains_reads_as_what_it_saves(kind: str, tmp_path: Path) -> None:
    from sae_lens import SAE
    from sae_lens.registry import get_sae_training_class

    built, config = get_sae_training_class(kind)
    extra: dict[str, Any] = {"k": tiny_saes.TOP_K} if "topk" in kind else {}
    extra |= {"matryoshka_widths": [32, tiny_saes.LATENTS]} if kind.startswith("matryoshka") else {}
    trained = built(config(d_in=tiny.WIDTH, d_sae=tiny_saes.LATENTS, **extra))
    if hasattr(trained, "topk_threshold"):
        trained.topk_threshold.fill_(0.7)
    trained.save_inference_model(str(tmp_path))
    theirs, ours, z = SAE.load_from_disk(tmp_path), training.load_sae(tmp_path), random_rows(64)
    with torch.no_grad():
        latents = theirs.encode(z)
        assert is_close(ours.activate(z), latents)
        assert (
            is_close(quality.make_reconstruct(ours.dictionary, ours.bias)(z), theirs.decode(latents))
            or ours.top_k
        )


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("abstopk", {}),
        ("matching_pursuit", {}),
        ("transcoder", {"apply_b_dec_to_input": False, "d_out": tiny.WIDTH}),
        ("temporal", {"n_heads": 2}),
    ],
)
def test_rejects_kinds_that_are_not_supported_by_name(
    kind: str, options: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(
        SourceError, match=f"holds a {kind} SAE; supported kinds are: standard, jumprelu, gated, topk"
    ):
        training.load_sae(tiny_saes.write_sae(tmp_path, kind, **options))


@pytest.mark.parametrize("how", ["expected_average_only_in", "layer_norm", "covariance_whitening"])
def test_rejects_normalisation_that_is_not_in_the_weights(how: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=f"normalize_activations is {how}"):
        training.load_sae(tiny_saes.write_sae(tmp_path, "jumprelu", normalize_activations=how))


def test_accepts_normalisation_that_was_folded_into_the_weights(tmp_path: Path) -> None:
    theirs = tiny_saes.build_sae("jumprelu", normalize_activations="expected_average_only_in")
    z = random_rows(64)
    with torch.no_grad():
        before = theirs.encode(z * 0.4)
    theirs.fold_activation_norm_scaling_factor(0.4)
    theirs.save_model(tmp_path)
    assert is_close(training.load_sae(tmp_path).activate(z), before)


def test_rejects_saes_of_attention_heads(tmp_path: Path) -> None:
    tiny_saes.write_sae(tmp_path, "standard", reshape_activations="hook_z", hook="blocks.1.attn.hook_z")
    with pytest.raises(SourceError, match="reshape_activations is hook_z"):
        training.load_sae(tmp_path)


def test_latents_that_compete_get_a_threshold_that_is_measured(tmp_path: Path) -> None:
    sae = training.load_sae(tiny_saes.write_sae(tmp_path, "topk"))
    with pytest.raises(SourceError, match="latents of a topk SAE compete"):
        sae.independent_latents()
    thresholded, fit = import_pretrained.fit_threshold(sae, random_rows(4000))
    test_rows = random_rows(4000)[2000:]
    theirs, ours = sae.activate(test_rows) > 0, thresholded.independent_latents().encode(test_rows) > 0
    assert fit.l0 == pytest.approx(tiny_saes.TOP_K, rel=0.05)
    assert fit.l0 == pytest.approx(float(ours.sum(1).float().mean()), abs=0.01)
    assert fit.precision == pytest.approx(float((theirs & ours).sum() / ours.sum()), abs=1e-4)
    assert fit.recall == pytest.approx(float((theirs & ours).sum() / theirs.sum()), abs=1e-4)
    assert 0.5 < fit.precision < 1
    agreed = theirs & ours
    assert is_close(
        thresholded.independent_latents().encode(test_rows)[agreed], sae.activate(test_rows)[agreed]
    )
