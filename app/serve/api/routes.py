"""The native API: rewards with explanations, comparisons, model cards, features and drift."""

import uuid
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse

from app.errors import NotFound, SparseRMError
from app.reward.engine import Engine
from app.reward.reward_model import RewardModel
from app.scores import ScoredItem
from app.serve.api import response_schemas
from app.serve.api.comparison import compare_scores
from app.serve.api.dependencies import (
    RequestContextDependency,
    ScoringServiceDependency,
    build_timings,
    resolve_model,
    score_request,
)
from app.serve.api.error_handlers import build_error_detail
from app.serve.api.request_schemas import CompareRequest, RewardsRequest
from app.serve.api.serialization import (
    RowPosition,
    build_body,
    build_serializer,
    serialize_margin,
    serialize_reward,
)
from app.serve.batching.fair_queue import FailedItem
from app.serve.batching.service import ScoringResult, ScoringService
from app.types import Explain, Feature, ScoreOptions

router = APIRouter(responses=response_schemas.ERROR_RESPONSES)
serialize_feature = build_serializer(
    response_schemas.FeatureSchema, Feature, list, str, id="latent",
    deciles=lambda _, deciles, __: deciles, concept=lambda _, __, concept: concept,
)  # fmt: skip


@router.post(
    "/v1/rewards",
    response_model=response_schemas.RewardsResponse,
    operation_id="rewards",
    dependencies=[RequestContextDependency],
)
async def compute_rewards(body: RewardsRequest, request: Request) -> Response:
    """Score responses; each reward comes with the features that explain it."""
    numbered = [(index, item) for index, entry in enumerate(body.inputs) for item in entry.to_items(index)]
    names = [resolve_model(request, body.model)] if isinstance(body.model, str | None) else body.model
    options = ScoreOptions(
        tuple(dict.fromkeys(names)), body.explain, body.top_k,
        length_control=body.length_control, steer=body.steer,
    )  # fmt: skip
    result = await score_request(request, [item for _, item in numbered], options, truncate=body.truncate)
    rows = _reward_rows([index for index, _ in numbered], options.models, result)
    response = build_body(
        response_schemas.RewardsResponse,
        **_scoring_values(result),
        models=list(options.models),
        steer=body.steer or None,
        data=rows,
    )
    return JSONResponse(response)


@router.post(
    "/v1/compare",
    response_model=response_schemas.CompareResponse,
    operation_id="compare",
    dependencies=[RequestContextDependency],
)
async def compare(body: CompareRequest, request: Request) -> Response:
    """Compare two responses: which is better, how certain that is, and which features explain the margin."""
    located_items = [item for index, pair in enumerate(body.pairs) for item in pair.to_items(index)]
    name = resolve_model(request, body.model)
    options = ScoreOptions((name,), Explain(body.explain), top_k=0, length_control=body.length_control)
    result = await score_request(request, located_items, options, truncate=body.truncate)
    pairs = zip(result.items[::2], result.items[1::2], strict=True)
    rows = [_comparison_row(index, result.engine, pair, body.top_k) for index, pair in enumerate(pairs)]
    response = build_body(response_schemas.CompareResponse, **_scoring_values(result), model=name, data=rows)
    return JSONResponse(response)


@router.get("/v1/models", response_model=response_schemas.ModelListResponse, operation_id="list_models")
async def list_models(service: ScoringServiceDependency, request: Request) -> Response:
    """List the served reward models with their manifests, the default model first."""
    default = str(request.app.state.default_model).partition("@")[0]
    names = sorted((*service.engine.models, *service.engine.composites), key=lambda name: name != default)
    cards = [_model_card(name, service) for name in names]
    return JSONResponse(build_body(response_schemas.ModelListResponse, data=cards))


@router.get("/v1/models/{id}", response_model=response_schemas.ModelCardSchema, operation_id="get_model")
async def get_model(id: str, service: ScoringServiceDependency) -> Response:  # noqa: A002 - the path says {id}
    """Return one reward model's manifest."""
    if id not in service.engine.composites:
        _find_model(service, id)
    return JSONResponse(_model_card(id, service))


