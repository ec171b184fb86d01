"""A head learnt again: the same directions, another head, a bundle that is whole at every moment."""

import json
import shutil
from pathlib import Path

import httpx
import pytest

from app.data.pairs import read_pairs
from app.errors import BundleError
from app.evaluate import report as reports
from app.reward import bundle, loading
from app.reward.reward_model import TrainingData
from app.settings import Settings
from app.train import jobs, refit
from tests.cli.test_commands import joined_output, sparserm
from tests.support.servers import run_server
from tests.support.training_setup import order, quiet

NAME = "refitted"


@pytest.fixture
def made(training_settings: Settings, trained_sae: Path) -> Path:
    """A bundle of the training_settings, as new."""
    folder, kept = training_settings.models_dir / NAME, training_settings.models_dir.parent / NAME
    if not kept.exists():
        jobs.train_and_save(
            order(training_settings, trained_sae, NAME, tested=True), trained_sae, training_settings, quiet
        )
        shutil.copytree(folder, kept)
    shutil.rmtree(folder)
    shutil.copytree(kept, folder)
    return folder


def again(training_settings: Settings, sae: Path) -> None:
    root = training_settings.models_dir.parent
    known, new = (read_pairs(root / name) for name in ("pairs.jsonl", "test.jsonl"))
    data = TrainingData("test.jsonl", "0" * 64, len(new), "CC BY-NC")
    refit.refit(NAME, known, new, data, sae=sae, settings=training_settings, progress=quiet)


@pytest.mark.heavy
def test_a_head_is_learnt_again_over_the_same_directions(
    training_settings: Settings, trained_sae: Path, made: Path
) -> None:
    before = bundle.load_bundle(made)
    again(training_settings, trained_sae)
    after = bundle.load_bundle(made)
    assert (after.dictionary.directions == before.dictionary.directions).all()
    assert (after.head.w1 != before.head.w1).any()
    assert [one.pairs for one in after.card.data] == [200, 100]
    assert (after.card.use, after.card.metrics) == ("research use only", {})
    assert set(reports.read(made)) == {"training", "selection", "names", "sae"}
    assert "Not tested yet." in (made / "report.md").read_text()
    loading.load_engine(training_settings.model_copy(update={"models": NAME}), quiet).verify()


@pytest.mark.heavy
def test_a_refit_killed_while_it_moved_is_finished_by_the_next(
    training_settings: Settings, trained_sae: Path, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(refit, "_settle", lambda _: None)
        again(training_settings, trained_sae)
    (made / "SHA256SUMS").unlink()
    (made / ".new" / "manifest.json").replace(made / "manifest.json")
    with pytest.raises(BundleError):
        bundle.load_bundle(made)
    again(training_settings, trained_sae)
    assert len(bundle.load_bundle(made).card.data) == 2
    assert not (made / ".new").exists()


def test_the_command_refits_and_a_server_reloads(
    training_settings: Settings, trained_sae: Path, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = training_settings.models_dir.parent
    for name in ("models_dir", "cache_dir", "device", "max_tokens"):
        monkeypatch.setenv(f"SPARSERM_{name.upper()}", str(getattr(training_settings, name)))
    served = training_settings.model_copy(
        update={"models": NAME, "api_keys": Settings(api_keys="admin=s").api_keys}
    )
    ask = {"model": NAME, "inputs": [{"prompt": "river 1?", "response": "amber stone"}]}
    words = ("refit", NAME, str(root / "pairs.jsonl"), str(root / "test.jsonl"), "--sae", str(trained_sae))
    with run_server(loading.load_engine(served, quiet), served) as url:
        key = {"Authorization": "Bearer s"}

        def reward() -> float:
            answer = httpx.post(f"{url}/v1/rewards", json=ask, headers=key).json()
            return float(answer["data"][0]["reward"])

        before = reward()
        done = sparserm(*words, "--url", url, "--key", "s")
        assert done.exit_code == 0, done.output
        assert reward() != before
        refused = sparserm(*words, "--url", url, "--key", "t")
        assert (refused.exit_code, "401" in joined_output(refused)) == (1, True)
    assert json.loads((made / "manifest.json").read_text())["data"][1]["name"] == "test.jsonl"
