"""The serializers return every field of their schema, in its order, with the values of the domain objects."""

import json
from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel

from app.scores import (
    CompositePart,
    ConceptContribution,
    Contribution,
    Score,
    ScoredPassage,
    ScoredTurn,
    TokenCredit,
)
from app.serve.api import explanation_schemas
from app.serve.api import response_schemas as schemas
from app.serve.api.comparison import Comparison
from app.serve.api.routes import serialize_feature
from app.serve.api.serialization import (
    Each,
    RowPosition,
    Serializer,
    build_body,
    build_serializer,
    serialize_contribution,
    serialize_margin,
    serialize_reward,
    serialize_score,
)
from app.types import EncodedItem, Feature

FEATURE = Feature(
    7, -1, "refusals", 0.8, 20, "https://example.org/7", 0.1, 0.9, 0.95, keywords=("sorry", "cannot"),
    snippets=("I cannot say",),
)  # fmt: skip
CONCEPT = ConceptContribution("alpha", "refuses", -1, 0.9, 3, 0.25, "cannot say", (0.25,))
CONTRIBUTION = Contribution("alpha", FEATURE, 0.25, -1.5, 2.0, fired=True, credits=(0.125,))
NO_ACTIVATIONS = np.zeros(0, np.float32)
ENCODED = EncodedItem(ids=tuple(range(10)), response_start=4, truncated=True)
POSITION = RowPosition(index=5, input=2, response=1)


def make_score(reward: float = 1.5, **changes: Any) -> Score:
    fields: dict[str, Any] = {
        "model": "alpha", "reward": reward, "uncertainty": 0.3, "percentile": 80.0, "distance": 12.0,
        "baseline": 0.5, "length_correction": 0.125, "residual": 0.0, "steer": {"7": 2.0},
        "features": (CONTRIBUTION,), "concepts": (CONCEPT,), "coverage": 0.75, "why": "Reward +1.50",
        "tokens": (TokenCredit("no", 1.0),), "projections": NO_ACTIVATIONS, "activations": NO_ACTIVATIONS,
        "contributions": np.zeros(0), "passages": (ScoredPassage(2, 6, "no", -1.0, 0.5, -0.75),),
        "penalty": 0.0625, "parts": (CompositePart("beta", 0.5, 1.0, 0.5, 2.0),),
        "turns": (ScoredTurn(3, 0.5, 0.1, 0.25, 0.125, -0.25),),
    }  # fmt: skip
    return Score(**(fields | changes))


COMPARISON = Comparison(
    make_score(1.5),
    make_score(1.0, uncertainty=0.4, distance=20.0),
    0.7,
    (CONTRIBUTION,),
    0.6,
    "rivers",
    1,
    truncated=False,
)
CASES: dict[str, tuple[type[BaseModel], Serializer, tuple[Any, ...]]] = {
    "contribution": (explanation_schemas.FeatureContributionSchema, serialize_contribution, (CONTRIBUTION,)),
    "score": (schemas.ScoreSchema, serialize_score, (make_score(), ENCODED)),
    "reward": (schemas.RewardSchema, serialize_reward, (make_score(), ENCODED, POSITION)),
    "margin": (schemas.MarginSchema, serialize_margin, (COMPARISON,)),
    "feature": (schemas.FeatureSchema, serialize_feature, (FEATURE, [0.5, 1.5], "refuses")),
}


@pytest.mark.parametrize("name", CASES)
def test_returns_every_field_of_the_schema_in_its_order(name: str) -> None:
    schema, serialize, objects = CASES[name]
    assert list(serialize(*objects)) == list(schema.model_fields)


@pytest.mark.parametrize("name", CASES)
def test_returns_what_the_schema_describes_and_nothing_else(name: str) -> None:
    schema, serialize, objects = CASES[name]
    row = json.loads(json.dumps(serialize(*objects)))
    assert schema.model_validate(row).model_dump(exclude_unset=True) == row