@router.get(
    "/v1/models/{id}/features",
    response_model=response_schemas.FeatureListResponse,
    operation_id="list_features",
)
async def list_features(
    id: str,  # noqa: A002 - the path says {id}
    service: ScoringServiceDependency,
    offset: Annotated[int, Query(ge=0, le=10**6)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> Response:
    """List a page of a model's features."""
    model = _find_model(service, id)
    rows = _feature_rows(model, slice(offset, offset + limit))
    response = build_body(
        response_schemas.FeatureListResponse, total=len(model.features), offset=offset, data=rows
    )
    return JSONResponse(response)


@router.get(
    "/v1/models/{id}/features/{latent}",
    response_model=response_schemas.FeatureSchema,
    operation_id="get_feature",
)
async def get_feature(id: str, latent: int, service: ScoringServiceDependency) -> Response:  # noqa: A002 - the path says {id}
    """Return one feature of a model."""
    model = _find_model(service, id)
    if latent not in model.index_by_latent:
        raise NotFound(f"model {id!r} does not read latent {latent}", "latent", "unknown_latent")
    index = model.index_by_latent[latent]
    return JSONResponse(_feature_rows(model, slice(index, index + 1))[0])


@router.get("/v1/models/{id}/drift", response_model=response_schemas.DriftResponse, operation_id="get_drift")
async def get_drift(id: str, service: ScoringServiceDependency) -> Response:  # noqa: A002 - the path says {id}
    """Return per caller how far its recent responses are from the model's training data."""
    _find_model(service, id)
    return JSONResponse(
        build_body(response_schemas.DriftResponse, model=id, callers=service.drift.report(id))
    )


def _scoring_values(result: ScoringResult) -> dict[str, Any]:
    """Return the values that all responses with scores share."""
    usage = response_schemas.UsageSchema.model_validate(result)
    return {
        "id": f"rm-{uuid.uuid4().hex}",
        "usage": usage.model_dump(),
        "timings": build_timings(result).model_dump(),
    }


def _reward_rows(
    input_indices: Sequence[int], models: Sequence[str], result: ScoringResult
) -> list[dict[str, Any]]:
    """Return a row per response and model. Items with the same input index are responses of one input."""
    rows: list[dict[str, Any]] = []
    first_items: dict[int, int] = {}
    for number, (input_index, item) in enumerate(zip(input_indices, result.items, strict=True)):
        response = number - first_items.setdefault(input_index, number)
        for model_index, model in enumerate(models):
            position = RowPosition(len(rows), input_index, response)
            if isinstance(item, FailedItem):
                rows.append(_failed_reward_row(position, model, item.error))
            else:
                rows.append(serialize_reward(item.scores[model_index], item.encoded, position))
    return rows


def _failed_reward_row(position: RowPosition, model: str, error: SparseRMError) -> dict[str, Any]:
    row = response_schemas.FailedRewardSchema(
        **asdict(position), model=model, error=build_error_detail(error)
    )
    return row.model_dump()


def _comparison_row(
    index: int, engine: Engine, pair: tuple[ScoredItem | FailedItem, ScoredItem | FailedItem], top_k: int
) -> dict[str, Any]:
    truncated = any(item.encoded.truncated for item in pair)
    for item in pair:
        if isinstance(item, FailedItem):
            error = build_error_detail(item.error)
            failed = response_schemas.FailedComparisonSchema(index=index, error=error, truncated=truncated)
            return failed.model_dump()
    chosen, rejected = (item.scores[0] for item in pair if isinstance(item, ScoredItem))
    comparison = compare_scores(engine, chosen, rejected, top_k=top_k, truncated=truncated)
    return {"index": index, **serialize_margin(comparison)}


def _feature_rows(model: RewardModel, rows: slice) -> list[dict[str, Any]]:
    deciles = model.projection_deciles[rows].tolist()
    concepts = {latent: concept.name for concept in model.concepts for latent in concept.latents}
    return [
        serialize_feature(feature, feature_deciles, concepts.get(feature.latent))
        for feature, feature_deciles in zip(model.features[rows], deciles, strict=True)
    ]


def _model_card(name: str, service: ScoringService) -> dict[str, Any]:
    if name in service.engine.composites:
        fields = {"composite": asdict(service.engine.composites[name])}
    else:
        model = service.engine.models[name]
        profiles = {name: asdict(profile) for name, profile in model.profiles.items()}
        fields = {**asdict(model.card), "profiles": profiles}
    return build_body(response_schemas.ModelCardSchema, id=name, **fields)


def _find_model(service: ScoringService, name: str) -> RewardModel:
    """Return a model that is not a composite, or raise NotFound."""
    if name in service.engine.composites:
        parts = ", ".join(service.engine.resolve_parts(name))
        raise NotFound(f"{name!r} is a composite; ask for its models instead: {parts}", "id", "composite")
    if name not in service.engine.models:
        raise NotFound(
            f"no model {name[:200]!r}; there are: {', '.join(service.engine.models)}", "id", "unknown_model"
        )
    return service.engine.models[name]
