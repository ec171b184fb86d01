"""text-embeddings-inference: POST /predict and GET /info.

`inputs` is a text, a list of two (one pair of prompt and response!), or a list of lists of one or two texts.
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
    adapter_route_class,
    build_item,
    score_items,
    parse_texts,
    sigmoid,
)
from app.serve.api.dependencies import TheScorer, resolve_model
from app.serve.api.error_handlers import tei_error
from app.types import ScoreOptions

LABEL = "LABEL_0"
Group = Annotated[list[str], Field(min_length=1, max_length=2)]


class Predict(BaseModel):
    """A text, a pair, or a batch of texts and pairs."""

    inputs: str | Group | Annotated[list[Group], Field(min_length=1)]
    raw_scores: bool = False
    model: str | None = None


def parse_request(body: Predict) -> list[list[str]]:
    """Groups of one text or a pair."""
    if isinstance(body.inputs, str):
        return [[body.inputs]]
    groups = [one for one in body.inputs if isinstance(one, list)]
    return groups or [[one for one in body.inputs if isinstance(one, str)]]


def write(body: Predict, heard: AdapterResult) -> Any:
    """A list of labels, or a list of such lists for a batch."""
    rows = [
        [{"score": reward if body.raw_scores else sigmoid(reward), "label": LABEL}]
        for reward in heard.rewards
    ]
    batch = not isinstance(body.inputs, str) and isinstance(body.inputs[0], list)
    return rows if batch else rows[0]


def failed(error: SparseRMError, _body: Any) -> tuple[int, Any]:
    """TEI's own words."""
    return tei_error(error)


router = APIRouter(route_class=adapter_route_class(failed), tags=["TEI"])


@router.post("/predict", response_model=list[Any], operation_id="tei_predict")
async def predict(body: Predict, request: Request) -> Response:
    """Rewards as predictions, for clients of TEI."""
    exchanges = [
        build_item(*group) if len(group) == 2 else parse_texts(request, [(group[0], None)])[0]
        for group in parse_request(body)
    ]
    return JSONResponse(write(body, await score_items(request, exchanges, body.model)))


@router.get("/info", operation_id="tei_info")
async def info(request: Request, scorer: TheScorer) -> dict[str, Any]:
    """What is served, as TEI's clients ask for it."""
    settings, backbone = request.app.state.settings, scorer.engine.backbone
    name = resolve_model(request, None)
    scorer.engine.validate_options(ScoreOptions((name,)))
    return {
        "model_id": name,
        "model_sha": backbone.digest,
        "model_dtype": str(backbone.dtype).removeprefix("torch."),
        "model_type": {"classifier": {"id2label": {"0": LABEL}, "label2id": {LABEL: 0}}},
        "max_concurrent_requests": 512,
        "max_input_length": settings.max_tokens,
        "max_batch_tokens": settings.batch_tokens,
        "max_client_batch_size": settings.max_items,
        "auto_truncate": True,
        "version": version("sparserm"),
    }
