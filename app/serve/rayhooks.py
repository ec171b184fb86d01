"""What Ray Serve lets an application decide: which replica gets a request, and how many there are."""

import math
from typing import Any

from ray.serve.config import AutoscalingContext
from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from app.serve.affinity import Affinity, Texts, texts

BACKLOG = "backlog_tokens"


class ByBacklog:
    """As many replicas as tokens wait, at so many each."""

    def __init__(self, tokens: int) -> None:
        self._tokens = tokens

    def __call__(self, context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
        """How many there should be."""
        waiting = sum((context.aggregated_metrics or {}).get(BACKLOG, {}).values())
        return max(1, math.ceil(waiting / self._tokens)), {}


class ByPrompt(RequestRouter):  # type: ignore[misc] # Ray is not typed
    """Ray's hook: the replica that has read most of a request, unless it is far busier."""

    def initialize_state(self, **_: Any) -> None:
        """Nothing is known yet."""
        self._affinity = Affinity()
        self._asked: dict[str, tuple[str, int]] = {}

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """The replicas, the best first."""
        if pending_request is None:
            return [candidate_replicas]
        known = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        return [[known[name]] for name in self._affinity.ranked(_texts(pending_request), known)]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, _: Any) -> None:
        """One of them has got it."""
        new = self._affinity.begin(_texts(pending_request), replica_id.unique_id)
        self._asked[pending_request.metadata.internal_request_id] = replica_id.unique_id, new

    def on_request_completed(self, _: ReplicaID, internal_request_id: str) -> None:
        """It has answered."""
        if internal_request_id in self._asked:
            self._affinity.end(*self._asked.pop(internal_request_id))

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Some have come or gone."""
        super().update_replicas(replicas)
        self._affinity.keep([replica.replica_id.unique_id for replica in replicas])


def _texts(pending: PendingRequest) -> Texts:
    return texts(pending.args[0].body)
