"""POST /slime for slime and miles: `--rm-type remote_rm --rm-url http://HOST:PORT/slime`.

The body of the response is the reward, a bare number. With `?key=reward` it is an object with that key, for
`--reward-key reward`.
"""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from app.errors import SparseRMError
from app.serve.adapters.chat_markup import EMPTY_RESPONSE
from app.serve.adapters.common import (
    EXPLANATION_TOP_K,
    AdapterResult,
    build_explanation_rows,
    make_adapter_route_class,
    parse_texts,
    score_items,
    to_messages,
)
from app.serve.api.error_handlers import build_error_body
from app.serve.api.request_schemas import MessageInput
from app.types import Item


class SlimeRequest(BaseModel):
    """Request with one sample: a prompt, as templated text or messages, and the policy's response."""

    prompt: str | Annotated[list[MessageInput], Field(min_length=1)]
    response: str


def parse_request(request: Request, body: SlimeRequest) -> list[Item]:
    """Return the item of the sample."""
    if isinstance(body.prompt, str):
        return parse_texts(request, [body.prompt + body.response], [body.prompt])
    return [Item(to_messages(body.prompt), body.response or EMPTY_RESPONSE)]


def build_response(key: str | None, result: AdapterResult) -> Any:
    """Return the reward, or an object that holds it under a key, with uncertainty and top features."""
    [score] = result.scores
    if key is None:
        return score.reward
    return {"uncertainty": score.uncertainty, "top": build_explanation_rows(score), key: score.reward}


def build_error(error: SparseRMError, _: Any) -> tuple[int, Any]:
    """Return an error in OpenAI's format: the client retries after any error, and people read the log."""
    return error.status, build_error_body(error)


router = APIRouter(route_class=make_adapter_route_class(build_error), tags=["slime and miles"])


@router.post("/slime", response_model=float | dict[str, Any], operation_id="slime_reward")
async def compute_reward(
    body: SlimeRequest,
    request: Request,
    key: Annotated[
        str | None, Query(pattern=r"^\w{1,64}$", description="Name of the reward in an object.")
    ] = None,
) -> Response:
    """Return the reward of one sample, for slime and miles."""
    items = parse_request(request, body)
    result = await score_items(request, items, None, top_k=EXPLANATION_TOP_K if key else 0)
    return JSONResponse(build_response(key, result))
