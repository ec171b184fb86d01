"""OpenAI's POST /v1/embeddings: each text's embedding is a vector with its raw reward.

SGLang serves reward models this way, and verl reads them so.
"""

import base64
import struct
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from app.serve.adapters.common import AdapterResult, make_adapter_route_class, parse_texts, score_items
from app.serve.api.error_handlers import build_vllm_error
from app.types import Item


class EmbeddingsRequest(BaseModel):
    """Request with templated texts."""

    model: str | None = None
    input: str | Annotated[list[str], Field(min_length=1)]
    encoding_format: Literal["float", "base64"] = "float"


def parse_request(request: Request, body: EmbeddingsRequest) -> list[Item]:
    """Return the items of templated texts whose prompts are unknown."""
    return parse_texts(request, [body.input] if isinstance(body.input, str) else body.input)


def build_response(body: EmbeddingsRequest, result: AdapterResult) -> dict[str, Any]:
    """Return vectors of one number, or, as the OpenAI client requests, base64 of little-endian float32."""
    rows = [
        {"object": "embedding", "index": index, "embedding": _encode_vector(reward, body.encoding_format)}
        for index, reward in enumerate(result.rewards)
    ]
    return {"object": "list", "data": rows, "model": result.model, "usage": result.usage}


def _encode_vector(reward: float, encoding_format: str) -> list[float] | str:
    return [reward] if encoding_format == "float" else base64.b64encode(struct.pack("<f", reward)).decode()


router = APIRouter(route_class=make_adapter_route_class(build_vllm_error), tags=["SGLang and OpenAI"])


@router.post("/v1/embeddings", response_model=dict[str, Any], operation_id="embeddings")
async def embeddings(body: EmbeddingsRequest, request: Request) -> Response:
    """Return rewards as embeddings of width one, for verl with SGLang and the OpenAI client."""
    result = await score_items(request, parse_request(request, body), body.model)
    return JSONResponse(build_response(body, result))
