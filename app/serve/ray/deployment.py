"""The same app on Ray Serve: replicas with an engine each, and one front that passes requests on to them.

Ray's proxy shows a router the head of a request, and a prompt stands in its body. So the front reads that,
and Ray's own hook for routers sends what begins alike to the replica that has read it. The front is a
deployment behind Ray's proxy, or, for `sparserm serve --ray`, this process itself.
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
from app.errors import Closing, Conflict, DeviceLost, SourceError
from app.serve import process
from app.serve.middleware import access_log
from app.serve.middleware.auth import refuse_exposure
from app.serve.multiprocess.gateway import Asked, Said, create_front
from app.serve.ray.cluster import joined
from app.serve.ray.request_router import BACKLOG, ByBacklog, ByPrompt
from app.settings import Settings

NAME = "sparserm"
MOST_ONGOING = 16_384  # the batcher says when it is too much
TRIES, AWAY = 2, 503
CONSTRUCTOR_TRIES = 3


class Plan(BaseModel):
    """What stands under `args` in a Serve config; `settings` are those of docs/settings.md in small letters.

    Where `most_replicas` is more than `replicas`, there is one for every `backlog_tokens` that wait.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    settings: dict[str, Any] = Field(default_factory=dict)
    replicas: int = Field(1, ge=1)
    most_replicas: int = Field(0, ge=0)
    backlog_tokens: int = Field(50_000, ge=1)
    gpus: float = Field(0.0, ge=0)
    cpus: float = Field(1.0, gt=0)


class Replica:
    """An engine and the app around it."""

    async def __init__(self, settings: Settings) -> None:  # type: ignore[misc] # Ray awaits it
        threads.stay_awake_briefly()
        memory.keep()
        from app.reward import loading
        from app.serve.application import create_app

        access_log.begin(settings.log_level)
        engine = await asyncio.to_thread(threads.apart, lambda: loading.engine(settings, lambda *_: None))
        self._app = create_app(engine, settings, CollectorRegistry())
        self._running = AsyncExitStack()
        await self._running.enter_async_context(self._app.router.lifespan_context(self._app))
        heard: Any = ProxyHeadersMiddleware(cast("Any", self._app), trusted_hosts="*")
        self._way = httpx.ASGITransport(heard, raise_app_exceptions=False)

    async def ask(self, asked: Asked) -> Said:
        """What the app answers."""
        url = httpx.URL("http://replica", raw_path=asked.target)
        request = httpx.Request(asked.method, url, headers=list(asked.headers), content=asked.body)
        response = await self._way.handle_async_request(request)
        headers = tuple((name.lower(), value) for name, value in response.headers.raw)
        return Said(response.status_code, headers, await response.aread())

    async def tell(self, asked: Asked) -> tuple[str, Said]:
        """The same, and who says so."""
        return serve.get_replica_context().replica_tag, await self.ask(asked)

    async def check_health(self) -> None:
        """A replica whose device is lost is replaced."""
        if self._app.state.lost:
            raise DeviceLost("the device is lost")

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What replicas are added and taken away by."""
        found = self._app.state.registry.get_sample_value("sparserm_backlog_tokens")
        return {BACKLOG: found or 0.0}

    async def __del__(self) -> None:
        await self._running.aclose()


class Replicas:
    """Ray's replicas as peers behind the front."""

    def __init__(self, handle: DeploymentHandle[Any], number: int) -> None:
        self._handle = handle
        self.number = number

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Ray runs them."""
        yield

    async def one(self, asked: Asked) -> Said:
        """The answer of one of them; another one's if that ends meanwhile."""
        said: Said | None = None
        for _ in range(TRIES):
            try:
                said = await self._handle.ask.remote(asked)
            except RayActorError:
                continue
            if said.status != AWAY:
                return said
        if said is None:
            raise Closing("no replica is ready", code="not_ready")
        return said

    async def each(self, asked: Asked) -> Mapping[str, Said]:
        """The answers of all that are there."""
        told = await self._handle.broadcast("tell", asked).results_async(return_exceptions=True)
        return dict(one for one in told if not isinstance(one, BaseException))

    async def change(self, asked: Asked) -> Said:  # noqa: ARG002 - as all peers are asked
        """Replicas come and go, and each begins with what is deployed."""
        raise Conflict("on Ray, models change by deploying again", "id", "wants_deployment")


