"""The native API: rewards with reasons, comparisons, model cards, health."""

import uuid
from dataclasses import asdict
from importlib.metadata import version
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from app.errors import Closing, NotFound
from app.model.bundle import RewardModel
from app.serve import answers, requests
from app.serve.asking import Caller, TheScorer, meant, unless_gone
from app.serve.drift import ANYONE
from app.serve.scoring import Outcome, Scorer
from app.types import Ask, Contribution, Encoded, Explain, Feature, Score

ALL = 10**6
router = APIRouter(responses=answers.ERRORS)


@router.post("/v1/rewards", response_model=answers.RewardsAnswer, operation_id="rewards")
async def rewards(
    body: requests.RewardsRequest, request: Request, scorer: TheScorer, caller: Caller = ANYONE
) -> Response:
    """Score responses; each reward comes with the features that made it."""
    placed = [(i, one) for i, item in enumerate(body.inputs) for one in item.exchanges(i)]
    names = [meant(request, body.model)] if isinstance(body.model, str | None) else body.model
    ask = Ask(
        tuple(dict.fromkeys(names)), body.explain, body.top_k,
        length_control=body.length_control, clusters=body.clusters, steer=body.steer,
    )  # fmt: skip
    work = scorer.score([one for _, one in placed], ask, truncate=body.truncate, caller=caller)
    outcome = await unless_gone(request, work)
    answer = {
        **_frame(outcome),
        "models": list(ask.models),
        "steer": body.steer or None,
        "data": _reward_rows([i for i, _ in placed], outcome),
    }
    return JSONResponse(answer)


@router.post("/v1/compare", response_model=answers.CompareAnswer, operation_id="compare")
async def compare(
    body: requests.CompareRequest, request: Request, scorer: TheScorer, caller: Caller = ANYONE
) -> Response:
    """Which of two responses is better, how surely, and which features make the difference."""
    placed = [one for i, pair in enumerate(body.pairs) for one in pair.exchanges(i)]
    name = meant(request, body.model)
    ask = Ask((name,), Explain.NONE, length_control=body.length_control)
    work = scorer.score(placed, ask, truncate=body.truncate, caller=caller)
    outcome = await unless_gone(request, work)
    scores = [scored.scores[0] for scored in outcome.scored]
    data = [
        {
            **_comparison(scorer, index, (chosen, rejected), body.top_k),
            "truncated": any(one.truncated for one in outcome.encoded[2 * index : 2 * index + 2]),
        }
        for index, (chosen, rejected) in enumerate(zip(scores[::2], scores[1::2], strict=True))
    ]
    return JSONResponse({**_frame(outcome), "model": name, "data": data})


@router.get("/v1/models", response_model=answers.CardList, operation_id="list_models")
async def models(scorer: TheScorer) -> Response:
    """The reward models served here, and what each was made from."""
    cards = [_card(name, scorer) for name in (*scorer.engine.models, *scorer.engine.composites)]
    return JSONResponse({"object": "list", "data": cards})


@router.get("/v1/models/{id}", response_model=answers.CardBody, operation_id="get_model")
async def model(id: str, scorer: TheScorer) -> Response:  # noqa: A002 - the path says {id}
    """One reward model's card."""
    if id not in scorer.engine.composites:
        _model(scorer, id)
    return JSONResponse(_card(id, scorer))


