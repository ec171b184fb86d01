"""The interface of the scorers of an offline run.

`local.py` scores with an engine in this process, `ray_tasks.py` with engines on a Ray cluster, `remote.py`
with a server. All return rows as the HTTP API does, so the output does not depend on where it was computed.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from app.errors import SparseRMError
from app.offline.tasks import ResultRow, RowItems
from app.types import Explain, ScoreOptions

# Everything that determines the numbers of a run, by name. A run may only be resumed with an equal one.
Fingerprint = Mapping[str, Any]
# The results of one row's items, or why the row cannot be scored.
RowResult = Sequence[ResultRow] | SparseRMError


@dataclass(frozen=True, slots=True)
class ScoringRequest:
    """What to compute for every row: a reward for each item or, if `paired`, a comparison of two items."""

    model: str
    top_k: int = 5
    length_control: bool = False
    paired: bool = False

    @property
    def score_options(self) -> ScoreOptions:
        """The request as options of the engine; a comparison computes its features from the two scores."""
        explain = Explain.FEATURES if self.top_k else Explain.NONE
        return ScoreOptions((self.model,), explain, self.top_k, length_control=self.length_control)


class RowScorer(Protocol):
    """Scores the rows of a chunk, in two steps so that the next chunk is prepared meanwhile.

    `prefetch` is how many chunks are prepared before the first of them is scored.
    """

    fingerprint: Fingerprint
    prefetch: int

    def prepare(self, rows: Sequence[RowItems]) -> Any:
        """Do everything that needs no device, such as tokenizing; called from another thread."""

    def score(self, prepared: Any) -> list[RowResult]:
        """Return the result of each row of a prepared chunk."""


def json_sha256(value: Any) -> str:
    """Return a digest of a value that JSON can represent."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
