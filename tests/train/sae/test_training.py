"""SAE training on the tiny backbone: harvesting, training, resuming and measuring."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from app.data.pairs import read_chats
from app.reward import loading
from app.settings import Settings
from app.train.sae import activations, jobs, quality, training
from tests.support import tiny
from tests.support.training_setup import Killed, ignore_progress, kill_after


def test_a_loaded_sae_computes_the_same_as_in_sae_lens(trained_sae: Path) -> None:
    from sae_lens import SAE

    theirs = SAE.load_from_disk(trained_sae, device="cpu")
    loaded = training.load_sae(trained_sae)
    ours, bias = loaded.independent_latents(), loaded.bias
    z = torch.randn(64, tiny.WIDTH)
    with torch.no_grad():
        latents = theirs.encode(z)
        assert torch.allclose(ours.encode(z), latents, atol=1e-5)
        assert torch.allclose(quality.make_reconstruct(ours, bias)(z), theirs.decode(latents), atol=1e-5)
    assert theirs.cfg.architecture() == "jumprelu"


def test_an_sae_is_measured_on_held_out_chats(training_settings: Settings, trained_sae: Path) -> None:
    chats = [str(training_settings.models_dir.parent / "chats.jsonl")]
    provenance = jobs.measure_sae(trained_sae, chats, trained_sae, training_settings, ignore_progress)
    results = provenance["quality"]
    assert 0.3 < results["explained_variance_response"] <= 1
    assert results["seed_agreement"] == 1
    assert 0 <= results["dead_share"] < 1
    assert json.loads((trained_sae / "provenance.json").read_text())["quality"] == results


def test_a_perfect_reconstruction_recovers_the_whole_loss(training_settings: Settings) -> None:
    folder = str(training_settings.models_dir.parent / "backbone")
    _, tokenizer = loading.load_backbone(folder, 3, training_settings, ignore_progress)
    llm = loading.load_full_llm(folder, training_settings, ignore_progress)
    chats = tokenizer.encode(tiny.random_items(6))
    assert quality.measure_loss_recovered(chats, llm, 3, lambda rows: rows) == pytest.approx(1)
    assert quality.measure_loss_recovered(chats, llm, 3, torch.zeros_like) == pytest.approx(0)


def test_an_interrupted_harvest_resumes(training_settings: Settings, tmp_path: Path) -> None:
    root = training_settings.models_dir.parent
    backbone, tokenizer = loading.load_backbone(str(root / "backbone"), 3, training_settings, ignore_progress)
    stores = [
        activations.ActivationStore(tmp_path / name, tiny.WIDTH) for name in ("uninterrupted", "interrupted")
    ]

    def harvest(store: activations.ActivationStore, rows: int) -> None:
        chats = read_chats(root / "chats.jsonl")
        activations.harvest_activations(
            chats,
            backbone=backbone,
            tokenizer=tokenizer,
            layer=3,
            rows=rows,
            store=store,
            progress=ignore_progress,
        )

    harvest(stores[0], 8000)
    harvest(stores[1], 3000)
    with (stores[1].folder / "activations.f16").open("ab") as stream:
        stream.write(b"half a row that progress.json does not include")
    harvest(stores[1], 8000)
    assert stores[0].rows().tobytes() == stores[1].rows().tobytes()


def test_ends_of_turns_are_stored_several_times(training_settings: Settings, tmp_path: Path) -> None:
    backbone, tokenizer = loading.load_backbone(
        str(training_settings.models_dir.parent / "backbone"), 3, training_settings, ignore_progress
    )
    store = activations.ActivationStore(tmp_path, tiny.WIDTH)
    chats = [tiny.make_item("river?", "amber stone")]
    activations.harvest_activations(
        chats,
        backbone=backbone,
        tokenizer=tokenizer,
        layer=3,
        rows=10**6,
        store=store,
        progress=ignore_progress,
    )
    (encoded,) = tokenizer.encode(chats)
    assert len(store.rows()) == len(encoded.ids) - 1 + 2 * (activations.FINAL_COPIES - 1)


def test_sources_are_interleaved() -> None:
    a, b = tiny.random_items(3, seed=1), tiny.random_items(1, seed=2)
    assert list(activations.interleave([a, b])) == [a[0], b[0], a[1], a[2]]


def test_sae_training_resumes_from_its_last_checkpoint(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(5000, 32)).astype(np.float16)
    batch_size = training.BATCH_SIZE

    def run(name: str, progress: Any) -> bytes:
        training.train_sae(
            rows, tmp_path / name, width=64, k=4, samples=batch_size * 40, hook="model.layers.1", seed=0,
            device=torch.device("cpu"), checkpoints=tmp_path / f"{name}.checkpoints", progress=progress,
        )  # fmt: skip
        return (tmp_path / name / training.WEIGHTS_FILE).read_bytes()

    expected = run("uninterrupted", ignore_progress)
    for after in (50, 10):
        with pytest.raises(Killed):
            run("interrupted", kill_after(after))
    assert list((tmp_path / "interrupted.checkpoints").iterdir())
    assert run("interrupted", ignore_progress) == expected
    assert not (tmp_path / "interrupted.checkpoints").exists()
