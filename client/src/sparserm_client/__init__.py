"""Client of a SparseRM reward server: typed rewards, retries across restarts, reward functions for trainers.

    with Client("http://127.0.0.1:8000", model="safety") as client:
        [reward] = client.rewards([Sample("What is rain?", "Water that falls from clouds.")])

`Client` blocks. `AsyncClient` has the same methods for asyncio and sends calls made at the same time as one
request. `sparserm_client.trainers` has reward functions for RLHF trainers.
"""

from sparserm_client._async_client import AsyncClient
from sparserm_client._client import Client
from sparserm_client._config import DEFAULT_URL, RetryPolicy, ServerConfig
from sparserm_client._types import (
    ConceptShare,
    FeatureShare,
    PassageReward,
    RequestFailed,
    Reward,
    Sample,
    TurnReward,
)

__all__ = [
    "DEFAULT_URL",
    "AsyncClient",
    "Client",
    "ConceptShare",
    "FeatureShare",
    "PassageReward",
    "RequestFailed",
    "RetryPolicy",
    "Reward",
    "Sample",
    "ServerConfig",
    "TurnReward",
]
