"""The simulation of replicas against results of queueing theory."""

import statistics
import subprocess
import sys

import pytest

from benchmarks.queue_simulation import (
    ReplicaSpeed,
    SimulatedRequest,
    poisson_requests,
    route_by_prompt,
    route_to_fewest_tokens,
    simulate,
    training_step_requests,
)


@pytest.mark.parametrize("utilisation", [0.3, 0.6, 0.9])
def test_batches_of_one_match_the_m_d_1_queue(utilisation: float) -> None:
    service = 0.1
    latencies = simulate(
        poisson_requests(utilisation / service, 20_000, 10, 10), ReplicaSpeed(service, 0, 1), 1
    )
    expected = service * (1 + utilisation / (2 * (1 - utilisation)))
    assert statistics.fmean(latencies) == pytest.approx(expected, rel=0.05)


def test_full_batch_takes_one_pass_when_passes_have_constant_cost() -> None:
    together = [SimulatedRequest(0.0, 10, 10, i) for i in range(8)]
    assert simulate(together, ReplicaSpeed(1.0, 0, 160), 1) == [1.0] + [2.0] * 7
    assert simulate(together, ReplicaSpeed(1.0, 0, 20), 1) == [float(i) for i in range(1, 9)]
    assert sorted(simulate(together, ReplicaSpeed(1.0, 0, 20), 2)) == [1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 4.0, 4.0]


def test_prompt_is_computed_once_per_batch_and_once_while_cached() -> None:
    group = [SimulatedRequest(float(9 * i), 100, 10, 7) for i in range(3)]
    per_token = ReplicaSpeed(0, 0.01, 10_000)
    assert simulate(group, per_token, 1) == pytest.approx([1.1] * 3)
    caching = ReplicaSpeed(0, 0.01, 10_000, cached_prompt_tokens=100)
    assert simulate(group, caching, 1) == pytest.approx([1.1, 0.1, 0.1])
    at_once = [SimulatedRequest(0.0, 100, 10, 7)] * 3
    assert simulate(at_once, per_token, 1) == pytest.approx([1.1, 2.3, 2.3])


def test_routing_by_prompt_finishes_groups_sooner() -> None:
    requests = training_step_requests(1000.0, 2, groups=256, responses=8, prompt=192, tokens=64)
    speed = ReplicaSpeed(0.01, 0.001, 1024, cached_prompt_tokens=100_000)
    spread, together = (
        max(simulate(requests, speed, 2, route)) for route in (route_to_fewest_tokens, route_by_prompt)
    )
    assert 0.75 < together / spread < 0.9


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("benchmark", "output"), [("queueing_delay", "measured mean"), ("replicas", "of one server")]
)
def test_benchmarks_of_many_processes_run_on_the_tiny_model(benchmark: str, output: str) -> None:
    options = ["--tiny", "--seconds", "2", *(["--rounds", "1"] if benchmark == "replicas" else [])]
    command = [sys.executable, "-m", f"benchmarks.{benchmark}", *options]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert output in result.stdout
