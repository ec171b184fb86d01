"""The Ray cluster at RAY_ADDRESS, or one on this machine that lasts as long as this process."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray


@contextmanager
def joined(cpus: int) -> Iterator[None]:
    """Be part of it; one that begins here has so many processors to give away."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if "RAY_ADDRESS" in os.environ:
        ray.init(log_to_driver=False)
    else:
        ray.init(num_cpus=cpus, include_dashboard=False, log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()
