"""python -m benchmarks.peers.launch.padded_litserve CHECKPOINT PORT."""

import sys
from typing import Any

import litserve
from pydantic import BaseModel

from benchmarks.peers.launch.padded import BATCH, WAIT_S, Padded


class Item(BaseModel):
    """What a request holds."""

    ids: list[int]


class Scoring(litserve.LitAPI):  # type: ignore[misc] # litserve ships no types
    """Token ids in, a score out, several at once."""

    folder = sys.argv[1] if len(sys.argv) > 1 else ""

    def setup(self, device: str) -> None:
        """In the worker's own process."""
        del device
        self.padded = Padded(self.folder)

    def decode_request(self, request: Item) -> list[int]:
        """One item."""
        return request.ids

    def batch(self, inputs: Any) -> Any:
        """A list of lists, which are not to be stacked."""
        return inputs

    def predict(self, batch: Any) -> Any:
        """A score each."""
        return self.padded.ids(batch)

    def unbatch(self, output: Any) -> Any:
        """A score each."""
        return output

    def encode_response(self, output: Any) -> Any:
        """One item."""
        return {"score": output}


if __name__ == "__main__":
    api = Scoring(max_batch_size=BATCH, batch_timeout=WAIT_S)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, timeout=False)
    server.run(host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False, log_level="warning")