@router.get("/v1/models/{id}/features", response_model=answers.FeatureList, operation_id="list_features")
async def features(
    id: str,  # noqa: A002 - the path says {id}
    scorer: TheScorer,
    offset: Annotated[int, Query(ge=0, le=10**6)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> Response:
    """The directions a model reads, a page at a time."""
    found = _model(scorer, id).features
    page = [_feature(feature) for feature in found[offset : offset + limit]]
    return JSONResponse({"object": "list", "total": len(found), "offset": offset, "data": page})


@router.get(
    "/v1/models/{id}/features/{latent}", response_model=answers.FeatureCard, operation_id="get_feature"
)
async def feature(id: str, latent: int, scorer: TheScorer) -> Response:  # noqa: A002 - the path says {id}
    """One direction of a model."""
    found = _model(scorer, id)
    if latent not in found.index:
        raise NotFound(f"model {id!r} does not read latent {latent}", "latent", "unknown_latent")
    return JSONResponse(_feature(found.features[found.index[latent]]))


@router.get("/v1/models/{id}/drift", response_model=answers.DriftAnswer, operation_id="get_drift")
async def drift(id: str, scorer: TheScorer) -> Response:  # noqa: A002 - the path says {id}
    """How far what each caller sent lately is from what the model was made on."""
    _model(scorer, id)
    return JSONResponse({"object": "drift", "model": id, "callers": scorer.drift.report(id)})


@router.get("/health", operation_id="health")
async def health() -> dict[str, str]:
    """The process is alive."""
    return {"status": "alive"}


@router.get("/ready", operation_id="ready")
async def ready(scorer: TheScorer) -> dict[str, str]:
    """Every model's probes passed and new work is taken."""
    if not scorer.ready:
        raise Closing("not taking new work", code="not_ready")
    return {"status": "ready"}


@router.get("/ping", operation_id="ping")
async def ping() -> dict[str, str]:
    """The same, as other servers name it."""
    return {"status": "alive"}


@router.get("/load", operation_id="load")
async def load(request: Request) -> dict[str, int]:
    """Requests being answered now, as vLLM's clients ask for it."""
    inside = request.app.state.registry.get_sample_value("sparserm_requests_in_flight")
    return {"server_load": int(inside or 1) - 1}


@router.get("/version", operation_id="version")
async def versions(scorer: TheScorer) -> dict[str, str]:
    """What runs here."""
    backbone = scorer.engine.backbone
    packages = {name: version(name) for name in ("sparserm", "torch", "transformers")}
    return {
        **packages,
        "backbone": backbone.name,
        "device": str(backbone.device),
        "dtype": str(backbone.dtype),
    }


@router.get("/metrics", operation_id="metrics", include_in_schema=False)
async def metrics(request: Request) -> Response:
    """Prometheus series."""
    return Response(generate_latest(request.app.state.registry), media_type=CONTENT_TYPE_LATEST)


def _frame(outcome: Outcome) -> dict[str, Any]:
    """The fields every scoring answer shares."""
    encoded = outcome.encoded
    return {
        "id": f"rm-{uuid.uuid4().hex}",
        "object": "list",
        "usage": {
            "prompt_tokens": sum(one.start for one in encoded),
            "response_tokens": sum(one.stop - one.start for one in encoded),
            "computed_tokens": sum(one.computed_tokens for one in outcome.scored),
        },
        "timings": {
            "encode_ms": round(outcome.encode_s * 1e3, 3),
            "wait_ms": round(outcome.wait_s * 1e3, 3),
            "device_ms": round(outcome.device_s * 1e3, 3),
        },
    }


def _reward_rows(inputs: list[int], outcome: Outcome) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for at, (which, encoded, scored) in enumerate(zip(inputs, outcome.encoded, outcome.scored, strict=True)):
        response = at - inputs.index(which)
        for score in scored.scores:
            rows.append({"index": len(rows), "input": which, "response": response, **_reward(score, encoded)})
    return rows


def _reward(score: Score, encoded: Encoded) -> dict[str, Any]:
    row: dict[str, Any] = {
        "model": score.model,
        "reward": score.reward,
        "uncertainty": score.uncertainty,
        "percentile": score.percentile,
        "distance": score.distance,
        "baseline_reward": score.baseline,
        "length_correction": score.length_correction,
        "penalty": score.penalty,
        "residual": score.residual,
        "steer": dict(score.steer) or None,
        "features": [_contribution(one) for one in score.features],
        "prompt_tokens": encoded.start,
        "response_tokens": encoded.stop - encoded.start,
        "truncated": encoded.truncated,
    }
    if score.parts:
        row["parts"] = [asdict(part) for part in score.parts]
    if score.clusters:
        row["clusters"] = [asdict(cluster) for cluster in score.clusters]
    if score.tokens is not None:
        row["tokens"] = [asdict(token) for token in score.tokens]
    return row


def _comparison(scorer: Scorer, index: int, pair: tuple[Score, Score], top_k: int) -> dict[str, Any]:
    chosen, rejected = pair
    margin = chosen.reward - rejected.reward
    correction = chosen.length_correction - rejected.length_correction
    penalty = chosen.penalty - rejected.penalty
    shares = scorer.engine.contrast(chosen, rejected, ALL)
    return {
        "index": index,
        "margin": margin,
        "probability": scorer.engine.probability(chosen.model, margin),
        "chosen_reward": chosen.reward,
        "rejected_reward": rejected.reward,
        "uncertainty": (chosen.uncertainty**2 + rejected.uncertainty**2) ** 0.5,
        "length_correction": correction,
        "penalty": penalty,
        "residual": margin - correction + penalty - sum(one.contribution for one in shares),
        "features": [_contribution(one) for one in shares[:top_k]],
    }


def _contribution(one: Contribution) -> dict[str, Any]:
    return {
        "model": one.model,
        "id": one.feature.latent,
        "sign": one.feature.sign,
        "label": one.feature.label,
        "label_score": one.feature.label_score,
        "url": one.feature.url,
        "contribution": one.contribution,
        "projection": one.projection,
        "activation": one.activation,
        "fired": one.fired,
    }


def _feature(feature: Feature) -> dict[str, Any]:
    described = asdict(feature)
    return {"id": described.pop("latent"), **described}


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
