"""Shared by all adapters: parsing of templated text, scoring, and errors in the format of the dialect."""

import uuid
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from math import tanh
from time import time
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from app.errors import InvalidInput, SparseRMError
from app.scores import Score, ScoredItem
from app.serve.adapters.chat_markup import EMPTY_RESPONSE, TemplatedTextMode, parse_templated_text
from app.serve.api.dependencies import resolve_model, score_request
from app.serve.api.error_handlers import (
    build_retry_after_header,
    convert_http_exception,
    convert_validation_error,
)
from app.serve.api.request_schemas import InputLocation, MessageInput
from app.types import Explain, Item, Message, ScoreOptions

ErrorBuilder = Callable[[SparseRMError, Any], tuple[int, Any]]
EXPLANATION_TOP_K = 5


@dataclass(frozen=True, slots=True)
class AdapterResult:
    """The items of a request, all scored, and the model that scored them."""

    model: str
    items: list[ScoredItem]

    @property
    def scores(self) -> list[Score]:
        """One score per item."""
        return [item.scores[0] for item in self.items]

    @property
    def rewards(self) -> list[float]:
        """One reward per item."""
        return [score.reward for score in self.scores]

    @property
    def usage(self) -> dict[str, int]:
        """The tokens of prompts and responses in OpenAI's format."""
        tokens = sum(len(item.encoded.ids) for item in self.items)
        return {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0}


def make_adapter_route_class(build_error: ErrorBuilder) -> type[APIRoute]:
    """Return a route class whose errors `build_error` formats.

    `build_error` gets the error and the request's body, or None if the body is not JSON, and returns the
    status and the body of the response.
    """

    class AdapterRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def handle_with_errors(request: Request) -> Response:
                try:
                    return await handle(request)
                except RequestValidationError as exception:
                    error = convert_validation_error(exception)
                except HTTPException as exception:
                    error = convert_http_exception(exception)
                except SparseRMError as exception:
                    error = exception
                request.app.state.metrics.errors.labels(error.code).inc()
                status, body = build_error(error, await _read_json(request))
                return JSONResponse(body, status, build_retry_after_header(error))

            return handle_with_errors

    return AdapterRoute


def read_mode(request: Request) -> TemplatedTextMode:
    """Return how to treat templated text: the URL's ?mode=, or else the setting."""
    mode = request.query_params.get("mode", request.app.state.settings.templated_text_mode)
    if mode not in list(TemplatedTextMode):
        raise InvalidInput(f"unknown mode; use one of {', '.join(TemplatedTextMode)}", "mode", "unknown_mode")
    return TemplatedTextMode(mode)


def parse_texts(
    request: Request, texts: Sequence[str], prompts: Sequence[str | None] | None = None
) -> list[Item]:
    """Parse texts that went through a chat template into items; `prompts` are their prompts if known."""
    mode, route = read_mode(request), request.scope["route"].path
    pairs = zip(texts, prompts or [None] * len(texts), strict=True)
    parsed_texts = [parse_templated_text(text, prompt, mode) for text, prompt in pairs]
    for parsed in parsed_texts:
        request.app.state.metrics.rendered.labels(route, str(mode), parsed.family).inc()
    return [parsed.item for parsed in parsed_texts]


def to_messages(messages: Sequence[MessageInput]) -> tuple[Message, ...]:
    """Return the messages of a request as messages of `app.types`."""
    return tuple(Message(message.role, message.content) for message in messages)


def split_conversation(messages: Sequence[MessageInput]) -> Item:
    """Return the item whose response is the last message, or EMPTY_RESPONSE if that is empty."""
    *prompt, response = messages
    if response.role != "assistant":
        raise InvalidInput("the last message must be the assistant's", "messages", "no_response")
    return Item(to_messages(prompt), response.content or EMPTY_RESPONSE)


def build_item(prompt: str, response: str) -> Item:
    """Return the item of one user message and a response; an empty one is replaced by EMPTY_RESPONSE."""
    return Item((Message("user", prompt),), response or EMPTY_RESPONSE)


async def score_items(
    request: Request,
    items: Sequence[Item],
    requested_model: str | None,
    *,
    allow_unknown_model: bool = False,
    top_k: int = 0,
) -> AdapterResult:
    """Score items with one model, and explain them with the `top_k` largest contributions, or not at all.

    `requested_model` is the model in the request's body; see `resolve_model` for how the model is chosen.
    """
    model = resolve_model(request, requested_model, allow_unknown=allow_unknown_model)
    options = ScoreOptions((model,), Explain.FEATURES if top_k else Explain.NONE, top_k)
    locations = [InputLocation(*[f"item {index}"] * 3) for index in range(len(items))]
    located_items = list(zip(items, locations, strict=True))
    result = await score_request(request, located_items, options, truncate=True)
    return AdapterResult(model, result.raise_for_errors())


def build_explanation_rows(score: Score) -> list[dict[str, Any]]:
    """Return id, label and contribution of a score's features."""
    return [
        {"id": share.feature.latent, "label": share.feature.label, "contribution": share.contribution}
        for share in score.features
    ]


def sigmoid(reward: float) -> float:
    """Map a reward to a number between 0 and 1, for clients that expect a probability; never overflows."""
    return 0.5 * (1 + tanh(reward / 2))


async def _read_json(request: Request) -> Any:
    """Return the request's body, or None if it cannot be read or is not JSON."""
    try:
        return await request.json()
    except (ValueError, HTTPException):
        return None


def build_list(result: AdapterResult, id_prefix: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return rows in OpenAI's list format, as vLLM's routes return them."""
    return {
        "id": new_id(id_prefix), "object": "list", "created": int(time()), "model": result.model,
        "data": rows, "usage": result.usage,
    }  # fmt: skip


def new_id(prefix: str) -> str:
    """Return a random id in OpenAI's format."""
    return f"{prefix}-{uuid.uuid4().hex}"