@serve.ingress()
class Gateway:
    """The front as a deployment."""

    def __init__(self, replicas: DeploymentHandle[Any], settings: Settings, number: int) -> None:
        access_log.begin(settings.log_level)
        self._peers = Replicas(replicas, number)
        self._settings = settings

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_front(self._peers, self._settings)


def build(plan: Plan) -> serve.Application:
    """The application that a Serve config names: `import_path: app.serve.ray.deployment:build`."""
    settings = Settings(**plan.settings)
    refuse_exposure(settings.model_copy(update={"host": "Ray's proxy"}))
    return application(settings, plan)


def application(settings: Settings, plan: Plan) -> serve.Application:
    """One front, and so many replicas behind it."""
    front = serve.deployment(Gateway, name="front", ray_actor_options={"num_cpus": 0}, **_patient(settings))
    return front.bind(replicas(settings, plan), settings, plan.replicas)


def replicas(settings: Settings, plan: Plan) -> serve.Application:
    """So many replicas; each has as many threads as processors if it is not said."""
    if not settings.threads:
        settings = settings.model_copy(update={"threads": max(1, int(plan.cpus))})
    replica = serve.deployment(
        Replica,
        name="replica",
        ray_actor_options={"num_gpus": plan.gpus, "num_cpus": plan.cpus},
        max_constructor_retry_count=CONSTRUCTOR_TRIES,
        request_router_config=RequestRouterConfig(request_router_class=ByPrompt),
        **_size(plan),
        **_patient(settings),
    )
    return replica.bind(settings)


def run(settings: Settings) -> int:
    """Serve until a signal; the exit status."""
    cores = len(os.sched_getaffinity(0))
    with joined(max(cores, settings.workers)):
        serve.start(proxy_location=ProxyLocation.Disabled)
        each = settings.model_copy(update={"threads": 0, "models_dir": settings.models_dir.absolute()})
        try:
            handle = serve.run(replicas(each, _plan(settings, cores)), name=NAME, route_prefix=None)
        except RuntimeError as error:
            raise SourceError(f"Ray could not start the replicas: {error}") from error
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)  # uvicorn hears them, and passes them on when it has ended
        status = process.run(create_front(Replicas(handle, settings.workers), settings), settings)
        serve.shutdown()
    return status


def _patient(settings: Settings) -> dict[str, Any]:
    """What our front and our batcher know better than Ray: how much is too much, and how long to wait."""
    return {"max_ongoing_requests": MOST_ONGOING, "graceful_shutdown_timeout_s": settings.drain_timeout_s}


def _plan(settings: Settings, cores: int) -> Plan:
    """A GPU a replica if there are any, else its share of the cores."""
    gpus = settings.device in ("auto", "cuda") and ray.cluster_resources().get("GPU", 0)
    share = max(1, (settings.threads or cores) // settings.workers)
    return Plan(replicas=settings.workers, gpus=1 if gpus else 0, cpus=share)


def _size(plan: Plan) -> dict[str, Any]:
    """A number of replicas, or two between which Ray chooses."""
    if plan.most_replicas <= plan.replicas:
        return {"num_replicas": plan.replicas}
    policy = AutoscalingPolicy(policy_function=ByBacklog, policy_kwargs={"tokens": plan.backlog_tokens})
    config = AutoscalingConfig(min_replicas=plan.replicas, max_replicas=plan.most_replicas, policy=policy)
    return {"autoscaling_config": config}
