"""The client for asyncio."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import httpx

from sparserm_client import _wire
from sparserm_client._config import DEFAULT_URL, RETRIED_STATUSES, RetryPolicy, ServerConfig
from sparserm_client._types import Reward, Sample

MAX_CONNECTIONS = 64


@dataclass(frozen=True, slots=True)
class _PendingCall:
    """Samples of one call that wait to be sent, and the future that gets their rewards."""

    samples: list[Sample]
    model: str | tuple[str, ...] | None
    top_k: int
    turns: bool
    rewards: "asyncio.Future[list[list[Reward]]]"

    @property
    def group(self) -> tuple[str | tuple[str, ...] | None, int, bool]:
        """The options of the call. Calls with the same options are sent as one request."""
        return self.model, self.top_k, self.turns

    @property
    def model_count(self) -> int:
        return len(self.model) if isinstance(self.model, tuple) else 1


class AsyncClient:
    """The asyncio version of `Client`: the same methods, awaited.

    Calls that tasks make in the same iteration of the event loop are sent as one request. A client may be
    used from several event loops one after the other, such as one `asyncio.run` after another; it opens new
    connections on each.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        model: str | None = None,
        key: str | None = None,
        timeout_s: float = 120.0,
        retry_for_s: float = 300.0,
    ) -> None:
        self._initialize(ServerConfig(url, model, key, timeout_s, retry_for_s))

    def _initialize(self, config: ServerConfig) -> None:
        self.config = config
        self._http: httpx.AsyncClient | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pending: list[_PendingCall] = []
        self._send_tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        await self.close()

    def __getstate__(self) -> ServerConfig:
        return self.config

    def __setstate__(self, config: ServerConfig) -> None:
        self._initialize(config)

    async def close(self) -> None:
        """Close the connections; a later request opens new ones."""
        if self._http is not None:
            await self._http.aclose()
            self._http = None

    async def rewards(
        self, samples: Sequence[Sample], *, top_k: int = 0, turns: bool = False
    ) -> list[Reward]:
        """Score samples with one model, the client's or else the server's default; return them in order.

        `top_k` is how many features each reward lists. With `turns` each reward also lists the rewards after
        every turn of the assistant.
        """
        scored = await self._score(samples, self.config.model, top_k, turns=turns)
        return [rewards[0] for rewards in scored]

    async def rewards_by_model(
        self, samples: Sequence[Sample], models: Sequence[str], *, top_k: int = 0, turns: bool = False
    ) -> list[dict[str, Reward]]:
        """Score samples with several models in one forward pass.

        Returns for each sample, in order, its reward by model name, as the names were given.
        """
        names = _wire.unique_models(models)
        scored = await self._score(samples, names, top_k, turns=turns)
        return [dict(zip(names, rewards, strict=True)) for rewards in scored]

    async def rendered_rewards(
        self, texts: Sequence[str], prompts: Sequence[str] | None = None
    ) -> list[float]:
        """Score texts that a policy's chat template has rendered: prompt and response with special tokens.

        `prompts` are the rendered prompts that the texts begin with. Without them, the server finds the
        response by the markup alone.
        """
        rewards: list[float] = []
        for body in _wire.build_rendered_requests(texts, prompts, self.config.model):
            rewards += (await self.post("/get_reward", body))["rewards"]
        return rewards

    async def get(self, path: str) -> Any:
        """Send GET to a path, with retries, and return the JSON body."""
        return await self._request("GET", path)

    async def post(self, path: str, body: Any) -> Any:
        """Send a JSON body to a path, with retries, and return the JSON body of the response."""
        return await self._request("POST", path, json.dumps(body))

    async def _score(
        self, samples: Sequence[Sample], model: str | tuple[str, ...] | None, top_k: int, *, turns: bool
    ) -> list[list[Reward]]:
        self._adopt_running_loop()
        future: asyncio.Future[list[list[Reward]]] = asyncio.get_running_loop().create_future()
        self._pending.append(_PendingCall(list(samples), model, top_k, turns, future))
        if len(self._pending) == 1:
            task = asyncio.ensure_future(self._send_pending())
            self._send_tasks.add(task)
            task.add_done_callback(self._send_tasks.discard)
        return await future

    async def _send_pending(self) -> None:
        """Send the calls of this iteration of the event loop, those with the same options together."""
        await asyncio.sleep(0)
        pending, self._pending = self._pending, []
        groups = dict.fromkeys(call.group for call in pending)
        await asyncio.gather(
            *(self._send_group([call for call in pending if call.group == group]) for group in groups)
        )

    async def _send_group(self, calls: list[_PendingCall]) -> None:
        """Score the samples of calls with the same options together, and give each call its part."""
        samples = [sample for call in calls for sample in call.samples]
        scored: list[list[Reward]] = []
        try:
            for chunk in _wire.split_into_requests(samples):
                body = _wire.rewards_body(chunk, calls[0].model, calls[0].top_k, turns=calls[0].turns)
                response = await self.post("/v1/rewards", body)
                scored += _wire.parse_rewards(response, len(chunk), calls[0].model_count)
        except Exception as error:  # noqa: BLE001 # raised in every waiting call
            for call in calls:
                if not call.rewards.done():
                    call.rewards.set_exception(error)
            return
        start = 0
        for call in calls:
            stop = start + len(call.samples)
            if not call.rewards.done():
                call.rewards.set_result(scored[start:stop])
            start = stop

    async def _request(self, method: str, path: str, content: str | None = None) -> Any:
        self._adopt_running_loop()
        if self._http is None:
            limits = httpx.Limits(max_connections=MAX_CONNECTIONS)
            self._http = httpx.AsyncClient(**self.config.http_options(), limits=limits)
        retries = RetryPolicy(self.config.retry_for_s)
        while True:
            try:
                response = await self._http.request(method, path, content=content)
            except httpx.TransportError as error:
                await asyncio.sleep(retries.next_delay_s(error=error))
                continue
            if response.status_code not in RETRIED_STATUSES:
                return _wire.parse_body(response)
            await asyncio.sleep(retries.next_delay_s(response))

    def _adopt_running_loop(self) -> None:
        """Drop connections and waiting calls of an earlier event loop; they cannot be used on this one."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._loop, self._http, self._pending = loop, None, []
