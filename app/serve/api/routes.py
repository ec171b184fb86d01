"""The native API: rewards with reasons, comparisons, model cards."""

import uuid
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse

from app.errors import NotFound
from app.reward.engine import Engine
from app.reward.reward_model import RewardModel
from app.serve.api import request_schemas, response_bodies, response_schemas
from app.serve.api.dependencies import (
    RequestContextDependency,
    TheScorer,
    resolve_model,
    score_request,
    stage_timings,
)
from app.serve.api.error_handlers import error_body
from app.serve.batching.fair_queue import FailedItem
from app.serve.batching.service import ScoringResult, ScoringService
from app.types import Explain, Feature, ScoredItem, ScoreOptions

router = APIRouter(responses=response_schemas.ERROR_RESPONSES)


@router.post(
    "/v1/rewards",
    response_model=response_schemas.RewardsResponse,
    operation_id="rewards",
    dependencies=[RequestContextDependency],
)
async def rewards(body: request_schemas.RewardsRequest, request: Request) -> Response:
    """Score responses; each reward comes with the features that made it."""
    placed = [(i, one) for i, item in enumerate(body.inputs) for one in item.items(i)]
    names = [resolve_model(request, body.model)] if isinstance(body.model, str | None) else body.model
    ask = ScoreOptions(
        tuple(dict.fromkeys(names)), body.explain, body.top_k,
        length_control=body.length_control, clusters=body.clusters, steer=body.steer,
    )  # fmt: skip
    found = await score_request(request, [one for _, one in placed], ask, truncate=body.truncate)
    answer = {
        **_frame(found),
        "models": list(ask.models),
        "steer": body.steer or None,
        "data": _reward_rows([i for i, _ in placed], ask.models, found),
    }
    return JSONResponse(answer)


@router.post(
    "/v1/compare",
    response_model=response_schemas.CompareResponse,
    operation_id="compare",
    dependencies=[RequestContextDependency],
)
async def compare(body: request_schemas.CompareRequest, request: Request) -> Response:
    """Which of two responses is better, how surely, and which features make the difference."""
    placed = [one for i, pair in enumerate(body.pairs) for one in pair.items(i)]
    name = resolve_model(request, body.model)
    ask = ScoreOptions((name,), Explain.NONE, length_control=body.length_control)
    found = await score_request(request, placed, ask, truncate=body.truncate)
    pairs = zip(found.items[::2], found.items[1::2], strict=True)
    data = [
        {
            "index": index,
            **_comparison(found.engine, pair, body.top_k),
            "truncated": any(item.encoded.truncated for item in pair),
        }
        for index, pair in enumerate(pairs)
    ]
    return JSONResponse({**_frame(found), "model": name, "data": data})


@router.get("/v1/models", response_model=response_schemas.ModelListResponse, operation_id="list_models")
async def models(scorer: TheScorer) -> Response:
    """The reward models served here, and what each was made from."""
    cards = [_card(name, scorer) for name in (*scorer.engine.models, *scorer.engine.composites)]
    return JSONResponse({"object": "list", "data": cards})


@router.get("/v1/models/{id}", response_model=response_schemas.ModelCardSchema, operation_id="get_model")
async def model(id: str, scorer: TheScorer) -> Response:  # noqa: A002 - the path says {id}
    """One reward model's card."""
    if id not in scorer.engine.composites:
        _model(scorer, id)
    return JSONResponse(_card(id, scorer))


@router.get(
    "/v1/models/{id}/features",
    response_model=response_schemas.FeatureListResponse,
    operation_id="list_features",
)
async def features(
    id: str,  # noqa: A002 - the path says {id}
    scorer: TheScorer,
    offset: Annotated[int, Query(ge=0, le=10**6)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> Response:
    """The directions a model reads, a page at a time."""
    found = _model(scorer, id)
    page = _features(found, slice(offset, offset + limit))
    return JSONResponse({"object": "list", "total": len(found.features), "offset": offset, "data": page})


@router.get(
    "/v1/models/{id}/features/{latent}",
    response_model=response_schemas.FeatureSchema,
    operation_id="get_feature",
)
async def feature(id: str, latent: int, scorer: TheScorer) -> Response:  # noqa: A002 - the path says {id}
    """One direction of a model."""
    found = _model(scorer, id)
    if latent not in found.index_by_latent:
        raise NotFound(f"model {id!r} does not read latent {latent}", "latent", "unknown_latent")
    place = found.index_by_latent[latent]
    return JSONResponse(_features(found, slice(place, place + 1))[0])


@router.get("/v1/models/{id}/drift", response_model=response_schemas.DriftResponse, operation_id="get_drift")
async def drift(id: str, scorer: TheScorer) -> Response:  # noqa: A002 - the path says {id}
    """How far what each caller sent lately is from what the model was made on."""
    _model(scorer, id)
    return JSONResponse({"object": "drift", "model": id, "callers": scorer.drift.report(id)})


def _frame(found: ScoringResult) -> dict[str, Any]:
    """The fields every scoring answer shares."""
    return {
        "id": f"rm-{uuid.uuid4().hex}",
        "object": "list",
        "usage": {
            "prompt_tokens": found.prompt_tokens,
            "response_tokens": found.response_tokens,
            "computed_tokens": found.computed_tokens,
        },
        "timings": stage_timings(found),
    }


def _reward_rows(inputs: list[int], models: tuple[str, ...], found: ScoringResult) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    first: dict[int, int] = {}
    for at, (which, item) in enumerate(zip(inputs, found.items, strict=True)):
        response = at - first.setdefault(which, at)
        said = (
            [{"model": model, **error_body(item.error)} for model in models]
            if isinstance(item, FailedItem)
            else [response_bodies.reward(score, item.encoded) for score in item.scores]
        )
        for one in said:
            rows.append({"index": len(rows), "input": which, "response": response, **one})
    return rows


def _comparison(
    engine: Engine, pair: tuple[ScoredItem | FailedItem, ScoredItem | FailedItem], top_k: int
) -> dict[str, Any]:
    for item in pair:
        if isinstance(item, FailedItem):
            return error_body(item.error)
    chosen, rejected = (item.scores[0] for item in pair if isinstance(item, ScoredItem))
    return response_bodies.comparison(engine, chosen, rejected, top_k)


def _features(model: RewardModel, which: slice) -> list[dict[str, Any]]:
    spread = model.projection_deciles[which].tolist()
    return [
        {"id": feature.latent, **_described(feature), "deciles": deciles}
        for feature, deciles in zip(model.features[which], spread, strict=True)
    ]


def _described(feature: Feature) -> dict[str, Any]:
    found = asdict(feature)
    del found["latent"]
    return found


def _card(name: str, scorer: ScoringService) -> dict[str, Any]:
    if name in scorer.engine.composites:
        return {"id": name, "object": "model", "composite": asdict(scorer.engine.composites[name])}
    model = scorer.engine.models[name]
    profiles = {profile: asdict(found) for profile, found in model.profiles.items()}
    return {"id": name, "object": "model", **asdict(model.card), "profiles": profiles}


def _model(scorer: ScoringService, name: str) -> RewardModel:
    if name in scorer.engine.composites:
        heads = ", ".join(scorer.engine.resolve_parts(name))
        raise NotFound(f"{name!r} is a composite; ask its heads: {heads}", "id", "composite")
    if name not in scorer.engine.models:
        raise NotFound(
            f"no model {name[:200]!r}; there are: {', '.join(scorer.engine.models)}", "id", "unknown_model"
        )
    return scorer.engine.models[name]
