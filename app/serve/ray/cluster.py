"""The connection to a Ray cluster: the one at RAY_ADDRESS, or one on this machine for this process alone."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import ray

# Keeps the processes of a cluster on this machine from taking CPU time from the engines.
LOCAL_CLUSTER_ENVIRONMENT = {
    "RAY_worker_niceness": "0",  # Ray lowers the priority of workers, and so of the engines, by default
    "RAY_enable_metrics_collection": "0",
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "1",
}


@contextmanager
def connect(cpus: int) -> Iterator[None]:
    """Connect to the cluster until the block ends; a cluster started here has `cpus` CPUs to assign."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if "RAY_ADDRESS" in os.environ:
        ray.init(log_to_driver=False)
    else:
        for name, value in {**LOCAL_CLUSTER_ENVIRONMENT, "RAY_AUTH_TOKEN": secrets.token_hex()}.items():
            os.environ.setdefault(name, value)
        ray.init(num_cpus=cpus, include_dashboard=False, log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()
