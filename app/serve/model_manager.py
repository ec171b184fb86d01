"""Hot changes: models come, change and go while requests are answered.

A change is a new engine on the same backbone. It must pass its probes on the device before requests turn to
it; those that have begun end with the engine they began with, and then the old weights are free.
"""

import asyncio
from collections.abc import Callable
from functools import partial

from app.backbone.runtime.threads import apart
from app.errors import BundleError, Conflict, NotFound
from app.reward import loading
from app.reward.engine import Engine
from app.serve.batching.batcher import Batcher
from app.serve.batching.service import Scorer
from app.serve.metrics import Metrics
from app.settings import Settings


class Fleet:
    """The models of one server; one change at a time."""

    def __init__(
        self, scorer: Scorer, batcher: Batcher, metrics: Metrics, settings: Settings, default: str
    ) -> None:
        self._scorer = scorer
        self._batcher = batcher
        self._metrics = metrics
        self._settings = settings
        self._default = default
        self._changing = asyncio.Lock()
        self._describe()

    async def load(self, name: str) -> None:
        """Serve a bundle of the models folder that is not served yet."""
        if name in self._scorer.engine.models:
            raise Conflict(f"{name!r} is served already; reload it", "id", "already_served")
        await self._bring(name)

    async def reload(self, name: str) -> None:
        """Serve a bundle as it lies on disk now."""
        self._must_serve(name)
        await self._bring(name)

    async def unload(self, name: str) -> None:
        """Serve a model no longer."""
        self._must_serve(name)
        if name == self._default.partition("@")[0]:
            raise Conflict(f"{name!r} is the default model", "id", "is_default")
        await self._change(lambda engine: loading.without_model(engine, name))

    def _must_serve(self, name: str) -> None:
        known = self._scorer.engine.models
        if name not in known:
            raise NotFound(
                f"no model {name[:200]!r} is served; there are: {', '.join(known)}", "id", "unknown_model"
            )

    async def _bring(self, name: str) -> None:
        """Serve a bundle as it lies on disk, in place of what had its name."""
        await self._change(lambda engine: loading.with_model(engine, name, self._settings), name)

    async def _change(self, change: Callable[[Engine], Engine], *new: str) -> None:
        """Turn to a changed engine, once what is new in it has passed its probes."""
        async with self._changing:
            try:
                changed = await asyncio.to_thread(apart, partial(change, self._scorer.engine))
                if new:
                    await self._batcher.on_device(partial(changed.verify, *new))
            except BundleError as error:
                raise Conflict(str(error), "id", "bundle_refused") from error
            self._scorer.turn_to(changed)
            self._describe()

    def _describe(self) -> None:
        """Say in the metrics what is served."""
        self._metrics.info.clear()
        for name, model in self._scorer.engine.models.items():
            card = model.card
            self._metrics.info.labels(
                name, card.task, card.backbone, card.backbone_digest, card.sae_sha256, str(card.layer)
            ).set(1)
