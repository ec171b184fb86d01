"""The client for asyncio."""

import asyncio
import json
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import httpx

from sparserm_client import _wire


class AsyncClient:
    """The same for asyncio; what tasks ask at the same time travels together."""

    def __init__(self, url: str = _wire.HERE, **choices: Any) -> None:
        self.server = _wire.Server(url, **choices)
        self._http: httpx.AsyncClient | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: list[tuple[list[_wire.Ask], int, asyncio.Future[list[_wire.Reward]]]] = []
        self._sending: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        await self.close()

    def __getstate__(self) -> _wire.Server:
        return self.server

    def __setstate__(self, server: _wire.Server) -> None:
        self.__init__()  # type: ignore[misc] # as new, without connections
        self.server = server

    async def close(self) -> None:
        """Let the connections go."""
        if self._http is not None:
            await self._http.aclose()
            self._http = None

    async def rewards(self, asks: Sequence[_wire.Ask], *, top_k: int = 0) -> list[_wire.Reward]:
        """Score responses, in order; joined with whatever else is asked in this turn of the loop."""
        self._settle()
        future: asyncio.Future[list[_wire.Reward]] = asyncio.get_running_loop().create_future()
        self._waiting.append((list(asks), top_k, future))
        if len(self._waiting) == 1:
            sending = asyncio.ensure_future(self._send())
            self._sending.add(sending)
            sending.add_done_callback(self._sending.discard)
        return await future

    async def rendered(self, texts: Sequence[str], prompts: Sequence[str] | None = None) -> list[float]:
        """Score texts that went through a policy's chat template."""
        answer = await self.post("/get_reward", _wire.rendered(texts, prompts, self.server))
        found: list[float] = answer["rewards"]
        return found

    async def post(self, path: str, body: Any) -> Any:
        """Send a body until there is an answer, as long as patience lasts."""
        self._settle()
        if self._http is None:
            limits = httpx.Limits(max_connections=64)
            self._http = httpx.AsyncClient(**self.server.options, limits=limits)
        patience = _wire.Patience(self.server.patience_s)
        while True:
            try:
                response = await self._http.post(path, content=json.dumps(body))
            except httpx.TransportError as error:
                await asyncio.sleep(patience.wait(error=error))
                continue
            if response.status_code not in _wire.PASSING:
                return _wire.answered(response)
            await asyncio.sleep(patience.wait(response))

    def _settle(self) -> None:
        """Connections belong to a loop; on another one (a further asyncio.run) they are made anew."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._loop, self._http, self._waiting = loop, None, []

    async def _send(self) -> None:
        await asyncio.sleep(0)
        waiting, self._waiting = self._waiting, []
        for top_k in {wanted for _, wanted, _ in waiting}:
            together = [(asks, future) for asks, wanted, future in waiting if wanted == top_k]
            try:
                found = await self._rewards([ask for asks, _ in together for ask in asks], top_k)
            except Exception as error:  # noqa: BLE001 # every caller hears of it
                for _, future in together:
                    if not future.done():
                        future.set_exception(error)
                continue
            for asks, future in together:
                mine, found = found[: len(asks)], found[len(asks) :]
                if not future.done():
                    future.set_result(mine)

    async def _rewards(self, asks: list[_wire.Ask], top_k: int) -> list[_wire.Reward]:
        found: list[_wire.Reward] = []
        for some in _wire.portions(asks):
            body = _wire.body(some, self.server.model, top_k)
            found += _wire.rewards(await self.post("/v1/rewards", body), len(some))
        return found