def test_a_reward_has_the_values_of_its_score_item_and_position() -> None:
    assert serialize_reward(make_score(), ENCODED, POSITION) == {
        "index": 5, "input": 2, "response": 1, "model": "alpha", "reward": 1.5, "uncertainty": 0.3,
        "percentile": 80.0, "distance": 12.0, "baseline_reward": 0.5, "length_correction": 0.125,
        "penalty": 0.0625, "residual": 0.0, "steer": {"7": 2.0},
        "features": [{
            "model": "alpha", "id": 7, "sign": -1, "label": "refusals", "label_score": 0.8,
            "label_items": 20, "url": "https://example.org/7", "contribution": 0.25, "projection": -1.5,
            "activation": 2.0, "fired": True, "credits": [0.125],
        }],
        "prompt_tokens": 4, "response_tokens": 5, "truncated": True,
        "why": "Reward +1.50", "coverage": 0.75,
        "concepts": [{
            "model": "alpha", "name": "refuses", "sign": -1, "score": 0.9, "features": 3,
            "contribution": 0.25, "phrase": "cannot say", "credits": [0.25],
        }],
        "parts": [{"model": "beta", "weight": 0.5, "reward": 1.0, "contribution": 0.5, "scale": 2.0}],
        "tokens": [{"text": "no", "credit": 1.0}],
        "turns": [
            {"message": 3, "reward": 0.5, "change": -0.25, "length_correction": 0.25, "penalty": 0.125}
        ],
        "passages": [
            {"start": 2, "end": 6, "text": "no", "reward": -1.0, "weight": 0.5, "contribution": -0.75}
        ],
    }  # fmt: skip


def test_fields_with_a_default_are_left_out_if_there_is_nothing_to_show() -> None:
    plain = make_score(
        features=(), concepts=(), tokens=None, parts=(), steer={}, turns=(), passages=(), coverage=None,
        why=None,
    )  # fmt: skip
    row = serialize_score(plain, ENCODED)
    required = [name for name, field in schemas.ScoreSchema.model_fields.items() if field.is_required()]
    assert list(row) == required
    assert row["features"] == []
    assert row["steer"] is None


def test_a_margin_is_the_sum_of_what_explains_it() -> None:
    row = serialize_margin(COMPARISON)
    explained = CONTRIBUTION.contribution + row["length_correction"] - row["penalty"] + row["residual"]
    assert row["margin"] == pytest.approx(explained, abs=1e-12)
    assert (row["margin"], row["chosen_reward"], row["rejected_reward"]) == (0.5, 1.5, 1.0)
    assert (row["uncertainty"], row["distance"]) == (pytest.approx(0.5), 20.0)


def test_a_field_without_a_source_is_an_error_when_the_serializer_is_built() -> None:
    class Unsourced(explanation_schemas.TokenCreditSchema):
        colour: str

    with pytest.raises(TypeError, match=r"Unsourced\.colour: TokenCredit has no attribute 'colour'"):
        build_serializer(Unsourced, TokenCredit)
    with pytest.raises(TypeError, match=r"Contribution has no attribute 'feature\.colour'"):
        build_serializer(Unsourced, Contribution, text="model", credit="fired", colour="feature.colour")
    serialize = build_serializer(Unsourced, TokenCredit, colour=lambda _: "red")
    assert serialize(TokenCredit("no", 0.5))["colour"] == "red"


def test_a_getter_of_an_unknown_field_is_an_error_when_the_serializer_is_built() -> None:
    with pytest.raises(TypeError, match="TokenCreditSchema has no field 'colour'"):
        build_serializer(
            explanation_schemas.TokenCreditSchema, TokenCredit, colour=Each(serialize_contribution)
        )


def test_a_body_has_the_order_and_the_defaults_of_its_schema() -> None:
    body = build_body(schemas.FeatureListResponse, data=[], offset=3, total=9)
    assert list(body.items()) == [("object", "list"), ("total", 9), ("offset", 3), ("data", [])]
    card = build_body(schemas.ModelCardSchema, layer=3, id="alpha")
    assert list(card.items()) == [("id", "alpha"), ("object", "model"), ("layer", 3)]


def test_a_body_with_missing_or_unknown_fields_is_an_error() -> None:
    with pytest.raises(TypeError, match="FeatureListResponse needs a value for 'offset'"):
        build_body(schemas.FeatureListResponse, data=[], total=9)
    with pytest.raises(TypeError, match="FeatureListResponse has no field 'page'"):
        build_body(schemas.FeatureListResponse, data=[], total=9, offset=0, page=1)
