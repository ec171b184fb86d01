"""POST /rerank, /v1/rerank, /v2/rerank: responses to one prompt, best first.

`documents` is the field of vLLM, Cohere, Jina and infinity, `texts` that of TEI. Scores go through a sigmoid,
as in these servers, unless `raw_scores` is true or `use_activation` false; that does not change the order.
"""

from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from app.errors import InvalidInput, SparseRMError
from app.serve.adapters.common import (
    AdapterResult,
    build_item,
    make_adapter_route_class,
    new_id,
    score_items,
    sigmoid,
)
from app.serve.api.error_handlers import build_tei_error, build_vllm_error
from app.types import Item


class RerankDocument(BaseModel):
    """A response as an object with a text."""

    text: str


class RerankRequest(BaseModel):
    """Request with a prompt and responses to it."""

    model: str | None = None
    query: str
    documents: Annotated[list[str | RerankDocument], Field(min_length=1)] | None = None
    texts: Annotated[list[str], Field(min_length=1)] | None = None
    top_n: Annotated[int, Field(ge=0)] | None = None
    return_documents: bool = True
    return_text: bool = False
    raw_scores: bool = False
    use_activation: bool | None = None
    activation: bool | None = None


def parse_request(_: Request, body: RerankRequest) -> list[Item]:
    """Return an item per response."""
    return [build_item(body.query, text) for text in _response_texts(body)]


def build_response(body: RerankRequest, result: AdapterResult) -> Any:
    """Return the responses with the best first, each with its index in the request."""
    raw = body.raw_scores or False in (body.use_activation, body.activation)
    scores = [reward if raw else sigmoid(reward) for reward in result.rewards]
    order = sorted(range(len(scores)), key=lambda index: -scores[index])
    texts = _response_texts(body)
    if body.texts is not None:
        return _build_tei_rows(order, scores, texts if body.return_text else None)
    rows = [
        {"index": index, "relevance_score": scores[index]}
        | ({"document": {"text": texts[index]}} if body.return_documents else {})
        for index in order[: body.top_n or len(order)]
    ]
    return {
        "id": new_id("rerank"), "object": "rerank", "model": result.model, "results": rows,
        "usage": result.usage, "meta": {"billed_units": {"search_units": 1}},
    }  # fmt: skip


def build_error(error: SparseRMError, body: Any) -> tuple[int, Any]:
    """Return an error in TEI's format if the request has TEI's field `texts`, otherwise in vLLM's."""
    return build_tei_error(error) if isinstance(body, dict) and "texts" in body else build_vllm_error(error)


def _response_texts(body: RerankRequest) -> list[str]:
    if body.texts is not None:
        return body.texts
    if body.documents is None:
        raise InvalidInput("give documents (or texts, as for TEI)", "documents", "missing")
    return [document if isinstance(document, str) else document.text for document in body.documents]


def _build_tei_rows(order: list[int], scores: list[float], texts: list[str] | None) -> list[dict[str, Any]]:
    return [
        {"index": index, **({"text": texts[index]} if texts is not None else {}), "score": scores[index]}
        for index in order
    ]


router = APIRouter(
    route_class=make_adapter_route_class(build_error), tags=["vLLM, Cohere, Jina, infinity, TEI"]
)


@router.post("/rerank", response_model=dict[str, Any] | list[dict[str, Any]], operation_id="rerank")
@router.post("/v1/rerank", response_model=dict[str, Any] | list[dict[str, Any]], operation_id="v1_rerank")
@router.post("/v2/rerank", response_model=dict[str, Any] | list[dict[str, Any]], operation_id="v2_rerank")
async def rerank(body: RerankRequest, request: Request) -> Response:
    """Return responses to a prompt, best first."""
    result = await score_items(request, parse_request(request, body), body.model)
    return JSONResponse(build_response(body, result))
