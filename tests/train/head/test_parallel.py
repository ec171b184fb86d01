"""Trainings in parallel give the same results as one after the other, each on its share of the threads."""

from collections.abc import Iterator

import pytest
import torch

from app.train.head.fitting import fit_head, tune_config
from app.train.head.network import NetworkHeadConfig
from app.train.head.parallel import run_in_parallel
from app.train.head.training_set import TrainingSet


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """The number of threads that torch has during a test."""
    before, count = torch.get_num_threads(), int(request.param)
    torch.set_num_threads(count)
    yield count
    torch.set_num_threads(before)


def test_tasks_share_the_threads_and_keep_their_order(threads: int) -> None:
    """The caller has all threads again afterwards."""
    progress: list[float] = []
    results = run_in_parallel([lambda i=i: (i, torch.get_num_threads()) for i in range(5)], progress.append)  # type: ignore[misc]
    run_alone = {1: range(5), 2: [4], 3: []}[threads]
    assert results == [(i, threads if i in run_alone else 1) for i in range(5)]
    assert progress == sorted(progress)
    assert progress[-1] == 1
    assert torch.get_num_threads() == threads


def test_a_failure_of_one_task_is_raised(threads: int) -> None:
    """The threads are restored also then."""
    with pytest.raises(ZeroDivisionError):
        run_in_parallel([lambda: 1.0, lambda: 1 / 0], lambda _: None)
    assert torch.get_num_threads() == threads


def test_tuning_and_training_do_not_depend_on_the_number_of_threads() -> None:
    """Every training has a random generator of its own."""
    random = torch.Generator().manual_seed(0)
    vectors, basis = torch.randn(60, 2, 16, generator=random), torch.randn(8, 16, generator=random)
    vectors[:, 0] += basis[0]
    training_set = TrainingSet.from_vectors(vectors, basis, [str(i // 2) for i in range(60)])
    before, results = torch.get_num_threads(), []
    for count in (1, 2):
        torch.set_num_threads(count)
        config = tune_config(training_set, NetworkHeadConfig(heads=2, hidden=16), lambda _: None)
        results.append((config, fit_head(training_set, config, lambda _: None).w1))
    torch.set_num_threads(before)
    assert results[0][0] == results[1][0]
    assert torch.equal(results[0][1], results[1][1])
