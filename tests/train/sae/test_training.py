"""From chats to an SAE on the tiny backbone: harvested, trained, resumed, measured."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from app.data.pairs import read_chats
from app.reward import loading
from app.settings import Settings
from app.train.sae import activations, jobs, training
from app.train.sae import quality as gauge
from tests.support import tiny
from tests.support.training_setup import Killed, killing, quiet


def test_the_sae_on_disk_is_what_sae_lens_saved(trained_sae: Path) -> None:
    from sae_lens import SAE

    theirs = SAE.load_from_disk(trained_sae, device="cpu")
    loaded = training.load_sae(trained_sae)
    ours, bias = loaded.independent_latents(), loaded.bias
    z = torch.randn(64, tiny.WIDTH)
    with torch.no_grad():
        latents = theirs.encode(z)
        assert torch.allclose(ours.encode(z), latents, atol=1e-5)
        assert torch.allclose(gauge.make_reconstruct(ours, bias)(z), theirs.decode(latents), atol=1e-5)
    assert theirs.cfg.architecture() == "jumprelu"


def test_an_sae_is_measured_on_what_it_never_saw(training_settings: Settings, trained_sae: Path) -> None:
    chats = [str(training_settings.models_dir.parent / "chats.jsonl")]
    facts = jobs.measure_sae(trained_sae, chats, trained_sae, training_settings, quiet)
    quality = facts["quality"]
    assert 0.3 < quality["explained_variance_response"] <= 1
    assert quality["seed_agreement"] == 1
    assert 0 <= quality["dead_share"] < 1
    assert json.loads((trained_sae / "provenance.json").read_text())["quality"] == quality


def test_a_perfect_reconstruction_recovers_the_whole_loss(training_settings: Settings) -> None:
    folder = str(training_settings.models_dir.parent / "backbone")
    _, text = loading.load_backbone(folder, 3, training_settings, quiet)
    llm = loading.load_full_llm(folder, training_settings, quiet)
    chats = text.encode(tiny.random_items(6))
    assert gauge.measure_loss_recovered(chats, llm, 3, lambda rows: rows) == pytest.approx(1)
    assert gauge.measure_loss_recovered(chats, llm, 3, torch.zeros_like) == pytest.approx(0)


def test_an_interrupted_harvest_goes_on(training_settings: Settings, tmp_path: Path) -> None:
    root = training_settings.models_dir.parent
    backbone, text = loading.load_backbone(str(root / "backbone"), 3, training_settings, quiet)
    stores = [activations.ActivationStore(tmp_path / name, tiny.WIDTH) for name in ("straight", "broken")]

    def harvest(store: activations.ActivationStore, rows: int) -> None:
        chats = read_chats(root / "chats.jsonl")
        activations.harvest_activations(
            chats, backbone=backbone, text=text, layer=3, rows=rows, store=store, report=quiet
        )

    harvest(stores[0], 8000)
    harvest(stores[1], 3000)
    with (stores[1].folder / "activations.f16").open("ab") as stream:
        stream.write(b"half a row that was never noted")
    harvest(stores[1], 8000)
    assert stores[0].rows().tobytes() == stores[1].rows().tobytes()


def test_ends_of_turns_count_several_times(training_settings: Settings, tmp_path: Path) -> None:
    backbone, text = loading.load_backbone(
        str(training_settings.models_dir.parent / "backbone"), 3, training_settings, quiet
    )
    store = activations.ActivationStore(tmp_path, tiny.WIDTH)
    talk = [tiny.make_item("river?", "amber stone")]
    activations.harvest_activations(
        talk, backbone=backbone, text=text, layer=3, rows=10**6, store=store, report=quiet
    )
    (encoded,) = text.encode(talk)
    assert len(store.rows()) == len(encoded.ids) - 1 + 2 * (activations.FINAL_COPIES - 1)


def test_sources_take_turns() -> None:
    a, b = tiny.random_items(3, seed=1), tiny.random_items(1, seed=2)
    assert list(activations.interleave([a, b])) == [a[0], b[0], a[1], a[2]]


def test_sae_training_goes_on_from_its_last_checkpoint(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(5000, 32)).astype(np.float16)
    batch = training.BATCH

    def run(name: str, report: Any) -> bytes:
        training.train_sae(
            rows, tmp_path / name, width=64, k=4, samples=batch * 40, hook="model.layers.1", seed=0,
            device=torch.device("cpu"), checkpoints=tmp_path / f"{name}.checkpoints", report=report,
        )  # fmt: skip
        return (tmp_path / name / training.WEIGHTS).read_bytes()

    straight = run("straight", quiet)
    for after in (50, 10):
        with pytest.raises(Killed):
            run("broken", killing(after))
    assert list((tmp_path / "broken.checkpoints").iterdir())
    assert run("broken", quiet) == straight
    assert not (tmp_path / "broken.checkpoints").exists()
