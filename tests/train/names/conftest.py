"""A small model whose features have evidence, made once for the tests of this folder."""

import pytest

from app.reward.reward_model import RewardModel
from app.settings import Settings
from tests.support import named_models


@pytest.fixture(scope="package")
def named_settings(training_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Settings of a model with evidence."""
    return named_models.make_model_with_evidence(training_settings, tmp_path_factory.mktemp("named"))


@pytest.fixture
def named_model(named_settings: Settings) -> RewardModel:
    """The model as it is on disk."""
    return named_models.load_model(named_settings)
