"""Scores rows on a server, one request for each chunk.

The server's other requests and its prefix cache can change the last digits of a reward.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from httpx import InvalidURL
from sparserm_client import Client, RequestFailed

from app.errors import InvalidInput, SparseRMError
from app.offline.scorers import Fingerprint, RowResult, RowScorer, ScoringRequest, json_sha256
from app.offline.tasks import ResultRow, RowItems

# Statuses of a request whose content is at fault: too large, or with a bad field.
REJECTED_STATUSES = frozenset({413, 422})
# Fields of a response row that say where in the request its item was.
POSITION_FIELDS = frozenset({"index", "input", "response"})
# A server that does not answer the first request is an error; later requests are retried much longer.
CONNECT_RETRY_FOR_S = 5.0
REQUEST_TIMEOUT_S = 600.0
REQUEST_RETRY_FOR_S = 3600.0


@contextmanager
def open_remote_scorer(request: ScoringRequest, url: str, key: str | None) -> Iterator[RowScorer]:
    """Connect to a server that answers now; later requests are retried for up to an hour."""
    try:
        with Client(url, key=key, retry_for_s=CONNECT_RETRY_FOR_S) as client:
            cards = _get_cards(client, request.model)
    except (RequestFailed, InvalidURL) as error:
        raise SparseRMError(f"{url}: {error}") from error
    with Client(url, key=key, timeout_s=REQUEST_TIMEOUT_S, retry_for_s=REQUEST_RETRY_FOR_S) as client:
        yield RemoteScorer(client, request, cards)


def reload_model(url: str, key: str | None, model: str) -> None:
    """Make a server reload a model's bundle; it must use the same models folder as this process."""
    try:
        with Client(url, key=key) as client:
            client.post(f"/v1/models/{model}/reload", {})
    except (RequestFailed, InvalidURL) as error:
        raise SparseRMError(f"{url}: {error}") from error


class RemoteScorer:
    """Scores rows through a client; `cards` describe the models that the request names."""

    def __init__(self, client: Client, request: ScoringRequest, cards: list[Any]) -> None:
        self.fingerprint: Fingerprint = {"reward model": json_sha256(cards), "precision": "a server's"}
        self.prefetch = 1
        self._client = client
        self._request = request

    def prepare(self, rows: Sequence[RowItems]) -> Sequence[RowItems]:
        """Return the rows unchanged; the server tokenizes them."""
        return rows

    def score(self, prepared: Sequence[RowItems]) -> list[RowResult]:
        """Send one request; if the server rejects it, send its halves, until each invalid row is alone."""
        if not prepared:
            return []
        try:
            return self._send(prepared)
        except RequestFailed as error:
            if error.status not in REJECTED_STATUSES:
                raise SparseRMError(str(error)) from error
            if len(prepared) == 1:
                return [InvalidInput(str(error))]
            middle = len(prepared) // 2
            return [*self.score(prepared[:middle]), *self.score(prepared[middle:])]

    def _send(self, rows: Sequence[RowItems]) -> list[RowResult]:
        request = self._request
        path, key = ("/v1/compare", "pairs") if request.paired else ("/v1/rewards", "inputs")
        body = {
            "model": request.model, "explain": str(request.score_options.explain), "top_k": request.top_k,
            "length_control": request.length_control,
            key: [_encode_input(row, paired=request.paired) for row in rows],
        }  # fmt: skip
        results = iter(self._client.post(path, body)["data"])
        return [_parse_result([next(results) for _ in (row[:1] if request.paired else row)]) for row in rows]


def _get_cards(client: Client, name: str) -> list[Any]:
    """Return the card of a model and, if it is a composite, those of its heads."""
    card = client.get(f"/v1/models/{name.partition('@')[0]}")
    heads = card.get("composite", {}).get("weights", ())
    return [card, *(head_card for head in heads for head_card in _get_cards(client, head))]


def _encode_input(row: RowItems, *, paired: bool) -> dict[str, Any]:
    """Return a row's items as an element of the request's `pairs` or `inputs`."""
    messages = [{"role": message.role, "content": message.content} for message in row[0].messages]
    responses = [item.response for item in row]
    if paired:
        return {"messages": messages, "chosen": responses[0], "rejected": responses[1]}
    return {"messages": messages, "responses": responses}


def _parse_result(results: list[ResultRow]) -> RowResult:
    """Return a row's results without their position in the response, or the first error among them."""
    for result in results:
        if "error" in result:
            return SparseRMError(result["error"]["message"], code=result["error"]["code"])
    return [
        {name: value for name, value in result.items() if name not in POSITION_FIELDS} for result in results
    ]
