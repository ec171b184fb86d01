"""The blocking client."""

import json
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import httpx

from sparserm_client import _wire
from sparserm_client._config import DEFAULT_URL, RETRIED_STATUSES, RetryPolicy, ServerConfig
from sparserm_client._types import Reward, Sample


class Client:
    """A blocking client of one server.

    Threads may share it. It can be pickled: the copy has the same configuration and opens its own
    connections. While the server is overloaded or unreachable, a request is sent again, with growing
    delays, for up to `retry_for_s` seconds.
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
        self.config = ServerConfig(url, model, key, timeout_s, retry_for_s)
        self._http: httpx.Client | None = None

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        self.close()

    def __getstate__(self) -> ServerConfig:
        return self.config

    def __setstate__(self, config: ServerConfig) -> None:
        self.config, self._http = config, None

    def close(self) -> None:
        """Close the connections; a later request opens new ones."""
        if self._http is not None:
            self._http.close()
            self._http = None

    def rewards(self, samples: Sequence[Sample], *, top_k: int = 0, turns: bool = False) -> list[Reward]:
        """Score samples with one model, the client's or else the server's default; return them in order.

        `top_k` is how many features each reward lists. With `turns` each reward also lists the rewards after
        every turn of the assistant.
        """
        scored = self._score(samples, self.config.model, 1, top_k, turns=turns)
        return [rewards[0] for rewards in scored]

    def rewards_by_model(
        self, samples: Sequence[Sample], models: Sequence[str], *, top_k: int = 0, turns: bool = False
    ) -> list[dict[str, Reward]]:
        """Score samples with several models in one forward pass.

        Returns for each sample, in order, its reward by model name, as the names were given.
        """
        names = _wire.unique_models(models)
        scored = self._score(samples, names, len(names), top_k, turns=turns)
        return [dict(zip(names, rewards, strict=True)) for rewards in scored]

    def rendered_rewards(self, texts: Sequence[str], prompts: Sequence[str] | None = None) -> list[float]:
        """Score texts that a policy's chat template has rendered: prompt and response with special tokens.

        `prompts` are the rendered prompts that the texts begin with. Without them, the server finds the
        response by the markup alone.
        """
        rewards: list[float] = []
        for body in _wire.build_rendered_requests(texts, prompts, self.config.model):
            rewards += self.post("/get_reward", body)["rewards"]
        return rewards

    def get(self, path: str) -> Any:
        """Send GET to a path, with retries, and return the JSON body."""
        return self._request("GET", path)

    def post(self, path: str, body: Any) -> Any:
        """Send a JSON body to a path, with retries, and return the JSON body of the response."""
        return self._request("POST", path, json.dumps(body))

    def _score(
        self,
        samples: Sequence[Sample],
        model: str | Sequence[str] | None,
        model_count: int,
        top_k: int,
        *,
        turns: bool,
    ) -> list[list[Reward]]:
        scored: list[list[Reward]] = []
        for chunk in _wire.split_into_requests(samples):
            response = self.post("/v1/rewards", _wire.rewards_body(chunk, model, top_k, turns=turns))
            scored += _wire.parse_rewards(response, len(chunk), model_count)
        return scored

    def _request(self, method: str, path: str, content: str | None = None) -> Any:
        if self._http is None:
            self._http = httpx.Client(**self.config.http_options())
        retries = RetryPolicy(self.config.retry_for_s)
        while True:
            try:
                response = self._http.request(method, path, content=content)
            except httpx.TransportError as error:
                time.sleep(retries.next_delay_s(error=error))
                continue
            if response.status_code not in RETRIED_STATUSES:
                return _wire.parse_body(response)
            time.sleep(retries.next_delay_s(response))
