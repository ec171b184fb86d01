"""A server as a judge, asked for a window at a time. What else it does and remembers can move last digits."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from httpx import InvalidURL
from sparserm_client import AskFailed, Client

from app.errors import InvalidInput, SparseRMError
from app.offline.scorers import Facts, Found, Judge, Question, digest
from app.offline.tasks import Body, RowItems

UNREADABLE = frozenset({413, 422})
PLACE = frozenset({"index", "input", "response"})
HELLO_S, TRY_S, PATIENCE_S = 5.0, 600.0, 3600.0


@contextmanager
def remote(question: Question, url: str, key: str | None) -> Iterator[Judge]:
    """A server that is there now; should it go away for a while later, that is waited out."""
    try:
        with Client(url, key=key, patience_s=HELLO_S) as client:
            cards = _cards(client, question.model)
    except (AskFailed, InvalidURL) as error:
        raise SparseRMError(f"{url}: {error}") from error
    with Client(url, key=key, timeout_s=TRY_S, patience_s=PATIENCE_S) as client:
        yield Remote(client, question, cards)


class Remote:
    """A client and what it asks."""

    def __init__(self, client: Client, question: Question, cards: list[Any]) -> None:
        self.facts: Facts = {"reward model": digest(cards), "precision": "a server's"}
        self.depth = 1
        self._client = client
        self._question = question

    def prepare(self, items: Sequence[RowItems]) -> Sequence[RowItems]:
        """Nothing: the server does it."""
        return items

    def answer(self, prepared: Sequence[RowItems]) -> list[Found]:
        """One request; in halves where something in it is refused, down to the item that is."""
        if not prepared:
            return []
        try:
            return self._asked(prepared)
        except AskFailed as error:
            if error.status not in UNREADABLE:
                raise SparseRMError(str(error)) from error
            if len(prepared) == 1:
                return [InvalidInput(str(error))]
            middle = len(prepared) // 2
            return [*self.answer(prepared[:middle]), *self.answer(prepared[middle:])]

    def _asked(self, items: Sequence[RowItems]) -> list[Found]:
        question = self._question
        path, key = ("/v1/compare", "pairs") if question.paired else ("/v1/rewards", "inputs")
        body = {
            "model": question.model, "top_k": question.top_k, "length_control": question.length_control,
            key: [_sent(item, paired=question.paired) for item in items],
        }  # fmt: skip
        rows = iter(self._client.post(path, body)["data"])
        return [_heard([next(rows) for _ in (item[:1] if question.paired else item)]) for item in items]


def _cards(client: Client, name: str) -> list[Any]:
    """The card of a name, and of its heads."""
    card = client.get(f"/v1/models/{name.partition('@')[0]}")
    heads = card.get("composite", {}).get("weights", ())
    return [card, *(one for head in heads for one in _cards(client, head))]


def _sent(item: RowItems, *, paired: bool) -> dict[str, Any]:
    turns = [{"role": turn.role, "content": turn.content} for turn in item[0].messages]
    said = [exchange.response for exchange in item]
    if paired:
        return {"messages": turns, "chosen": said[0], "rejected": said[1]}
    return {"messages": turns, "responses": said}


def _heard(rows: list[Body]) -> Found:
    """What is said of an item, without its place in the answer."""
    for row in rows:
        if "error" in row:
            return SparseRMError(row["error"]["message"], code=row["error"]["code"])
    return [{name: value for name, value in row.items() if name not in PLACE} for row in rows]
