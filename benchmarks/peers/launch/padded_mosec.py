"""SPARSERM_BENCH_CHECKPOINT=FOLDER python -m benchmarks.peers.launch.padded_mosec --port PORT."""

import os
from typing import Any

from mosec import PeerServer, Worker

from benchmarks.peers.launch.padded import BATCH, WAIT_S, Padded


class Scoring(Worker):  # type: ignore[misc] # mosec ships no types
    """Token ids in, a score out, several at once."""

    def __init__(self) -> None:
        self.padded = Padded(os.environ["SPARSERM_BENCH_CHECKPOINT"])

    def forward(self, data: list[Any]) -> list[Any]:
        """A score each."""
        return [{"score": score} for score in self.padded.ids([one["ids"] for one in data])]


if __name__ == "__main__":
    server = PeerServer()
    server.append_worker(Scoring, num=1, max_batch_size=BATCH, max_wait_time=int(WAIT_S * 1000))
    server.run()
