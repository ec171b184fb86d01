"""Steering: clusters by name, saved profiles, and answers that say what was steered."""

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
from tests.support.servers import server

RIVER = (2, 5)


def named(model: RewardModel) -> RewardModel:
    features = tuple(
        replace(one, label="river" if i in RIVER else None) for i, one in enumerate(model.features)
    )
    return replace(model, features=features)


@pytest.fixture
def steered(engine: Engine) -> Engine:
    """The tiny engine with a cluster 'river' and a profile that silences it."""
    model = replace(named(engine.models["alpha"]), profiles={"dry": Profile("no rivers", {"river": 0.0})})
    return Engine(engine.backbone, engine.text, {"alpha": model})


def test_a_cluster_is_steered_by_name(steered: Engine) -> None:
    latents = {str(steered.models["alpha"].features[i].latent): 0.0 for i in RIVER}
    one = tiny.random_items(1)
    ((by_name,),) = tiny.score_items(steered, one, ScoreOptions(("alpha",), steer={"river": 0.0}))
    ((by_number,),) = tiny.score_items(steered, one, ScoreOptions(("alpha",), steer=latents))
    assert by_name.reward == by_number.reward
    assert by_name.steer == {"river": 0.0}


def test_a_profile_is_asked_for_by_name_and_can_be_overruled(steered: Engine) -> None:
    ((plain, dry),) = tiny.score_items(
        steered, tiny.random_items(1), ScoreOptions(("alpha", "alpha@dry"), clusters=True)
    )
    assert (plain.model, dry.model) == ("alpha", "alpha@dry")
    assert dry.reward != plain.reward
    assert {one.name: one.contribution for one in dry.clusters}["river"] == 0
    ((wet,),) = tiny.score_items(
        steered, tiny.random_items(1), ScoreOptions(("alpha@dry",), steer={"river": 1.0})
    )
    assert wet.reward == plain.reward
    with pytest.raises(NotFound, match="alpha@dry"):
        steered.resolve_model("alpha@wet")


def test_clusters_sum_as_features_do(steered: Engine) -> None:
    ((score,),) = tiny.score_items(
        steered, tiny.random_items(1), ScoreOptions(("alpha",), clusters=True, top_k=tiny.K)
    )
    total = sum(one.contribution for one in score.clusters)
    assert total == pytest.approx(sum(one.contribution for one in score.features), abs=1e-9)
    assert sum(one.directions for one in score.clusters) == tiny.K


def test_a_comparison_under_a_profile_still_sums(steered: Engine) -> None:
    (chosen,), (rejected,) = tiny.score_items(steered, tiny.random_items(2), ScoreOptions(("alpha@dry",)))
    shares = steered.explain_margin(chosen, rejected, tiny.K)
    margin = chosen.reward - rejected.reward
    assert sum(one.contribution for one in shares) == pytest.approx(margin, abs=1e-9)


def test_the_rest_is_found_where_it_was_before_steering(steered: Engine) -> None:
    ((plain,),) = tiny.score_items(steered, tiny.random_items(1), ScoreOptions(("alpha",)))
    ((far,),) = tiny.score_items(
        steered, tiny.random_items(1), ScoreOptions(("alpha",), steer={"river": 100.0})
    )
    assert far.distance == plain.distance


@pytest.mark.anyio
async def test_profiles_on_disk_are_served_and_shown(tmp_path: Path) -> None:
    settings = saved(tmp_path, {"about": "no rivers", "steer": {"river": 0}, "length_control": True})
    async with server(loading.load_engine(settings, lambda *_: None), settings) as client:
        await check(client)


async def check(client: httpx.AsyncClient) -> None:
    body = {"model": "alpha@dry", "inputs": [{"prompt": "seven", "response": "maple"}], "clusters": True}
    (row,) = (await client.post("/v1/rewards", json=body)).json()["data"]
    assert row["model"] == "alpha@dry"
    assert row["steer"] == {"river": 0.0}
    assert row["length_correction"] != 0
    assert {one["name"] for one in row["clusters"]} == {"river", None}
    card = (await client.get("/v1/models/alpha")).json()
    assert card["profiles"]["dry"]["about"] == "no rivers"


@pytest.mark.parametrize(
    ("profile", "says"),
    [
        ({"steer": {"volcano": 0}}, "volcano"),
        ({"steer": {"river": 1e9}}, "not within"),
        ({"stear": {}}, "stear"),
        ({"steer": {"river": "much"}}, "steer"),
    ],
)
def test_a_profile_that_makes_no_sense_is_refused(
    tmp_path: Path, profile: dict[str, object], says: str
) -> None:
    settings = saved(tmp_path, profile)
    with pytest.raises(BundleError, match=says):
        bundle.load_bundle(settings.models_dir / "alpha")


def saved(root: Path, profile: dict[str, object]) -> Settings:
    settings = tiny.build_models(root)
    folder = settings.models_dir / "alpha"
    bundle.save_bundle(named(bundle.load_bundle(folder)), folder)
    (folder / "profiles").mkdir()
    (folder / "profiles" / "dry.json").write_text(json.dumps(profile))
    return settings
