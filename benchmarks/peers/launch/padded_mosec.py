"""SPARSERM_BENCH_CHECKPOINT=FOLDER python -m benchmarks.peers.launch.padded_mosec --port PORT."""

import os
from typing import Any

from mosec import PeerServer, Worker

from benchmarks.peers.launch.padded import BATCH_SIZE, MAX_WAIT_S, PaddedModel


class ScoringWorker(Worker):  # type: ignore[misc] # mosec ships no types
    """Takes token ids and returns a score; mosec batches the calls."""

    def __init__(self) -> None:
        self.model = PaddedModel(os.environ["SPARSERM_BENCH_CHECKPOINT"])

    def forward(self, data: list[Any]) -> list[Any]:
        """The scores of a batch."""
        return [{"score": score} for score in self.model.score_ids([request["ids"] for request in data])]


if __name__ == "__main__":
    server = PeerServer()
    server.append_worker(
        ScoringWorker, num=1, max_batch_size=BATCH_SIZE, max_wait_time=int(MAX_WAIT_S * 1000)
    )
    server.run()
