"""Trainings side by side: as one after the other, each on its share of the threads."""

from collections.abc import Iterator

import pytest
import torch

from app.train.head_training import HeadTrainingConfig, TrainingSet, fit_head, tune_config
from app.train.parallel import run_in_parallel


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Torch on so many threads."""
    before, wanted = torch.get_num_threads(), int(request.param)
    torch.set_num_threads(wanted)
    yield wanted
    torch.set_num_threads(before)


def test_each_has_its_share_of_the_threads_and_its_place(threads: int) -> None:
    """Whoever called has all threads again afterwards."""
    told: list[float] = []
    found = run_in_parallel([lambda i=i: (i, torch.get_num_threads()) for i in range(5)], told.append)  # type: ignore[misc]
    alone = {1: range(5), 2: [4], 3: []}[threads]
    assert found == [(i, threads if i in alone else 1) for i in range(5)]
    assert told == sorted(told)
    assert told[-1] == 1
    assert torch.get_num_threads() == threads


def test_what_fails_in_one_fails(threads: int) -> None:
    """And the threads are given back."""
    with pytest.raises(ZeroDivisionError):
        run_in_parallel([lambda: 1.0, lambda: 1 / 0], lambda _: None)
    assert torch.get_num_threads() == threads


def test_a_plan_and_a_head_do_not_depend_on_the_threads() -> None:
    """Every training draws from a generator of its own."""
    random = torch.Generator().manual_seed(0)
    vectors, basis = torch.randn(60, 2, 16, generator=random), torch.randn(8, 16, generator=random)
    vectors[:, 0] += basis[0]
    lesson = TrainingSet.from_vectors(vectors, basis, [str(i // 2) for i in range(60)])
    before, found = torch.get_num_threads(), []
    for wanted in (1, 2):
        torch.set_num_threads(wanted)
        plan = tune_config(lesson, HeadTrainingConfig(heads=2, hidden=16), lambda _: None)
        found.append((plan, fit_head(lesson, plan, lambda _: None).w1))
    torch.set_num_threads(before)
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1])
