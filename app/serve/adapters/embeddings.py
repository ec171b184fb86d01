"""OpenAI's POST /v1/embeddings, as SGLang serves reward models and verl reads them: one raw reward each."""

import base64
import struct
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from app.serve.adapters.common import AdapterResult, adapter_route_class, score_items, parse_texts
from app.serve.api.error_handlers import vllm_error


class EmbeddingsRequest(BaseModel):
    """Rendered texts."""

    model: str | None = None
    input: str | Annotated[list[str], Field(min_length=1)]
    encoding_format: Literal["float", "base64"] = "float"


def parse_request(body: EmbeddingsRequest) -> list[tuple[str, str | None]]:
    """Each text; where its response begins, nobody says."""
    return [(one, None) for one in ([body.input] if isinstance(body.input, str) else body.input)]


def build_response(body: EmbeddingsRequest, heard: AdapterResult) -> dict[str, Any]:
    """The OpenAI client asks for base64 unless told otherwise: little-endian float32."""
    data = [
        {"object": "embedding", "index": i, "embedding": _vector(reward, body.encoding_format)}
        for i, reward in enumerate(heard.rewards)
    ]
    return {"object": "list", "data": data, "model": heard.model, "usage": heard.usage}


def _vector(reward: float, form: str) -> list[float] | str:
    return [reward] if form == "float" else base64.b64encode(struct.pack("<f", reward)).decode()


router = APIRouter(route_class=adapter_route_class(vllm_error), tags=["SGLang and OpenAI"])


@router.post("/v1/embeddings", response_model=dict[str, Any], operation_id="embeddings")
async def embeddings(body: EmbeddingsRequest, request: Request) -> Response:
    """Rewards as embeddings of width one, for verl with SGLang and the OpenAI client."""
    return JSONResponse(
        build_response(body, await score_items(request, parse_texts(request, parse_request(body)), body.model))
    )
