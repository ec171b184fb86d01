"""What Ray Serve lets an application decide: which replica gets a request, and how many there are."""

import math
from typing import Any

from ray.serve.config import AutoscalingContext
from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from app.serve.multiprocess.prefix_routing import Affinity, Texts, texts

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
    """Ray's hook: the replica that has read most of a request, unless it is far busier.

    It counts as busy from the moment it is chosen: Ray tells what was sent only after choosing for all that
    came with it.
    """

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
        ranked = self._affinity.ranked(_texts(pending_request), known)
        self._given(pending_request, ranked[0])
        return [[known[name]] for name in ranked]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, _: Any) -> None:
        """One of them has got it, maybe not the best."""
        self._given(pending_request, replica_id.unique_id)

    def on_request_completed(self, _: ReplicaID, internal_request_id: str) -> None:
        """It has answered."""
        self._over(internal_request_id)

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Some have come or gone."""
        super().update_replicas(replicas)
        self._affinity.keep([replica.replica_id.unique_id for replica in replicas])

    def _given(self, pending: PendingRequest, name: str) -> None:
        """A request is this one's alone until it is answered, or its caller goes before it is sent."""
        asked = pending.metadata.internal_request_id
        if self._asked.get(asked, ("", 0))[0] == name:
            return
        self._over(asked)
        self._asked[asked] = name, self._affinity.begin(_texts(pending), name)
        pending.future.add_done_callback(lambda sent: self._over(asked) if sent.cancelled() else None)

    def _over(self, asked: str) -> None:
        if asked in self._asked:
            self._affinity.end(*self._asked.pop(asked))


def _texts(pending: PendingRequest) -> Texts:
    return texts(pending.args[0].body)
