"""OpenRLHF's remote reward model: POST /get_reward, `--reward.remote_url http://HOST:PORT/get_reward`.

Its client accepts only lists and logs every key of `extra_logs`, so these keys are few, fixed and numeric.
It ignores other fields, so the explanations are in a field of their own.
"""

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from app.errors import SparseRMError
from app.scores import Score
from app.serve.adapters.common import (
    EXPLANATION_TOP_K,
    AdapterResult,
    build_explanation_rows,
    make_adapter_route_class,
    parse_texts,
    score_items,
    sigmoid,
)
from app.serve.api.error_handlers import build_error_body
from app.serve.api.serialization import build_body
from app.types import Item


class OpenRLHFRequest(BaseModel):
    """Request with templated conversations; `prompts`, if given, tell where each response starts."""

    query: list[str] | str
    prompts: list[str] | str | None = None
    model: str | None = None


class OpenRLHFResponse(BaseModel):
    """Response; `scores` are percentiles of the rewards from 0 to 1, for the trainer's dynamic filtering."""

    rewards: list[float]
    scores: list[float]
    extra_logs: dict[str, list[float]]
    explanations: list[list[dict[str, Any]]]


def parse_request(request: Request, body: OpenRLHFRequest) -> list[Item]:
    """Return the items of templated texts, some or all with their prompts."""
    texts = [body.query] if isinstance(body.query, str) else body.query
    known_prompts = [body.prompts] if isinstance(body.prompts, str) else body.prompts or []
    prompts: list[str | None] = [*known_prompts[: len(texts)], *[None] * (len(texts) - len(known_prompts))]
    return parse_texts(request, texts, prompts)


def build_response(_: OpenRLHFRequest, result: AdapterResult) -> dict[str, Any]:
    """Return lists as long as the query and in its order."""
    scores = result.scores
    return build_body(
        OpenRLHFResponse,
        rewards=result.rewards,
        scores=[_percentile_score(score) for score in scores],
        extra_logs={
            "rm/uncertainty": [score.uncertainty for score in scores],
            "rm/distance": [score.distance for score in scores],
            "rm/truncated": [float(item.encoded.truncated) for item in result.items],
        },
        explanations=[build_explanation_rows(score) for score in scores],
    )


def _percentile_score(score: Score) -> float:
    """Return a score's percentile from 0 to 1; a composite has none and gets a sigmoid of its reward."""
    return sigmoid(score.reward) if score.percentile is None else score.percentile / 100


def build_error(error: SparseRMError, _: Any) -> tuple[int, Any]:
    """Return an error in OpenAI's format: the client retries after any error, and people read the log."""
    return error.status, build_error_body(error)


router = APIRouter(route_class=make_adapter_route_class(build_error), tags=["OpenRLHF"])


@router.post("/get_reward", response_model=OpenRLHFResponse, operation_id="openrlhf_get_reward")
async def get_reward(body: OpenRLHFRequest, request: Request) -> Response:
    """Return rewards for OpenRLHF; an empty query, which some versions send as a probe, gets empty lists."""
    items = parse_request(request, body)
    if not items:
        return JSONResponse(build_response(body, AdapterResult("", [])))
    result = await score_items(request, items, body.model, top_k=EXPLANATION_TOP_K)
    return JSONResponse(build_response(body, result))
