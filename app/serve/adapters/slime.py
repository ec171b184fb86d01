"""slime and miles: POST /slime, `--rm-type remote_rm --rm-url http://HOST:PORT/slime`.

The whole answer is the reward, a bare number; with `?key=reward` it is an object, for `--reward-key reward`.
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
    adapter_route_class,
    score_items,
    parse_texts,
    explanation_rows,
)
from app.serve.api.error_handlers import error_body
from app.serve.api.request_schemas import MessageInput
from app.types import Item, Message


class SlimeSample(BaseModel):
    """One sample: a prompt, rendered or in messages, and what the policy said."""

    prompt: str | Annotated[list[MessageInput], Field(min_length=1)]
    response: str


def parse_request(body: SlimeSample) -> tuple[str, str] | Item:
    """A text with its prompt, or a conversation."""
    if isinstance(body.prompt, str):
        return body.prompt + body.response, body.prompt
    return Item(
        tuple(Message(turn.role, turn.content) for turn in body.prompt), body.response or EMPTY_RESPONSE
    )


def build_response(heard: AdapterResult, key: str | None) -> Any:
    """A number, or an object that holds it under a key."""
    [score] = heard.scores
    if key is None:
        return score.reward
    return {"uncertainty": score.uncertainty, "top": explanation_rows(score), key: score.reward}


def failed(error: SparseRMError, _body: Any) -> tuple[int, Any]:
    """Its client retries whatever goes wrong; people read the log."""
    return error.status, error_body(error)


router = APIRouter(route_class=adapter_route_class(failed), tags=["slime and miles"])


@router.post("/slime", response_model=float | dict[str, Any], operation_id="slime_reward")
async def reward(
    body: SlimeSample,
    request: Request,
    key: Annotated[
        str | None, Query(pattern=r"^\w{1,64}$", description="Name of the reward in an object.")
    ] = None,
) -> Response:
    """The reward of one sample, for slime and miles."""
    found = parse_request(body)
    exchanges = [found] if isinstance(found, Item) else parse_texts(request, [found])
    return JSONResponse(
        build_response(await score_items(request, exchanges, None, top_k=EXPLANATION_TOP_K if key else 0), key)
    )
