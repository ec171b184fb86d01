"""What operators ask: alive, ready, how busy, which versions, the metrics; and changes of what is served."""

from importlib.metadata import version
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from app.errors import ServiceUnavailable
from app.serve.api import response_schemas
from app.serve.api.dependencies import TheScorer
from app.serve.middleware.auth import require_admin
from app.serve.model_manager import ModelManager


def fleet(request: Request) -> ModelManager:
    """What changes the models of this server."""
    found: ModelManager = request.app.state.model_manager
    return found


TheFleet = Annotated[ModelManager, Depends(fleet)]
router = APIRouter(responses=response_schemas.ERROR_RESPONSES)
admin_router = APIRouter(
    prefix="/v1/models/{id}",
    responses=response_schemas.ERROR_RESPONSES,
    dependencies=[Depends(require_admin)],
    tags=["admin"],
)


@router.get("/health", operation_id="health")
async def health() -> dict[str, str]:
    """The process is alive."""
    return {"status": "alive"}


@router.get("/ready", operation_id="ready")
async def ready(scorer: TheScorer) -> dict[str, str]:
    """Every model's probes passed and new work is taken."""
    if not scorer.ready:
        raise ServiceUnavailable("not taking new work", code="not_ready")
    return {"status": "ready"}


@router.get("/ping", operation_id="ping")
async def ping() -> dict[str, str]:
    """The process is alive, as other servers name it."""
    return {"status": "alive"}


@router.get("/load", operation_id="load")
async def load(request: Request) -> dict[str, int]:
    """Requests being answered now, as vLLM's clients ask for it."""
    inside = request.app.state.registry.get_sample_value("sparserm_requests_in_flight")
    return {"server_load": int(inside or 1) - 1}


@router.get("/version", operation_id="version")
async def versions(scorer: TheScorer) -> dict[str, str]:
    """What runs here."""
    backbone = scorer.engine.backbone
    packages = {name: version(name) for name in ("sparserm", "torch", "transformers")}
    return {
        **packages,
        "backbone": backbone.name,
        "device": str(backbone.device),
        "dtype": str(backbone.dtype),
    }


@router.get("/metrics", operation_id="metrics", include_in_schema=False)
async def metrics(request: Request) -> Response:
    """Prometheus series."""
    return Response(generate_latest(request.app.state.registry), media_type=CONTENT_TYPE_LATEST)


@admin_router.post("/load", response_model=response_schemas.ModelChangeResponse, operation_id="load_model")
async def load_model(id: str, fleet: TheFleet) -> response_schemas.ModelChangeResponse:  # noqa: A002 - the path says {id}
    """Serve a bundle of the models folder that is not served yet."""
    await fleet.load(id)
    return response_schemas.ModelChangeResponse(id=id, change="loaded")


@admin_router.post(
    "/reload", response_model=response_schemas.ModelChangeResponse, operation_id="reload_model"
)
async def reload_model(id: str, fleet: TheFleet) -> response_schemas.ModelChangeResponse:  # noqa: A002 - the path says {id}
    """Serve a bundle as it lies on disk now; no request fails meanwhile."""
    await fleet.reload(id)
    return response_schemas.ModelChangeResponse(id=id, change="reloaded")


@admin_router.post(
    "/unload", response_model=response_schemas.ModelChangeResponse, operation_id="unload_model"
)
async def unload_model(id: str, fleet: TheFleet) -> response_schemas.ModelChangeResponse:  # noqa: A002 - the path says {id}
    """Serve a model no longer."""
    await fleet.unload(id)
    return response_schemas.ModelChangeResponse(id=id, change="unloaded")
