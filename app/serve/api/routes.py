"""The native API: rewards with reasons, comparisons, model cards."""

import uuid
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse

from app.errors import NotFound, SparseRMError
from app.reward.bundle import RewardModel
from app.reward.engine import Engine
from app.serve.api import request_schemas, response_bodies, response_schemas
from app.serve.api.dependencies import TheScorer, TheTerms, meant, outcome, timings
from app.serve.api.error_handlers import envelope
from app.serve.batching.service import Outcome, Scorer
from app.types import Explain, Feature, ScoredItem, ScoreOptions

router = APIRouter(responses=response_schemas.ERRORS)


@router.post(
    "/v1/rewards",
    response_model=response_schemas.RewardsAnswer,
    operation_id="rewards",
    dependencies=[TheTerms],
)
async def rewards(body: request_schemas.RewardsRequest, request: Request) -> Response:
    """Score responses; each reward comes with the features that made it."""
    placed = [(i, one) for i, item in enumerate(body.inputs) for one in item.exchanges(i)]
    names = [meant(request, body.model)] if isinstance(body.model, str | None) else body.model
    ask = ScoreOptions(
        tuple(dict.fromkeys(names)), body.explain, body.top_k,
        length_control=body.length_control, clusters=body.clusters, steer=body.steer,
    )  # fmt: skip
    found = await outcome(request, [one for _, one in placed], ask, truncate=body.truncate)
    answer = {
        **_frame(found),
        "models": list(ask.models),
        "steer": body.steer or None,
        "data": _reward_rows([i for i, _ in placed], ask.models, found),
    }
    return JSONResponse(answer)


@router.post(
    "/v1/compare",
    response_model=response_schemas.CompareAnswer,
    operation_id="compare",
    dependencies=[TheTerms],
)
async def compare(body: request_schemas.CompareRequest, request: Request) -> Response:
    """Which of two responses is better, how surely, and which features make the difference."""
    placed = [one for i, pair in enumerate(body.pairs) for one in pair.exchanges(i)]
    name = meant(request, body.model)
    ask = ScoreOptions((name,), Explain.NONE, length_control=body.length_control)
    found = await outcome(request, placed, ask, truncate=body.truncate)
    pairs = zip(found.results[::2], found.results[1::2], strict=True)
    data = [
        {
            "index": index,
            **_comparison(found.engine, pair, body.top_k),
            "truncated": any(one.truncated for one in found.encoded[2 * index : 2 * index + 2]),
        }
        for index, pair in enumerate(pairs)
    ]
    return JSONResponse({**_frame(found), "model": name, "data": data})


@router.get("/v1/models", response_model=response_schemas.CardList, operation_id="list_models")
async def models(scorer: TheScorer) -> Response:
    """The reward models served here, and what each was made from."""
    cards = [_card(name, scorer) for name in (*scorer.engine.models, *scorer.engine.composites)]
    return JSONResponse({"object": "list", "data": cards})


@router.get("/v1/models/{id}", response_model=response_schemas.CardBody, operation_id="get_model")
async def model(id: str, scorer: TheScorer) -> Response:  # noqa: A002 - the path says {id}
    """One reward model's card."""
    if id not in scorer.engine.composites:
        _model(scorer, id)
    return JSONResponse(_card(id, scorer))


@router.get(
    "/v1/models/{id}/features", response_model=response_schemas.FeatureList, operation_id="list_features"
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
    response_model=response_schemas.FeatureCard,
    operation_id="get_feature",
)
async def feature(id: str, latent: int, scorer: TheScorer) -> Response:  # noqa: A002 - the path says {id}
    """One direction of a model."""
    found = _model(scorer, id)
    if latent not in found.index:
        raise NotFound(f"model {id!r} does not read latent {latent}", "latent", "unknown_latent")
    place = found.index[latent]
    return JSONResponse(_features(found, slice(place, place + 1))[0])


@router.get("/v1/models/{id}/drift", response_model=response_schemas.DriftAnswer, operation_id="get_drift")
async def drift(id: str, scorer: TheScorer) -> Response:  # noqa: A002 - the path says {id}
    """How far what each caller sent lately is from what the model was made on."""
    _model(scorer, id)
    return JSONResponse({"object": "drift", "model": id, "callers": scorer.drift.report(id)})


def _frame(found: Outcome) -> dict[str, Any]:
    """The fields every scoring answer shares."""
    return {
        "id": f"rm-{uuid.uuid4().hex}",
        "object": "list",
        "usage": {
            "prompt_tokens": sum(one.start for one in found.encoded),
            "response_tokens": sum(one.stop - one.start for one in found.encoded),
            "computed_tokens": found.computed_tokens,
        },
        "timings": timings(found),
    }


def _reward_rows(inputs: list[int], models: tuple[str, ...], found: Outcome) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    first: dict[int, int] = {}
    for at, (which, encoded, result) in enumerate(zip(inputs, found.encoded, found.results, strict=True)):
        response = at - first.setdefault(which, at)
        said = (
            [response_bodies.reward(score, encoded) for score in result.scores]
            if isinstance(result, ScoredItem)
            else [{"model": model, **envelope(result)} for model in models]
        )
        for one in said:
            rows.append({"index": len(rows), "input": which, "response": response, **one})
    return rows


def _comparison(
    engine: Engine, pair: tuple[ScoredItem | SparseRMError, ScoredItem | SparseRMError], top_k: int
) -> dict[str, Any]:
    for result in pair:
        if isinstance(result, SparseRMError):
            return envelope(result)
    chosen, rejected = (result.scores[0] for result in pair if isinstance(result, ScoredItem))
    return response_bodies.comparison(engine, chosen, rejected, top_k)


def _features(model: RewardModel, which: slice) -> list[dict[str, Any]]:
    spread = model.deciles[which].tolist()
    return [
        {"id": feature.latent, **_described(feature), "deciles": deciles}
        for feature, deciles in zip(model.features[which], spread, strict=True)
    ]


def _described(feature: Feature) -> dict[str, Any]:
    found = asdict(feature)
    del found["latent"]
    return found


def _card(name: str, scorer: Scorer) -> dict[str, Any]:
    if name in scorer.engine.composites:
        return {"id": name, "object": "model", "composite": asdict(scorer.engine.composites[name])}
    model = scorer.engine.models[name]
    profiles = {profile: asdict(found) for profile, found in model.profiles.items()}
    return {"id": name, "object": "model", **asdict(model.card), "profiles": profiles}


def _model(scorer: Scorer, name: str) -> RewardModel:
    if name in scorer.engine.composites:
        heads = ", ".join(scorer.engine.heads(name))
        raise NotFound(f"{name!r} is a composite; ask its heads: {heads}", "id", "composite")
    if name not in scorer.engine.models:
        raise NotFound(
            f"no model {name[:200]!r}; there are: {', '.join(scorer.engine.models)}", "id", "unknown_model"
        )
    return scorer.engine.models[name]
