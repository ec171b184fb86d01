"""The server on Ray Serve: replicas with an engine each, and a gateway that forwards requests to them.

Ray's proxy shows a request router only the head of a request, but the prompt is in the body. So the gateway
reads the body, and PrefixRequestRouter, which Ray calls, sends requests with a common prefix to the same
replica. The gateway is a deployment behind Ray's proxy or, for `sparserm serve --ray`, this process itself.
"""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, cast

import httpx
import ray
from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, ProxyLocation, RequestRouterConfig
from ray.serve.handle import DeploymentHandle
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from app.backbone.runtime import memory, threads
from app.errors import Conflict, DeviceLost, ServiceUnavailable, SourceError
from app.serve import process
from app.serve.middleware import access_log
from app.serve.middleware.auth import require_keys_beyond_loopback
from app.serve.multiprocess.gateway import ProxiedRequest, UpstreamResponse, create_gateway
from app.serve.ray.cluster import connect
from app.serve.ray.request_router import QUEUED_TOKENS, PrefixRequestRouter, QueuedTokensPolicy
from app.settings import Settings

APPLICATION_NAME = "sparserm"
# High, because admission control in the replica decides how many requests are too many.
MAX_ONGOING_REQUESTS = 16_384
# Limits how many replicas a request can end if it crashes each replica that reads it.
MAX_ATTEMPTS = 2
UNAVAILABLE = 503
MAX_CONSTRUCTOR_ATTEMPTS = 3


class RayDeploymentConfig(BaseModel):
    """The `args` of the application in a Serve config.

    `settings` are those of docs/settings.md in lower case and without prefix. If `max_replicas` is more than
    `replicas`, the number of replicas varies between them: one for every `tokens_per_replica` queued tokens.
    `gpus` and `cpus` are those of each replica.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    settings: dict[str, Any] = Field(default_factory=dict)
    replicas: int = Field(1, ge=1)
    max_replicas: int = Field(0, ge=0)
    tokens_per_replica: int = Field(50_000, ge=1)
    gpus: float = Field(0.0, ge=0)
    cpus: float = Field(1.0, gt=0)


class Replica:
    """The deployment that serves requests: an engine and the server's app."""

    async def __init__(self, settings: Settings) -> None:  # type: ignore[misc] # Ray awaits it
        threads.limit_openmp_spinning()
        memory.keep_freed_memory()
        from app.reward import loading
        from app.serve.application import create_app

        access_log.configure_logging(settings.log_level)
        engine = await asyncio.to_thread(
            threads.run_in_temporary_thread, lambda: loading.load_engine(settings, lambda *_: None)
        )
        self._app = create_app(engine, settings, CollectorRegistry())
        self._running = AsyncExitStack()
        await self._running.enter_async_context(self._app.router.lifespan_context(self._app))
        with_caller: Any = ProxyHeadersMiddleware(cast("Any", self._app), trusted_hosts="*")
        self._transport = httpx.ASGITransport(with_caller, raise_app_exceptions=False)

    async def send(self, request: ProxiedRequest) -> UpstreamResponse:
        """Return the app's response to a request."""
        url = httpx.URL("http://replica", raw_path=request.target)
        response = await self._transport.handle_async_request(
            httpx.Request(request.method, url, headers=list(request.headers), content=request.body)
        )
        headers = tuple((name.lower(), value) for name, value in response.headers.raw)
        return UpstreamResponse(response.status_code, headers, await response.aread())

    async def send_with_name(self, request: ProxiedRequest) -> tuple[str, UpstreamResponse]:
        """Return this replica's name and its response to a request."""
        return serve.get_replica_context().replica_tag, await self.send(request)

    async def check_health(self) -> None:
        """Raise if the device is lost, so that Ray replaces the replica."""
        if self._app.state.device_lost:
            raise DeviceLost("the device is lost")

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Return the queued tokens, which decide how many replicas there are."""
        tokens = self._app.state.registry.get_sample_value("sparserm_backlog_tokens")
        return {QUEUED_TOKENS: tokens or 0.0}

    async def __del__(self) -> None:
        await self._running.aclose()


class ReplicaPool:
    """The replicas as a ServerPool for the gateway; Ray starts and replaces them."""

    def __init__(self, handle: DeploymentHandle[Any], size: int) -> None:
        self._handle = handle
        self.size = size

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Do nothing: Ray runs the replicas."""
        yield

    async def forward(self, request: ProxiedRequest) -> UpstreamResponse:
        """Return the response of the replica that Ray's router chooses, or of another one if it ends."""
        response: UpstreamResponse | None = None
        for _ in range(MAX_ATTEMPTS):
            try:
                response = await self._handle.send.remote(request)
            except RayActorError:
                continue
            if response.status != UNAVAILABLE:
                return response
        if response is None:
            raise ServiceUnavailable("no replica is ready; try again later", code="not_ready")
        return response

    async def broadcast(self, request: ProxiedRequest) -> Mapping[str, UpstreamResponse]:
        """Return the responses of all replicas that are running."""
        call = self._handle.broadcast("send_with_name", request)
        results = await call.results_async(return_exceptions=True)
        return dict(result for result in results if not isinstance(result, BaseException))

    async def change_models(self, request: ProxiedRequest) -> UpstreamResponse:  # noqa: ARG002 - as in ServerPool
        """Refuse: Ray starts replicas at any time, and each serves the models that were deployed."""
        raise Conflict("on Ray, models are changed by deploying again", "id", "wants_deployment")


