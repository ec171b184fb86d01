"""Refitting: a new head over the same directions, and a bundle that is complete at every moment."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from app.data.pairs import read_pairs
from app.errors import BundleError
from app.evaluate import report as reports
from app.reward import bundle, loading
from app.reward.reward_model import Concept, TrainingData
from app.settings import Settings
from app.train import jobs, refit
from tests.cli.test_commands import joined_output, sparserm
from tests.support.servers import run_server
from tests.support.training_setup import ignore_progress, training_config

NAME = "refitted"


@pytest.fixture
def bundle_folder(training_settings: Settings, trained_sae: Path) -> Path:
    """The folder of a trained bundle, restored before each test."""
    folder, copy = training_settings.models_dir / NAME, training_settings.models_dir.parent / NAME
    if not copy.exists():
        jobs.train_and_save(
            training_config(training_settings, trained_sae, NAME, with_test=True),
            trained_sae,
            training_settings,
            ignore_progress,
        )
        shutil.copytree(folder, copy)
    shutil.rmtree(folder)
    shutil.copytree(copy, folder)
    return folder


def run_refit(training_settings: Settings) -> None:
    root = training_settings.models_dir.parent
    known, new = (read_pairs(root / name) for name in ("pairs.jsonl", "test.jsonl"))
    data = TrainingData("test.jsonl", "0" * 64, len(new), "CC BY-NC")
    refit.refit(NAME, known, new, data, settings=training_settings, progress=ignore_progress)


@pytest.mark.heavy
def test_refit_trains_a_new_head_over_the_same_directions(
    training_settings: Settings, bundle_folder: Path
) -> None:
    before = bundle.load_bundle(bundle_folder)
    run_refit(training_settings)
    after = bundle.load_bundle(bundle_folder)
    assert (after.dictionary.directions == before.dictionary.directions).all()
    assert (after.head.w1 != before.head.w1).any()
    assert [source.pairs for source in after.card.data] == [200, 100]
    assert (after.card.use, after.card.metrics) == ("research use only", {})
    assert set(reports.read(bundle_folder)) == {"training", "selection", "names", "sae"}
    assert "Not tested yet." in (bundle_folder / "report.md").read_text()
    loading.load_engine(training_settings.model_copy(update={"models": NAME}), ignore_progress).verify()


@pytest.mark.heavy
def test_a_refit_interrupted_while_files_are_moved_is_completed_by_the_next(
    training_settings: Settings, bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(refit, "_install_staged_bundle", lambda _: None)
        run_refit(training_settings)
    (bundle_folder / "SHA256SUMS").unlink()
    (bundle_folder / ".new" / "manifest.json").replace(bundle_folder / "manifest.json")
    with pytest.raises(BundleError):
        bundle.load_bundle(bundle_folder)
    run_refit(training_settings)
    assert len(bundle.load_bundle(bundle_folder).card.data) == 2
    assert not (bundle_folder / ".new").exists()


def test_the_command_refits_and_a_server_reloads(
    training_settings: Settings, bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = training_settings.models_dir.parent
    for name in ("models_dir", "cache_dir", "device", "max_tokens"):
        monkeypatch.setenv(f"SPARSERM_{name.upper()}", str(getattr(training_settings, name)))
    served = training_settings.model_copy(
        update={"models": NAME, "api_keys": Settings(api_keys="admin=s").api_keys}
    )
    request = {"model": NAME, "inputs": [{"prompt": "river 1?", "response": "amber stone"}]}
    arguments = (
        "refit",
        NAME,
        str(root / "pairs.jsonl"),
        str(root / "test.jsonl"),
    )
    with run_server(loading.load_engine(served, ignore_progress), served) as url:
        key = {"Authorization": "Bearer s"}

        def get_reward() -> float:
            response = httpx.post(f"{url}/v1/rewards", json=request, headers=key).json()
            return float(response["data"][0]["reward"])

        before = get_reward()
        result = sparserm(*arguments, "--url", url, "--key", "s")
        assert result.exit_code == 0, result.output
        assert get_reward() != before
        refused = sparserm(*arguments, "--url", url, "--key", "t")
        assert (refused.exit_code, "401" in joined_output(refused)) == (1, True)
    card = json.loads((bundle_folder / "manifest.json").read_text())
    assert card["data"][1]["name"] == "test.jsonl"
    limitations = reports.read(bundle_folder)["limitations"]
    assert card["metrics"] == {f"limitations_{name}": row["accuracy"] for name, row in limitations.items()}


@pytest.mark.heavy
def test_refit_keeps_concepts_that_were_tested(training_settings: Settings, bundle_folder: Path) -> None:
    model = bundle.load_bundle(bundle_folder)
    latents = tuple(feature.latent for feature in model.features if feature.sign > 0)
    concepts = (Concept("says amber", latents, 1, score=0.9, items=20),)
    bundle.save_names(replace(model, concepts=concepts), bundle_folder)
    run_refit(training_settings)
    assert bundle.load_bundle(bundle_folder).concepts == concepts
