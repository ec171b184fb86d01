"""Steering of concepts by name, saved profiles, and responses that report what was steered."""

import json
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from app.errors import BundleError, NotFound
from app.reward import bundle, loading
from app.reward.engine import Engine
from app.reward.reward_model import RewardModel
from app.settings import Settings
from app.types import Profile, ScoreOptions
from tests.support import tiny
from tests.support.servers import open_client

RIVER_DIRECTIONS = (2, 5)


def add_labels(model: RewardModel) -> RewardModel:
    features = tuple(
        replace(feature, label="river" if index in RIVER_DIRECTIONS else None)
        for index, feature in enumerate(model.features)
    )
    return replace(model, features=features)


@pytest.fixture
def labelled(engine: Engine) -> Engine:
    """The tiny engine with a concept 'river' and a profile that removes it."""
    model = replace(
        add_labels(engine.models["alpha"]), profiles={"dry": Profile("no rivers", {"river": 0.0})}
    )
    return Engine(engine.backbone, engine.text, {"alpha": model})


def test_a_concept_can_be_steered_by_name(labelled: Engine) -> None:
    latents = {str(labelled.models["alpha"].features[i].latent): 0.0 for i in RIVER_DIRECTIONS}
    items = tiny.random_items(1)
    ((by_name,),) = tiny.score_items(labelled, items, ScoreOptions(("alpha",), steer={"river": 0.0}))
    ((by_number,),) = tiny.score_items(labelled, items, ScoreOptions(("alpha",), steer=latents))
    assert by_name.reward == by_number.reward
    assert by_name.steer == {"river": 0.0}


def test_request_options_override_the_profile(labelled: Engine) -> None:
    ((plain, dry),) = tiny.score_items(labelled, tiny.random_items(1), ScoreOptions(("alpha", "alpha@dry")))
    assert (plain.model, dry.model) == ("alpha", "alpha@dry")
    assert dry.reward != plain.reward
    assert {concept.name: concept.contribution for concept in dry.concepts}["river"] == 0
    ((wet,),) = tiny.score_items(
        labelled, tiny.random_items(1), ScoreOptions(("alpha@dry",), steer={"river": 1.0})
    )
    assert wet.reward == plain.reward
    with pytest.raises(NotFound, match="alpha@dry"):
        labelled.resolve_model("alpha@wet")


def test_concepts_sum_to_the_same_as_features(labelled: Engine) -> None:
    ((score,),) = tiny.score_items(labelled, tiny.random_items(1), ScoreOptions(("alpha",), top_k=tiny.K))
    concepts = sum(concept.contribution for concept in score.concepts)
    features = sum(feature.contribution for feature in score.features)
    assert concepts == pytest.approx(features, abs=1e-9)
    assert sum(concept.features for concept in score.concepts) == tiny.K


def test_margin_features_sum_under_a_profile(labelled: Engine) -> None:
    (chosen,), (rejected,) = tiny.score_items(labelled, tiny.random_items(2), ScoreOptions(("alpha@dry",)))
    features = labelled.explain_margin(chosen, rejected, tiny.K)
    margin = chosen.reward - rejected.reward
    assert sum(feature.contribution for feature in features) == pytest.approx(margin, abs=1e-9)


def test_steering_does_not_change_the_distance(labelled: Engine) -> None:
    ((plain,),) = tiny.score_items(labelled, tiny.random_items(1), ScoreOptions(("alpha",)))
    ((extreme,),) = tiny.score_items(
        labelled, tiny.random_items(1), ScoreOptions(("alpha",), steer={"river": 100.0})
    )
    assert extreme.distance == plain.distance


@pytest.mark.anyio
async def test_profiles_on_disk_are_served_and_listed(tmp_path: Path) -> None:
    settings = save_profile(tmp_path, {"about": "no rivers", "steer": {"river": 0}, "length_control": True})
    async with open_client(loading.load_engine(settings, lambda *_: None), settings) as client:
        await check_profile(client)


async def check_profile(client: httpx.AsyncClient) -> None:
    body = {"model": "alpha@dry", "inputs": [{"prompt": "seven", "response": "maple"}]}
    (row,) = (await client.post("/v1/rewards", json=body)).json()["data"]
    assert row["model"] == "alpha@dry"
    assert row["steer"] == {"river": 0.0}
    assert row["length_correction"] != 0
    assert {concept["name"] for concept in row["concepts"]} == {"river", None}
    card = (await client.get("/v1/models/alpha")).json()
    assert card["profiles"]["dry"]["about"] == "no rivers"


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        ({"steer": {"volcano": 0}}, "volcano"),
        ({"steer": {"river": 1e9}}, "not within"),
        ({"stear": {}}, "stear"),
        ({"steer": {"river": "much"}}, "steer"),
    ],
)
def test_rejects_an_invalid_profile(tmp_path: Path, profile: dict[str, object], message: str) -> None:
    settings = save_profile(tmp_path, profile)
    with pytest.raises(BundleError, match=message):
        bundle.load_bundle(settings.models_dir / "alpha")


def save_profile(root: Path, profile: dict[str, object]) -> Settings:
    settings = tiny.build_models(root)
    folder = settings.models_dir / "alpha"
    bundle.save_bundle(add_labels(bundle.load_bundle(folder)), folder)
    (folder / "profiles").mkdir()
    (folder / "profiles" / "dry.json").write_text(json.dumps(profile))
    return settings