@serve.ingress()
class GatewayDeployment:
    """The deployment of the gateway behind Ray's proxy."""

    def __init__(self, replicas: DeploymentHandle[Any], settings: Settings, size: int) -> None:
        access_log.configure_logging(settings.log_level)
        self._pool = ReplicaPool(replicas, size)
        self._settings = settings

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_gateway(self._pool, self._settings)


def build(config: RayDeploymentConfig) -> serve.Application:
    """Return the application of a Serve config with `import_path: app.serve.ray.deployment:build`."""
    settings = Settings(**config.settings)
    require_keys_beyond_loopback(settings.model_copy(update={"host": "Ray's proxy"}))
    return build_application(settings, config)


def build_application(settings: Settings, config: RayDeploymentConfig) -> serve.Application:
    """Return the gateway with the replicas behind it."""
    gateway = serve.deployment(
        GatewayDeployment, name="gateway", ray_actor_options={"num_cpus": 0}, **_request_limits(settings)
    )
    return gateway.bind(build_replicas(settings, config), settings, config.replicas)


def build_replicas(settings: Settings, config: RayDeploymentConfig) -> serve.Application:
    """Return the replicas; each has as many threads as CPUs unless the settings say otherwise."""
    if not settings.threads:
        settings = settings.model_copy(update={"threads": max(1, int(config.cpus))})
    replica = serve.deployment(
        Replica,
        name="replica",
        ray_actor_options={"num_gpus": config.gpus, "num_cpus": config.cpus},
        max_constructor_retry_count=MAX_CONSTRUCTOR_ATTEMPTS,
        request_router_config=RequestRouterConfig(request_router_class=PrefixRequestRouter),
        **_scaling(config),
        **_request_limits(settings),
    )
    return replica.bind(settings)


def run(settings: Settings) -> int:
    """Serve with this process as the gateway until a signal; return the exit code."""
    cores = len(os.sched_getaffinity(0))
    with connect(max(cores, settings.workers)):
        serve.start(proxy_location=ProxyLocation.Disabled)
        update = {"threads": 0, "models_dir": settings.models_dir.absolute()}
        replicas = build_replicas(settings.model_copy(update=update), _local_config(settings, cores))
        try:
            handle = serve.run(replicas, name=APPLICATION_NAME, route_prefix=None)
        except RuntimeError as error:
            raise SourceError(f"Ray could not start the replicas: {error}") from error
        for number in (signal.SIGTERM, signal.SIGINT):
            # uvicorn handles them, and raises them again after its shutdown; then they must do nothing.
            signal.signal(number, lambda *_: None)
        exit_code = process.run(create_gateway(ReplicaPool(handle, settings.workers), settings), settings)
        serve.shutdown()
    return exit_code


def _request_limits(settings: Settings) -> dict[str, Any]:
    """Return options with which the server, not Ray, limits its requests and its time to drain."""
    return {
        "max_ongoing_requests": MAX_ONGOING_REQUESTS,
        "graceful_shutdown_timeout_s": settings.drain_timeout_s,
    }


def _local_config(settings: Settings, cores: int) -> RayDeploymentConfig:
    """Return a config whose replicas have a GPU each if there are any, else a share of the cores."""
    gpus = settings.device in ("auto", "cuda") and ray.cluster_resources().get("GPU", 0)
    cpus = max(1, (settings.threads or cores) // settings.workers)
    return RayDeploymentConfig(replicas=settings.workers, gpus=1 if gpus else 0, cpus=cpus)


def _scaling(config: RayDeploymentConfig) -> dict[str, Any]:
    """Return the options for a fixed number of replicas, or for autoscaling."""
    if config.max_replicas <= config.replicas:
        return {"num_replicas": config.replicas}
    policy = AutoscalingPolicy(
        policy_function=QueuedTokensPolicy, policy_kwargs={"tokens_per_replica": config.tokens_per_replica}
    )
    autoscaling = AutoscalingConfig(
        min_replicas=config.replicas, max_replicas=config.max_replicas, policy=policy
    )
    return {"autoscaling_config": autoscaling}
