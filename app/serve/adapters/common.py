"""What all dialects share: texts are understood, responses scored, failures said as the dialect says them."""

import uuid
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from math import tanh
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from app.errors import InvalidInput, SparseRMError
from app.serve.adapters.chat_markup import EMPTY_RESPONSE, TemplatedTextMode, parse_templated_text
from app.serve.api.dependencies import resolve_model, score_request
from app.serve.api.error_handlers import from_http_exception, from_validation_error, retry_after_header
from app.serve.api.request_schemas import InputLocation, MessageInput
from app.types import EncodedItem, Explain, Item, Message, Score, ScoreOptions

ErrorWriter = Callable[[SparseRMError, Any], tuple[int, Any]]
EXPLANATION_TOP_K = 5


@dataclass(frozen=True, slots=True)
class AdapterResult:
    """What was scored, by which model, and how it came out."""

    model: str
    encoded: list[EncodedItem]
    scores: list[Score]

    @property
    def rewards(self) -> list[float]:
        """One number a response."""
        return [score.reward for score in self.scores]

    @property
    def tokens(self) -> int:
        """Tokens read, prompts and responses."""
        return sum(len(one.ids) for one in self.encoded)

    @property
    def usage(self) -> dict[str, int]:
        """The same for OpenAI-style answers."""
        return {"prompt_tokens": self.tokens, "total_tokens": self.tokens, "completion_tokens": 0}


def adapter_route_class(write_error: ErrorWriter) -> type[APIRoute]:
    """A route whose failures are said by `failed`; it gets the error, and the body as far as it was JSON."""

    class Spoken(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def spoken(request: Request) -> Response:
                try:
                    return await handle(request)
                except RequestValidationError as error:
                    found = from_validation_error(error)
                except HTTPException as error:
                    found = from_http_exception(error)
                except SparseRMError as error:
                    found = error
                request.app.state.metrics.errors.labels(found.code).inc()
                status, said = write_error(found, await _read_json(request))
                return JSONResponse(said, status, retry_after_header(found))

            return spoken

    return Spoken


def read_mode(request: Request) -> TemplatedTextMode:
    """How rendered text is read: by the URL's ?mode=, else by the setting."""
    asked = request.query_params.get("mode", request.app.state.settings.templated_text_mode)
    if asked not in list(TemplatedTextMode):
        raise InvalidInput(f"unknown mode; use one of {', '.join(TemplatedTextMode)}", "mode", "unknown_mode")
    return TemplatedTextMode(asked)


def parse_texts(request: Request, texts: Sequence[tuple[str, str | None]]) -> list[Item]:
    """Conversations out of (text, its prompt if known) pairs that went through a trainer's template."""
    how, route = read_mode(request), request.scope["route"].path
    found = [parse_templated_text(text, prompt, how) for text, prompt in texts]
    for one in found:
        request.app.state.metrics.rendered.labels(route, str(how), one.family).inc()
    return [one.item for one in found]


def split_conversation(turns: Sequence[MessageInput]) -> Item:
    """Messages of which the last is the response."""
    *asked, said = turns
    if said.role != "assistant":
        raise InvalidInput("the last message must be the assistant's", "messages", "no_response")
    return Item(tuple(Message(turn.role, turn.content) for turn in asked), said.content or EMPTY_RESPONSE)


def build_item(prompt: str, response: str) -> Item:
    """A question and an answer as a conversation; of a blank answer, a blank line is scored."""
    return Item((Message("user", prompt),), response or EMPTY_RESPONSE)


async def score_items(
    request: Request,
    exchanges: Sequence[Item],
    requested_model: str | None,
    *,
    allow_unknown_model: bool = False,
    top_k: int = 0,
) -> AdapterResult:
    """Score conversations with the model that is meant."""
    model = resolve_model(request, requested_model, allow_unknown=allow_unknown_model)
    ask = ScoreOptions((model,), Explain.FEATURES if top_k else Explain.NONE, top_k)
    placed = [(one, InputLocation(f"item {i}", f"item {i}", f"item {i}")) for i, one in enumerate(exchanges)]
    found = await score_request(request, placed, ask, truncate=True)
    items = found.raise_for_errors()
    return AdapterResult(model, [item.encoded for item in items], [item.scores[0] for item in items])


def explanation_rows(score: Score) -> list[dict[str, Any]]:
    """The features of a score, briefly."""
    return [
        {"id": one.feature.latent, "label": one.feature.label, "contribution": one.contribution}
        for one in score.features
    ]


def sigmoid(reward: float) -> float:
    """Between 0 and 1, for clients that expect a probability; never overflows."""
    return 0.5 * (1 + tanh(reward / 2))


async def _read_json(request: Request) -> Any:
    """The body, as far as it was read and JSON."""
    try:
        return await request.json()
    except (ValueError, HTTPException):
        return None


def new_id(kind: str) -> str:
    """An id as OpenAI-style answers carry one."""
    return f"{kind}-{uuid.uuid4().hex}"
