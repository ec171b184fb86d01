"""A small trained model of features of responses, with evidence for its features."""

from pathlib import Path

from app.reward import bundle
from app.reward.reward_model import RewardModel
from app.settings import Settings
from app.train import jobs
from app.train.names import jobs as naming
from tests.support.training_setup import ignore_progress
from tests.train.test_steps import NAME, response_config

__all__ = ["NAME", "load_model", "make_model_with_evidence", "pairs_file"]


def make_model_with_evidence(training_settings: Settings, folder: Path) -> Settings:
    """Train a model and collect the evidence for its features; return the settings that find both."""
    settings = training_settings.model_copy(
        update={"models_dir": folder / "models", "cache_dir": folder / "cache"}
    )
    config, source = response_config(training_settings)
    jobs.train_and_save(config, source, settings, ignore_progress)
    naming.make_evidence(NAME, str(pairs_file(training_settings)), None, None, settings, ignore_progress)
    return settings


def pairs_file(training_settings: Settings) -> Path:
    """Return the file of the training pairs."""
    return training_settings.models_dir.parent / "pairs.jsonl"


def load_model(settings: Settings) -> RewardModel:
    """Return the trained model."""
    return bundle.load_bundle(settings.models_dir / NAME)
