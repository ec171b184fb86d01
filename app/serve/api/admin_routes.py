"""Routes for operators: health, readiness, load, versions, metrics, and loading and unloading of models."""

from importlib.metadata import version
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from app.errors import ServiceUnavailable
from app.serve.api import response_schemas
from app.serve.api.dependencies import ScoringServiceDependency
from app.serve.middleware.auth import require_admin
from app.serve.model_manager import ModelManager


def get_model_manager(request: Request) -> ModelManager:
    """Return the model manager of this server."""
    manager: ModelManager = request.app.state.model_manager
    return manager


ModelManagerDependency = Annotated[ModelManager, Depends(get_model_manager)]
router = APIRouter(responses=response_schemas.ERROR_RESPONSES)
admin_router = APIRouter(
    prefix="/v1/models/{id}",
    responses=response_schemas.ERROR_RESPONSES,
    dependencies=[Depends(require_admin)],
    tags=["admin"],
)


@router.get("/health", operation_id="health")
async def get_health() -> dict[str, str]:
    """Answer that the process is alive."""
    return {"status": "alive"}


@router.get("/ready", operation_id="ready")
async def get_readiness(service: ScoringServiceDependency) -> dict[str, str]:
    """Answer 200 if the probes of all models passed and new requests are accepted, otherwise 503."""
    if not service.ready:
        raise ServiceUnavailable("the server does not accept new requests", code="not_ready")
    return {"status": "ready"}


@router.get("/ping", operation_id="ping")
async def ping() -> dict[str, str]:
    """Answer that the process is alive, under the path of other inference servers."""
    return {"status": "alive"}


@router.get("/load", operation_id="load")
async def get_load(request: Request) -> dict[str, int]:
    """Return the number of other requests in flight, as vLLM does."""
    in_flight = request.app.state.registry.get_sample_value("sparserm_requests_in_flight")
    return {"server_load": int(in_flight or 1) - 1}


@router.get("/version", operation_id="version")
async def get_versions(service: ScoringServiceDependency) -> dict[str, str]:
    """Return the versions of the server and its libraries, and the backbone, device and dtype."""
    backbone = service.engine.backbone
    packages = {name: version(name) for name in ("sparserm", "torch", "transformers")}
    return {
        **packages,
        "backbone": backbone.name,
        "device": str(backbone.device),
        "dtype": str(backbone.dtype),
    }


@router.get("/metrics", operation_id="metrics", include_in_schema=False)
async def get_metrics(request: Request) -> Response:
    """Return the metrics in Prometheus format."""
    return Response(generate_latest(request.app.state.registry), media_type=CONTENT_TYPE_LATEST)


@admin_router.post("/load", response_model=response_schemas.ModelChangeResponse, operation_id="load_model")
async def load_model(id: str, manager: ModelManagerDependency) -> response_schemas.ModelChangeResponse:  # noqa: A002 - the path says {id}
    """Start to serve a bundle of the models folder."""
    await manager.load(id)
    return response_schemas.ModelChangeResponse(id=id, change="loaded")


@admin_router.post(
    "/reload", response_model=response_schemas.ModelChangeResponse, operation_id="reload_model"
)
async def reload_model(id: str, manager: ModelManagerDependency) -> response_schemas.ModelChangeResponse:  # noqa: A002 - the path says {id}
    """Load a served bundle again from disk; no request fails meanwhile."""
    await manager.reload(id)
    return response_schemas.ModelChangeResponse(id=id, change="reloaded")


@admin_router.post(
    "/unload", response_model=response_schemas.ModelChangeResponse, operation_id="unload_model"
)
async def unload_model(id: str, manager: ModelManagerDependency) -> response_schemas.ModelChangeResponse:  # noqa: A002 - the path says {id}
    """Stop serving a model."""
    await manager.unload(id)
    return response_schemas.ModelChangeResponse(id=id, change="unloaded")
