"""The queue of jobs that wait for the device: fair between requests and callers, and starvation-free.

Weighted fair queueing: a job's priority is the queue's virtual time at its arrival, plus the tokens of its
own request up to and including it, times the number of requests its caller has in the queue. So ten thousand
items of one request do not delay a single item of another, and a hundred requests of one caller do not delay
another caller's only one. Priority is fixed at arrival, so no request starves. Responses to one prompt, from
any caller, share one priority up to MAX_GROUP_TOKENS, so that a batch computes the prompt once for all.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Any

from app.backbone.packing import PackedTokenCounter, TokenIds
from app.errors import Overloaded, SparseRMError
from app.scores import ScoredItem
from app.serve.batching.request_context import RequestContext
from app.types import EncodedItem, ScoreJob

URGENT_WEIGHT = 16
MAX_GROUP_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class FailedItem:
    """An item that was not scored, the error, and how long the item waited for the device."""

    encoded: EncodedItem
    error: SparseRMError
    wait_s: float = 0.0


@dataclass(slots=True, eq=False)
class QueuedJob:
    """A job in the queue, the device that shall score it, and the future its caller awaits.

    `dequeued` is set once the job is in a batch or its caller has disconnected.
    """

    job: ScoreJob
    device: Any
    future: asyncio.Future[ScoredItem | FailedItem]
    deadline: float
    queued_at: float = field(default_factory=time.monotonic)
    dequeued: bool = False
    prompt_ids: TokenIds = field(init=False)

    def __post_init__(self) -> None:
        self.prompt_ids = self.job.encoded.prompt_ids

    @property
    def num_tokens(self) -> int:
        """The item's full length, shared prefixes included."""
        return len(self.job.encoded.ids)

    @property
    def num_unshared_tokens(self) -> int:
        """The tokens the item adds to a batch that already computes its prompt."""
        return self.num_tokens - len(self.prompt_ids)

    def resolve(self, result: ScoredItem | SparseRMError, started_at: float) -> None:
        """Hand the result to the caller; `started_at` is when the job's batch began."""
        if self.future.done():
            return
        wait_s = started_at - self.queued_at
        if isinstance(result, ScoredItem):
            self.future.set_result(replace(result, wait_s=wait_s))
        else:
            self.future.set_result(FailedItem(self.job.encoded, result, wait_s))


@dataclass(slots=True)
class PromptGroup:
    """Responses to one prompt that are scored one after the other: their priority and their tokens."""

    priority: float
    sequence_number: int
    num_tokens: int


