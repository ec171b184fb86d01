"""A small model with two concepts, and the features of the pairs it was trained on."""

from dataclasses import dataclass, replace

import pytest

from app.data.pairs import read_pairs
from app.reward import bundle
from app.reward.reward_model import Concept, RewardModel
from app.settings import Settings
from app.train import jobs
from app.train.features import PairFeatures, extract_features
from app.types import Pair
from tests.support import named_models
from tests.support.training_setup import ignore_progress
from tests.train.test_steps import response_config


@dataclass(frozen=True)
class AuditedModel:
    """A model whose concepts are all features that raise and all that lower rewards, with pairs."""

    settings: Settings
    model: RewardModel
    pairs: list[Pair]
    features: PairFeatures

    @property
    def groups(self) -> list[str]:
        return [pair.group for pair in self.pairs]


@pytest.fixture(scope="package")
def audited(training_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> AuditedModel:
    settings = training_settings.model_copy(update={"models_dir": tmp_path_factory.mktemp("audited")})
    config, source = response_config(training_settings)
    trained = jobs.train_and_save(config, source, settings, ignore_progress)
    concepts = tuple(
        Concept(name, tuple(f.latent for f in trained.features if f.sign == sign), sign, score=0.9, items=20)
        for name, sign in (("raises", 1), ("lowers", -1))
    )
    model = replace(trained, concepts=concepts)
    bundle.save_names(model, settings.models_dir / named_models.NAME)
    pairs = read_pairs(named_models.pairs_file(training_settings))
    extractor = jobs.load_feature_extractor(source, settings, ignore_progress)
    features = extract_features([p.items for p in pairs], extractor, settings.cache, ignore_progress)
    return AuditedModel(settings, model, pairs, features)
