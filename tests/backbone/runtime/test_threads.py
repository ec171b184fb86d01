"""Compute threads spin briefly at barriers, and a ready server has no other OpenMP threads."""

import asyncio
import os
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from prometheus_client import CollectorRegistry

from app.backbone.runtime import threads
from app.reward import loading
from app.serve.application import create_app
from app.settings import Settings
from tests.support import tiny


def test_a_temporary_thread_returns_the_result_and_raises_the_exception() -> None:
    assert threads.run_in_temporary_thread(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        threads.run_in_temporary_thread(lambda: 1 / 0)


def test_the_spin_count_is_set_only_where_the_environment_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    for environment in ({}, {"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "PASSIVE"}):
        with monkeypatch.context() as patch:
            for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
                patch.delenv(name, raising=False)
            for name, value in environment.items():
                patch.setenv(name, value)
            threads.limit_openmp_spinning()
            default = None if "OMP_WAIT_POLICY" in environment else str(threads.OPENMP_SPIN_COUNT)
            assert os.environ.get("GOMP_SPINCOUNT") == environment.get("GOMP_SPINCOUNT", default)


def test_a_ready_server_has_no_openmp_threads_but_those_of_its_forward_passes(tmp_path: Path) -> None:
    """Runs in its own process, where no thread has computed before."""
    settings = tiny.build_models(tmp_path).model_copy(update={"threads": 2, "max_batch_tokens": 0})
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        left_by_startup, of_main_thread = pool.submit(_count_openmp_threads, settings).result()
    assert (left_by_startup, of_main_thread) == (0, 1)


def _count_openmp_threads(settings: Settings) -> tuple[int, int]:
    """Native threads that a starting server leaves behind, and then those that the main thread starts."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(2)
    before = _count_native_threads()

    async def start_server() -> int:
        engine = threads.run_in_temporary_thread(lambda: loading.load_engine(settings, lambda *_: None))
        app = create_app(engine, settings, CollectorRegistry())
        async with app.router.lifespan_context(app):
            return _wait_for_native_threads(before) - before

    left_by_startup = asyncio.run(start_server())
    _ = torch.randn(1500, 1500) @ torch.randn(1500, 1500)
    return left_by_startup, _count_native_threads() - before


def _wait_for_native_threads(expected: int) -> int:
    """The number of native threads, once it is as expected or after 3 s.

    OpenMP's threads end a moment after the thread they worked for.
    """
    deadline = time.monotonic() + 3
    while (count := _count_native_threads()) != expected and time.monotonic() < deadline:
        time.sleep(0.05)
    return count


def _count_native_threads() -> int:
    """The threads of this process that Python did not start."""
    return sum(1 for _ in Path("/proc/self/task").iterdir()) - threading.active_count()