class FairQueue:
    """Jobs ordered by priority; `num_new_tokens` counts every prompt once, `num_tokens` once per response."""

    def __init__(self) -> None:
        self.num_items = 0
        self.num_tokens = 0
        self.num_new_tokens = 0
        self._jobs_per_prompt: Counter[TokenIds] = Counter()
        self._groups: dict[TokenIds, PromptGroup] = {}
        self._heap: list[tuple[float, int, int, QueuedJob]] = []
        self._virtual_time = 0.0
        self._requests_per_key: Counter[str] = Counter()
        self._sequence_numbers = count()

    def add(self, jobs: Sequence[QueuedJob], context: RequestContext) -> None:
        """Add the jobs of one request; call `remove` with the same jobs when the request ends."""
        self._requests_per_key[context.fairness_key] += 1
        cost_per_token, priority = self._cost_per_token(context), self._virtual_time
        for job in jobs:
            priority += job.num_tokens * cost_per_token
            group = self._join_group(job, priority)
            order = (min(priority, group.priority), group.sequence_number, next(self._sequence_numbers))
            heappush(self._heap, (*order, job))
            self._update_counts(job, 1)

    def _join_group(self, job: QueuedJob, priority: float) -> PromptGroup:
        """Add the job to the open group of its prompt, or open a new group with the job's own priority."""
        group = self._groups.get(job.prompt_ids)
        if not group or group.num_tokens + job.num_unshared_tokens > MAX_GROUP_TOKENS:
            group = PromptGroup(priority, next(self._sequence_numbers), len(job.prompt_ids))
            self._groups[job.prompt_ids] = group
        group.num_tokens += job.num_unshared_tokens
        return group

    def remove(self, jobs: Sequence[QueuedJob], context: RequestContext) -> int:
        """End a request and drop its jobs that are still queued; return how many those were."""
        self._requests_per_key[context.fairness_key] -= 1
        if not self._requests_per_key[context.fairness_key]:
            del self._requests_per_key[context.fairness_key]
        dropped = [job for job in jobs if not job.dequeued]
        for job in dropped:
            self._dequeue(job)
        if 2 * self.num_items < len(self._heap):
            self._heap = [entry for entry in self._heap if not entry[-1].dequeued]
            heapify(self._heap)
        return len(dropped)

    def peek(self) -> QueuedJob | None:
        """Return the next job without taking it, or None if the queue is empty."""
        while self._heap and self._heap[0][-1].dequeued:
            heappop(self._heap)
        return self._heap[0][-1] if self._heap else None

    def pop(self) -> QueuedJob:
        """Take the next job; IndexError if the queue is empty."""
        if self.peek() is None:
            raise IndexError("the queue is empty")
        priority, _, _, job = heappop(self._heap)
        self._virtual_time = max(self._virtual_time, priority)
        self._dequeue(job)
        return job

    def tokens_ahead(self, tokens: int, context: RequestContext) -> int:
        """Count queued tokens that come before the last token of a request of `tokens` that arrives now."""
        priority = self._virtual_time + tokens * self._cost_per_token(context, arriving=1)
        return sum(
            job.num_tokens
            for job_priority, _, _, job in self._heap
            if job_priority < priority and not job.dequeued
        )

    def _cost_per_token(self, context: RequestContext, *, arriving: int = 0) -> float:
        """Return what each token adds to a priority; `arriving` is the number of requests not queued yet."""
        weight = URGENT_WEIGHT if context.urgent else 1
        return (self._requests_per_key[context.fairness_key] + arriving) / weight

    def _dequeue(self, job: QueuedJob) -> None:
        job.dequeued = True
        self._update_counts(job, -1)

    def _update_counts(self, job: QueuedJob, change: int) -> None:
        """Count a job that is added (+1) or removed (-1); a prompt counts once while it has any job."""
        is_only_job = self._jobs_per_prompt[job.prompt_ids] == max(0, -change)
        self._jobs_per_prompt[job.prompt_ids] += change
        if not self._jobs_per_prompt[job.prompt_ids]:
            del self._jobs_per_prompt[job.prompt_ids], self._groups[job.prompt_ids]
        self.num_items += change
        self.num_tokens += change * job.num_tokens
        self.num_new_tokens += change * (job.num_tokens if is_only_job else job.num_unshared_tokens)


def pop_batch(queue: FairQueue, max_new_tokens: int, max_group_tokens: int) -> list[QueuedJob]:
    """Take jobs in order until their new tokens reach `max_new_tokens`; the first job is always taken.

    Further responses to the last prompt may fill the batch up to `max_group_tokens`. All jobs of a batch are
    for one device: while models change, jobs of the old and of the new engine are not mixed. Jobs past their
    deadline fail without being computed.
    """
    batch: list[QueuedJob] = []
    counter = PackedTokenCounter()
    now = time.monotonic()
    while job := queue.peek():
        ids = job.job.encoded.ids
        if job.deadline < now:
            error = Overloaded("the timeout passed before this was scored", code="deadline_exceeded")
            queue.pop().resolve(error, now)
            continue
        if batch:
            limit = max_group_tokens if job.prompt_ids == batch[-1].prompt_ids else max_new_tokens
            if (
                job.device is not batch[0].device
                or counter.num_tokens + counter.count_new_tokens(ids) > limit
            ):
                break
        counter.add(ids)
        batch.append(queue.pop())
    return batch
