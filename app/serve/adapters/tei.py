"""POST /predict and GET /info of text-embeddings-inference (TEI).

`inputs` is a text, a list of two texts, which are one prompt and its response, or a list of lists of one or
two texts.
Scores go through a sigmoid unless `raw_scores` is true.
"""

from importlib.metadata import version
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from app.errors import SparseRMError
from app.serve.adapters.common import (
    AdapterResult,
    build_item,
    make_adapter_route_class,
    parse_texts,
    score_items,
    sigmoid,
)
from app.serve.api.dependencies import ScoringServiceDependency, resolve_model
from app.serve.api.error_handlers import build_tei_error
from app.types import Item, ScoreOptions

LABEL = "LABEL_0"
TextOrPair = Annotated[list[str], Field(min_length=1, max_length=2)]


class TeiPredictRequest(BaseModel):
    """Request with a text, a pair, or a batch of texts and pairs."""

    inputs: str | TextOrPair | Annotated[list[TextOrPair], Field(min_length=1)]
    raw_scores: bool = False
    model: str | None = None


def parse_request(request: Request, body: TeiPredictRequest) -> list[Item]:
    """Return an item per text or pair."""
    return [
        build_item(*texts) if len(texts) == 2 else parse_texts(request, texts)[0]
        for texts in _read_texts_and_pairs(body)
    ]


def build_response(body: TeiPredictRequest, result: AdapterResult) -> Any:
    """Return the labels of one input, or a list of such lists for a batch."""
    rows = [
        [{"score": reward if body.raw_scores else sigmoid(reward), "label": LABEL}]
        for reward in result.rewards
    ]
    is_batch = not isinstance(body.inputs, str) and isinstance(body.inputs[0], list)
    return rows if is_batch else rows[0]


def build_error(error: SparseRMError, _: Any) -> tuple[int, Any]:
    """Return an error in TEI's format."""
    return build_tei_error(error)


def _read_texts_and_pairs(body: TeiPredictRequest) -> list[list[str]]:
    if isinstance(body.inputs, str):
        return [[body.inputs]]
    batch = [texts for texts in body.inputs if isinstance(texts, list)]
    return batch or [[text for text in body.inputs if isinstance(text, str)]]


router = APIRouter(route_class=make_adapter_route_class(build_error), tags=["TEI"])


@router.post("/predict", response_model=list[Any], operation_id="tei_predict")
async def predict(body: TeiPredictRequest, request: Request) -> Response:
    """Return rewards as predictions, for clients of TEI."""
    result = await score_items(request, parse_request(request, body), body.model)
    return JSONResponse(build_response(body, result))


@router.get("/info", operation_id="tei_info")
async def get_info(request: Request, service: ScoringServiceDependency) -> dict[str, Any]:
    """Return what the server serves and its limits, as TEI's clients expect it."""
    settings, backbone = request.app.state.settings, service.engine.backbone
    name = resolve_model(request, None)
    service.engine.validate_options(ScoreOptions((name,)))
    return {
        "model_id": name,
        "model_sha": backbone.digest,
        "model_dtype": str(backbone.dtype).removeprefix("torch."),
        "model_type": {"classifier": {"id2label": {"0": LABEL}, "label2id": {LABEL: 0}}},
        "max_concurrent_requests": 512,
        "max_input_length": settings.max_tokens,
        "max_batch_tokens": settings.max_batch_tokens,
        "max_client_batch_size": settings.max_items,
        "auto_truncate": True,
        "version": version("sparserm"),
    }
