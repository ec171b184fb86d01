"""OpenRLHF's remote reward model: POST /get_reward, `--reward.remote_url http://HOST:PORT/get_reward`.

Its client takes lists only, logs every key of `extra_logs` (so those are few, fixed and numeric) and ignores
what else stands beside them: there the reasons go.
"""

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from app.errors import SparseRMError
from app.serve.adapters.common import (
    EXPLANATION_TOP_K,
    AdapterResult,
    adapter_route_class,
    score_items,
    parse_texts,
    explanation_rows,
    sigmoid,
)
from app.serve.api.error_handlers import error_body
from app.types import Score


class OpenRLHFRequest(BaseModel):
    """Rendered conversations; where prompts come along, they tell where each response begins."""

    query: list[str] | str
    prompts: list[str] | str | None = None
    model: str | None = None


class OpenRLHFResponse(BaseModel):
    """What the trainer reads; `scores` rank the rewards from 0 to 1, for its dynamic filtering."""

    rewards: list[float]
    scores: list[float]
    extra_logs: dict[str, list[float]]
    explanations: list[list[dict[str, Any]]]


def parse_request(body: OpenRLHFRequest) -> list[tuple[str, str | None]]:
    """Each text, and its prompt if it came along."""
    texts = [body.query] if isinstance(body.query, str) else body.query
    given = [body.prompts] if isinstance(body.prompts, str) else body.prompts or []
    prompts: list[str | None] = [*given[: len(texts)], *[None] * (len(texts) - len(given))]
    return list(zip(texts, prompts, strict=True))


def build_response(heard: AdapterResult) -> dict[str, Any]:
    """Lists as long as the query, in its order."""
    scores = heard.scores
    return {
        "rewards": heard.rewards,
        "scores": [_rank_score(score) for score in scores],
        "extra_logs": {
            "rm/uncertainty": [score.uncertainty for score in scores],
            "rm/distance": [score.distance for score in scores],
            "rm/truncated": [float(one.truncated) for one in heard.encoded],
        },
        "explanations": [explanation_rows(score) for score in scores],
    }


def _rank_score(score: Score) -> float:
    return sigmoid(score.reward) if score.percentile is None else score.percentile / 100


def error_response(error: SparseRMError, _body: Any) -> tuple[int, Any]:
    """Its client retries whatever goes wrong; people read the log."""
    return error.status, error_body(error)


router = APIRouter(route_class=adapter_route_class(error_response), tags=["OpenRLHF"])


@router.post("/get_reward", response_model=OpenRLHFResponse, operation_id="openrlhf_get_reward")
async def get_reward(body: OpenRLHFRequest, request: Request) -> Response:
    """Rewards for OpenRLHF; an empty query, which some versions send to spare servers, gets empty lists."""
    texts = parse_request(body)
    if not texts:
        return JSONResponse(build_response(AdapterResult("", [], [])))
    return JSONResponse(
        build_response(
            await score_items(request, parse_texts(request, texts), body.model, top_k=EXPLANATION_TOP_K)
        )
    )
