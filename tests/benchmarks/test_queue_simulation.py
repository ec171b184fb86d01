"""The simulation of replicas against what is known about queues."""

import statistics
import subprocess
import sys

import pytest

from benchmarks.queue_simulation import Request, Speed, by_prompt, poisson, shortest, simulate, steps


@pytest.mark.parametrize("busy", [0.3, 0.6, 0.9])
def test_one_at_a_time_is_the_queue_of_the_textbook(busy: float) -> None:
    service = 0.1
    took = simulate(poisson(busy / service, 20_000, 10, 10), Speed(service, 0, 1), 1)
    expected = service * (1 + busy / (2 * (1 - busy)))
    assert statistics.fmean(took) == pytest.approx(expected, rel=0.05)


def test_a_full_pass_costs_no_more_than_one_when_passes_cost_alike() -> None:
    together = [Request(0.0, 10, 10, i) for i in range(8)]
    assert simulate(together, Speed(1.0, 0, 160), 1) == [1.0] + [2.0] * 7
    assert simulate(together, Speed(1.0, 0, 20), 1) == [float(i) for i in range(1, 9)]
    assert sorted(simulate(together, Speed(1.0, 0, 20), 2)) == [1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 4.0, 4.0]


def test_a_prompt_is_computed_once_a_pass_and_once_while_it_is_remembered() -> None:
    group = [Request(float(9 * i), 100, 10, 7) for i in range(3)]
    per_token = Speed(0, 0.01, 10_000)
    assert simulate(group, per_token, 1) == pytest.approx([1.1] * 3)
    remembering = Speed(0, 0.01, 10_000, memory=100)
    assert simulate(group, remembering, 1) == pytest.approx([1.1, 0.1, 0.1])
    at_once = [Request(0.0, 100, 10, 7)] * 3
    assert simulate(at_once, per_token, 1) == pytest.approx([1.1, 2.3, 2.3])


def test_groups_that_meet_finish_sooner() -> None:
    wave = steps(1000.0, 2, groups=256, responses=8, prompt=192, tokens=64)
    speed = Speed(0.01, 0.001, 1024, memory=100_000)
    apart, together = (max(simulate(wave, speed, 2, route)) for route in (shortest, by_prompt))
    assert 0.75 < together / apart < 0.9


@pytest.mark.heavy
@pytest.mark.parametrize(("bench", "told"), [("waiting", "measured mean"), ("replicas", "of one server")])
def test_benchmarks_of_many_processes_run_on_the_toy(bench: str, told: str) -> None:
    options = ["--tiny", "--seconds", "2", *(["--rounds", "1"] if bench == "replicas" else [])]
    command = [sys.executable, "-m", f"benchmarks.{bench}", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert told in done.stdout
