"""Policies for Ray Serve: which replica gets a request, and how many replicas run."""

import math
from typing import Any

from ray.serve.config import AutoscalingContext
from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from app.serve.multiprocess.prefix_routing import PrefixRouter, RequestTexts, hash_texts

QUEUED_TOKENS = "queued_tokens"


class QueuedTokensPolicy:
    """Ray's autoscaling policy: one replica for every `tokens_per_replica` tokens queued in all replicas."""

    def __init__(self, tokens_per_replica: int) -> None:
        self._tokens_per_replica = tokens_per_replica

    def __call__(self, context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
        """Return the number of replicas, and an empty state."""
        queued = sum((context.aggregated_metrics or {}).get(QUEUED_TOKENS, {}).values())
        return max(1, math.ceil(queued / self._tokens_per_replica)), {}


class PrefixRequestRouter(RequestRouter):  # type: ignore[misc] # Ray is not typed
    """Ray's request router: ranks replicas by prefix and load, as the gateway's workers are ranked.

    A replica counts as busy from the moment it is chosen. Ray reports a request as routed only after it has
    chosen replicas for all requests that arrived together, which would all go to the same one.
    """

    def initialize_state(self, **_: Any) -> None:
        """Start without any request; called by Ray."""
        self._router = PrefixRouter()
        self._assignments: dict[str, tuple[str, int]] = {}

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Return the replicas in the order in which Ray should try them."""
        if pending_request is None:
            return [candidate_replicas]
        replicas = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        ranked = self._router.rank(_texts(pending_request), replicas)
        self._assign(pending_request, ranked[0])
        return [[replicas[name]] for name in ranked]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, _: Any) -> None:
        """Record which replica got the request; it may not be the one ranked first."""
        self._assign(pending_request, replica_id.unique_id)

    def on_request_completed(self, _: ReplicaID, internal_request_id: str) -> None:
        """Record that a request has been answered."""
        self._release(internal_request_id)

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Record the replicas that are running."""
        super().update_replicas(replicas)
        self._router.set_servers([replica.replica_id.unique_id for replica in replicas])

    def _assign(self, pending: PendingRequest, name: str) -> None:
        """Assign a request to one replica until it is answered, or cancelled before it is sent."""
        request_id = pending.metadata.internal_request_id
        if self._assignments.get(request_id, ("", 0))[0] == name:
            return
        self._release(request_id)
        self._assignments[request_id] = name, self._router.start_request(_texts(pending), name)
        pending.future.add_done_callback(
            lambda future: self._release(request_id) if future.cancelled() else None
        )

    def _release(self, request_id: str) -> None:
        if request_id in self._assignments:
            self._router.finish_request(*self._assignments.pop(request_id))


def _texts(pending: PendingRequest) -> RequestTexts:
    return hash_texts(pending.args[0].body)
