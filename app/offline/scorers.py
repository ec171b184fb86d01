"""Who scores the rows of a data set.

`resident.py` is the engine in this process, `spread.py` engines on a Ray cluster, `remote.py` a server.
All answer in the bodies of the API, so what comes of a row does not depend on who was asked.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from app.errors import SparseRMError
from app.offline.tasks import Body, RowItems
from app.types import Explain, ScoreOptions

Facts = Mapping[str, Any]
Found = Sequence[Body] | SparseRMError


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked about every item: rewards, or where `paired` a comparison of its two exchanges."""

    model: str
    top_k: int = 5
    length_control: bool = False
    paired: bool = False

    @property
    def ask(self) -> ScoreOptions:
        """The same for the engine; a comparison finds its features itself."""
        explain = Explain.FEATURES if self.top_k and not self.paired else Explain.NONE
        return ScoreOptions((self.model,), explain, self.top_k, length_control=self.length_control)


class Judge(Protocol):
    """Items in, bodies of answers out.

    `facts` are what decides the numbers, `depth` how many windows are prepared before the first is answered.
    """

    facts: Facts
    depth: int

    def prepare(self, items: Sequence[RowItems]) -> Any:
        """Everything that can be done before it is an item's turn."""

    def answer(self, prepared: Any) -> list[Found]:
        """What is found about each item, or why nothing is."""


def digest(what: Any) -> str:
    """Of anything JSON can say."""
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
