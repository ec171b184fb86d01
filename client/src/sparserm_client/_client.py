"""The client that blocks."""

import json
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import httpx

from sparserm_client import _wire


class Client:
    """Blocking; threads may share it, and pickling leaves its connections behind."""

    def __init__(self, url: str = _wire.HERE, **choices: Any) -> None:
        self.server = _wire.Server(url, **choices)
        self._http: httpx.Client | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        self.close()

    def __getstate__(self) -> _wire.Server:
        return self.server

    def __setstate__(self, server: _wire.Server) -> None:
        self.server, self._http = server, None

    def close(self) -> None:
        """Let the connections go."""
        if self._http is not None:
            self._http.close()
            self._http = None

    def rewards(self, asks: Sequence[_wire.Ask], *, top_k: int = 0) -> list[_wire.Reward]:
        """Score responses, in order; `top_k` features come with each."""
        found: list[_wire.Reward] = []
        for some in _wire.portions(asks):
            found += _wire.rewards(
                self.post("/v1/rewards", _wire.body(some, self.server.model, top_k)), len(some)
            )
        return found

    def rendered(self, texts: Sequence[str], prompts: Sequence[str] | None = None) -> list[float]:
        """Score texts that went through a policy's chat template."""
        found: list[float] = []
        for places in _wire.portions(range(len(texts))):
            body = _wire.rendered(
                [texts[i] for i in places], prompts and [prompts[i] for i in places], self.server
            )
            found += self.post("/get_reward", body)["rewards"]
        return found

    def get(self, path: str) -> Any:
        """Read what a route says, with the same patience."""
        return self._answer("GET", path)

    def post(self, path: str, body: Any) -> Any:
        """Send a body until there is an answer, as long as patience lasts."""
        return self._answer("POST", path, json.dumps(body))

    def _answer(self, method: str, path: str, content: str | None = None) -> Any:
        if self._http is None:
            self._http = httpx.Client(**self.server.options)
        patience = _wire.Patience(self.server.patience_s)
        while True:
            try:
                response = self._http.request(method, path, content=content)
            except httpx.TransportError as error:
                time.sleep(patience.wait(error=error))
                continue
            if response.status_code not in _wire.PASSING:
                return _wire.answered(response)
            time.sleep(patience.wait(response))
