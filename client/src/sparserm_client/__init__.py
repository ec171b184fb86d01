"""Ask a SparseRM server from Python: typed answers, retries that outlast a restart, no torch.

    with Client("http://127.0.0.1:8000", model="safety") as client:
        [reward] = client.rewards([Ask("What is rain?", "Water that falls from clouds.")])

`Client` blocks; `AsyncClient` gathers what is asked at the same time into one request.
"""

from sparserm_client._async_client import AsyncClient
from sparserm_client._client import Client
from sparserm_client._wire import HERE, Ask, AskFailed, Patience, Reward, Server, Share

__all__ = ["HERE", "Ask", "AskFailed", "AsyncClient", "Client", "Patience", "Reward", "Server", "Share"]
