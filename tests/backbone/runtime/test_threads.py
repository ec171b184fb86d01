"""How threads that compute wait: awake for a moment, and as the only team that lives."""

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


def test_work_apart_gives_what_it_gives_and_fails_as_it_fails() -> None:
    """Whoever asks notices no thread."""
    assert threads.apart(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        threads.apart(lambda: 1 / 0)


def test_somebody_else_may_decide_how_threads_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only where nothing was said do we say it."""
    for given in ({}, {"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "PASSIVE"}):
        with monkeypatch.context() as patch:
            for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
                patch.delenv(name, raising=False)
            for name, value in given.items():
                patch.setenv(name, value)
            threads.stay_awake_briefly()
            wanted = None if "OMP_WAIT_POLICY" in given else given.get("GOMP_SPINCOUNT", str(threads.SPINS))
            assert os.environ.get("GOMP_SPINCOUNT") == wanted


def test_a_server_that_is_ready_has_no_team_but_that_of_its_passes(tmp_path: Path) -> None:
    """In a process of its own, where nobody has computed before."""
    settings = tiny.build_models(tmp_path).model_copy(update={"threads": 2, "max_batch_tokens": 0})
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        left, mine = pool.submit(_teams, settings).result()
    assert (left, mine) == (0, 1)


def _teams(settings: Settings) -> tuple[int, int]:
    """Threads unknown to Python that a starting server leaves, and then those of this thread's own team."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(2)
    before = _unknown()

    async def begun() -> int:
        engine = threads.apart(lambda: loading.load_engine(settings, lambda *_: None))
        app = create_app(engine, settings, CollectorRegistry())
        async with app.router.lifespan_context(app):
            return _settled(before) - before

    left = asyncio.run(begun())
    _ = torch.randn(1500, 1500) @ torch.randn(1500, 1500)
    return left, _unknown() - before


def _settled(wanted: int) -> int:
    """A team ends a moment after its thread."""
    until = time.monotonic() + 3
    while (found := _unknown()) != wanted and time.monotonic() < until:
        time.sleep(0.05)
    return found


def _unknown() -> int:
    return sum(1 for _ in Path("/proc/self/task").iterdir()) - threading.active_count()
