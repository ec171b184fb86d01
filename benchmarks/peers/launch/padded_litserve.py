"""python -m benchmarks.peers.launch.padded_litserve CHECKPOINT PORT."""

import sys
from typing import Any

import litserve
from pydantic import BaseModel

from benchmarks.peers.launch.padded import BATCH_SIZE, MAX_WAIT_S, PaddedModel


class ScoreRequest(BaseModel):
    """The body of a request."""

    ids: list[int]


class ScoringApi(litserve.LitAPI):  # type: ignore[misc] # litserve ships no types
    """Takes token ids and returns a score; LitServe batches the calls."""

    folder = sys.argv[1] if len(sys.argv) > 1 else ""

    def setup(self, device: str) -> None:
        """Load the model; called in the worker process."""
        del device
        self.model = PaddedModel(self.folder)

    def decode_request(self, request: ScoreRequest) -> list[int]:
        """The token ids of a request."""
        return request.ids

    def batch(self, inputs: Any) -> Any:
        """Keep the lists as they are; lengths differ, so they cannot be stacked."""
        return inputs

    def predict(self, batch: Any) -> Any:
        """The scores of a batch."""
        return self.model.score_ids(batch)

    def unbatch(self, output: Any) -> Any:
        """The scores, one per request."""
        return output

    def encode_response(self, output: Any) -> Any:
        """The body of a response."""
        return {"score": output}


if __name__ == "__main__":
    api = ScoringApi(max_batch_size=BATCH_SIZE, batch_timeout=MAX_WAIT_S)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, timeout=False)
    server.run(host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False, log_level="warning")
