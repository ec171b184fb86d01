"""Loading, reloading and unloading models while requests are served.

A change builds a new engine on the same backbone. The new model's probes must pass on the device before new
requests use that engine. Requests that have started finish with the old engine; then its weights are freed.
"""

import asyncio
from collections.abc import Callable
from functools import partial

from app.backbone.runtime.threads import run_in_temporary_thread
from app.errors import BundleError, Conflict, NotFound
from app.reward import loading
from app.reward.engine import Engine
from app.serve.batching.batcher import Batcher
from app.serve.batching.service import ScoringService
from app.serve.metrics import Metrics
from app.settings import Settings


class ModelManager:
    """Changes the models that one server serves, one change at a time."""

    def __init__(
        self,
        service: ScoringService,
        batcher: Batcher,
        metrics: Metrics,
        settings: Settings,
        default_model: str,
    ) -> None:
        self._service = service
        self._batcher = batcher
        self._metrics = metrics
        self._settings = settings
        self._default_model = default_model
        self._lock = asyncio.Lock()
        self._publish_model_info()

    async def load(self, name: str) -> None:
        """Serve a bundle of the models folder that is not served yet."""
        if name in self._service.engine.models:
            raise Conflict(f"{name!r} is served already; reload it", "id", "already_served")
        await self._load_from_disk(name)

    async def reload(self, name: str) -> None:
        """Replace a served model by its bundle as it is on disk now."""
        self._check_is_served(name)
        await self._load_from_disk(name)

    async def unload(self, name: str) -> None:
        """Stop serving a model; the default model cannot be unloaded."""
        self._check_is_served(name)
        if name == self._default_model.partition("@")[0]:
            raise Conflict(f"{name!r} is the default model", "id", "is_default")
        await self._switch_engine(lambda engine: loading.remove_model(engine, name))

    def _check_is_served(self, name: str) -> None:
        names = self._service.engine.models
        if name not in names:
            raise NotFound(
                f"no model {name[:200]!r} is served; there are: {', '.join(names)}", "id", "unknown_model"
            )

    async def _load_from_disk(self, name: str) -> None:
        await self._switch_engine(lambda engine: loading.add_model(engine, name, self._settings), name)

    async def _switch_engine(self, change: Callable[[Engine], Engine], *new_names: str) -> None:
        """Switch to the changed engine, after the probes of its new models have passed on the device."""
        async with self._lock:
            try:
                engine = await asyncio.to_thread(
                    run_in_temporary_thread, partial(change, self._service.engine)
                )
                if new_names:
                    await self._batcher.run_on_device(partial(engine.verify, *new_names))
            except BundleError as error:
                raise Conflict(str(error), "id", "bundle_refused") from error
            self._service.switch_engine(engine)
            self._publish_model_info()

    def _publish_model_info(self) -> None:
        """Set the metric that lists the served models."""
        self._metrics.model_info.clear()
        for name, model in self._service.engine.models.items():
            card = model.card
            self._metrics.model_info.labels(
                name, card.task, card.backbone, card.backbone_digest, card.sae_sha256, str(card.layer)
            ).set(1)
