"""The Ray cluster at RAY_ADDRESS, or one on this machine that lasts as long as this process."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import ray

ALONE = {
    "RAY_worker_niceness": "0",  # what works for us is not to stand back behind what serves Ray
    "RAY_enable_metrics_collection": "0",
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "1",
}
"""What keeps a cluster on this machine from taking processors from those who compute."""


@contextmanager
def joined(cpus: int) -> Iterator[None]:
    """Be part of it; one that begins here has so many processors to give away."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if "RAY_ADDRESS" in os.environ:
        ray.init(log_to_driver=False)
    else:
        for name, value in {**ALONE, "RAY_AUTH_TOKEN": secrets.token_hex()}.items():
            os.environ.setdefault(name, value)
        ray.init(num_cpus=cpus, include_dashboard=False, log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()
