"""A run that was cut goes on: the same bytes, whatever the moment, and only where nothing has changed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from app.errors import DataError
from app.offline import checkpoint as ledger
from app.offline.checkpoint import Files
from app.offline.tasks import COMPARE, SCORE, Rule, filtered
from app.reward.engine import Engine
from app.settings import Settings
from tests.faults.server_processes import CONTEXT
from tests.support import offline_runs
from tests.support.offline_runs import MODEL
from tests.support.training_setup import Killed, killing

ROWS = 400


def outputs(folder: Path, name: str) -> list[bytes]:
    files = Files(folder / name)
    return [files.out.read_bytes(), files.bad.read_bytes()]


@hypothesis_settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(cuts=st.lists(st.integers(0, 12), max_size=4), paired=st.booleans(), parquet=st.booleans())
def test_a_run_cut_anywhere_ends_in_the_same_bytes(
    engine: Engine, settings: Settings, tmp_path_factory: pytest.TempPathFactory,
    *, cuts: list[int], paired: bool, parquet: bool,
) -> None:  # fmt: skip
    folder = tmp_path_factory.mktemp("cut")
    task = filtered(Rule()) if paired else SCORE
    rows = offline_runs.pairs(120) if paired else offline_runs.responses(120)
    source = offline_runs.write(folder / "in.jsonl", offline_runs.mixed(rows))
    straight, cut = (f"{name}.{'parquet' if parquet else 'jsonl'}" for name in ("straight", "cut"))
    whole = offline_runs.run(engine, settings, task, source, folder / straight, pass_tokens=32)
    for after in cuts:
        try:
            offline_runs.run(
                engine, settings, task, source, folder / cut, report=killing(after), pass_tokens=32
            )
        except Killed:
            assert not (folder / cut).exists()
        else:
            break
    else:
        assert offline_runs.run(engine, settings, task, source, folder / cut, pass_tokens=32) == whole
    assert outputs(folder, straight) == outputs(folder, cut)
    assert whole.bad == 4


def test_what_was_written_but_not_noted_is_cut_off(
    engine: Engine, settings: Settings, tmp_path: Path
) -> None:
    source = offline_runs.write(tmp_path / "in.jsonl", offline_runs.mixed(offline_runs.responses(ROWS)))
    offline_runs.run(engine, settings, SCORE, source, tmp_path / "straight.jsonl")
    files = Files(tmp_path / "cut.jsonl")
    with pytest.raises(Killed):
        offline_runs.run(engine, settings, SCORE, source, files.out, report=killing(3))
    for part in (files.part, files.bad_part):
        with part.open("ab") as stream:
            stream.write(b'{"half a ro')
    offline_runs.run(engine, settings, SCORE, source, files.out)
    assert outputs(tmp_path, "straight.jsonl") == outputs(tmp_path, "cut.jsonl")


@pytest.mark.parametrize("parquet", [False, True])
def test_a_run_killed_while_it_finished_only_cleans_up(
    engine: Engine, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, parquet: bool
) -> None:
    def killed(_: Files) -> None:
        raise Killed

    name = "out.parquet" if parquet else "out.jsonl"
    source = offline_runs.write(tmp_path / "in.jsonl", offline_runs.mixed(offline_runs.responses(60)))
    with monkeypatch.context() as patch:
        patch.setattr(Files, "settle", killed)
        with pytest.raises(Killed):
            offline_runs.run(engine, settings, SCORE, source, tmp_path / name)
    before = (tmp_path / name).read_bytes()
    mark = offline_runs.run(engine, settings, SCORE, source, tmp_path / name)
    with pytest.raises(DataError, match="already there"):
        offline_runs.run(engine, settings, SCORE, source, tmp_path / name)
    assert (mark.kept, mark.bad) == (60, 2)
    assert (tmp_path / name).read_bytes() == before
    assert len(offline_runs.read(tmp_path / "out.bad.jsonl")) == 2
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(["in.jsonl", "out.bad.jsonl", name])


def half_done(engine: Engine, settings: Settings, folder: Path) -> Path:
    source = offline_runs.write(folder / "in.jsonl", offline_runs.responses(ROWS))
    with pytest.raises(Killed):
        offline_runs.run(engine, settings, SCORE, source, folder / "out.jsonl", report=killing(3))
    return source


def test_only_the_same_run_goes_on(engine: Engine, settings: Settings, tmp_path: Path) -> None:
    source, out = half_done(engine, settings, tmp_path), tmp_path / "out.jsonl"
    offline_runs.write(tmp_path / "pairs.jsonl", offline_runs.pairs(9))
    for complaint, task, choices in (
        (r"another task \(score; now compare\)", COMPARE, {}),
        (r"another top_k \(3; now 4\)", SCORE, {"top_k": 4}),
        (r"another prefix", SCORE, {"prefix": "a_"}),
        (r"another SPARSERM_MAX_BATCH_TOKENS \(64; now 65\)", SCORE, {"pass_tokens": 65}),
    ):
        with pytest.raises(DataError, match=complaint):
            offline_runs.run(engine, settings, task, source, out, **choices)
    shorter = settings.model_copy(update={"max_tokens": 100})
    with pytest.raises(DataError, match="another SPARSERM_MAX_TOKENS"):
        offline_runs.run(engine, shorter, SCORE, source, out)
    offline_runs.run(engine, settings, SCORE, source, out)
    offline_runs.run(engine, settings, SCORE, source, tmp_path / "straight.jsonl")
    assert out.read_bytes() == (tmp_path / "straight.jsonl").read_bytes()


def test_a_model_that_changed_is_another_model(settings: Settings, tmp_path: Path, engine: Engine) -> None:
    source = half_done(engine, settings, tmp_path)
    other = tmp_path / "models"
    other.mkdir()
    (other / MODEL).mkdir()
    for name in ("manifest.json", "SHA256SUMS"):
        text = (settings.models_dir / MODEL / name).read_text()
        (other / MODEL / name).write_text(text.replace("0", "1"))
    moved = settings.model_copy(update={"models_dir": other})
    with pytest.raises(DataError, match="another reward model"):
        offline_runs.run(engine, moved, SCORE, source, tmp_path / "out.jsonl")


def test_rows_that_were_read_must_stay_and_more_may_come(
    engine: Engine, settings: Settings, tmp_path: Path
) -> None:
    source, out = half_done(engine, settings, tmp_path), tmp_path / "out.jsonl"
    rows = offline_runs.responses(ROWS)
    for other in ([*rows[1:], rows[0]], rows[:1]):
        offline_runs.write(source, other)
        with pytest.raises(DataError, match="not those that this run began with"):
            offline_runs.run(engine, settings, SCORE, source, out)
    offline_runs.write(source, [*rows, *offline_runs.responses(20, seed=9)])
    assert offline_runs.run(engine, settings, SCORE, source, out).kept == ROWS + 20


def test_nothing_that_is_finished_or_read_is_overwritten(
    engine: Engine, settings: Settings, tmp_path: Path
) -> None:
    source, out = half_done(engine, settings, tmp_path), tmp_path / "out.jsonl"
    offline_runs.run(engine, settings, SCORE, source, out)
    done = out.read_bytes()
    with pytest.raises(DataError, match="already there"):
        offline_runs.run(engine, settings, SCORE, source, out)
    with pytest.raises(DataError, match="would be overwritten"):
        offline_runs.run(engine, settings, SCORE, source, source, fresh=True)
    with pytest.raises(DataError, match=r"must end in \.jsonl or \.parquet"):
        offline_runs.run(engine, settings, SCORE, source, tmp_path / "out.csv")
    with pytest.raises(DataError, match="no folder"):
        offline_runs.run(engine, settings, SCORE, source, tmp_path / "nowhere" / "out.jsonl")
    with pytest.raises(DataError, match="no file"):
        offline_runs.run(engine, settings, SCORE, tmp_path / "none.jsonl", tmp_path / "none_out.jsonl")
    offline_runs.run(engine, settings, SCORE, source, out, fresh=True)
    assert out.read_bytes() == done
    assert sorted(file.name for file in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_starting_over_forgets_what_was_begun(engine: Engine, settings: Settings, tmp_path: Path) -> None:
    half_done(engine, settings, tmp_path)
    source = offline_runs.write(tmp_path / "in.jsonl", offline_runs.responses(30, seed=5))
    assert offline_runs.run(engine, settings, SCORE, source, tmp_path / "out.jsonl", fresh=True).kept == 30
    assert [row["n"] for row in offline_runs.read(tmp_path / "out.jsonl")] == list(range(30))


def test_a_part_that_lost_its_end_is_refused(engine: Engine, settings: Settings, tmp_path: Path) -> None:
    source = half_done(engine, settings, tmp_path)
    (tmp_path / "out.jsonl.part").write_bytes(b"")
    with pytest.raises(DataError, match="shorter than it was"):
        offline_runs.run(engine, settings, SCORE, source, tmp_path / "out.jsonl")


def test_two_runs_never_write_one_output(engine: Engine, settings: Settings, tmp_path: Path) -> None:
    source = offline_runs.write(tmp_path / "in.jsonl", offline_runs.responses(9))
    files = Files(tmp_path / "out.jsonl")
    with ledger.opened(files, {}, fresh=False), pytest.raises(DataError, match="another run is writing"):
        offline_runs.run(engine, settings, SCORE, source, files.out, fresh=True)


@contextmanager
def process(source: Path, out: Path, environment: dict[str, str]) -> Iterator[BaseProcess]:
    """The command at work; it is waited for."""
    child = CONTEXT.Process(target=offline_runs.scored, args=(source, out, environment))
    child.start()
    yield child
    child.join()


def noted(out: Path) -> int:
    """Rows that a run says it has done."""
    checkpoint = Files(out).checkpoint
    return int(json.loads(checkpoint.read_text())["mark"]["reach"]["rows"]) if checkpoint.exists() else 0


def killed_ten_times(source: Path, out: Path, environment: dict[str, str], rows: int) -> None:
    """Start, kill -9 at a random row and moment, ten times; then let it end."""
    rng = random.Random(7)
    for target in sorted(rng.sample(range(int(0.95 * rows)), 10)):
        with process(source, out, environment) as child:
            while noted(out) <= target and child.is_alive():
                time.sleep(0.002)
            time.sleep(rng.uniform(0, 0.05))
            child.kill()
        assert child.exitcode == -signal.SIGKILL
        assert not out.exists()
    with process(source, out, environment) as child:
        pass
    assert child.exitcode == 0


@pytest.mark.usefixtures("settings")
@pytest.mark.heavy
def test_a_command_killed_ten_times_ends_in_the_same_bytes(root: Path, tmp_path: Path) -> None:
    source = offline_runs.write(tmp_path / "in.jsonl", offline_runs.mixed(offline_runs.responses(3000)))
    killed_ten_times(source, tmp_path / "broken.jsonl", offline_runs.environ(root), 3000)
    with process(source, tmp_path / "straight.jsonl", offline_runs.environ(root)):
        pass
    assert outputs(tmp_path, "straight.jsonl") == outputs(tmp_path, "broken.jsonl")
    assert len(outputs(tmp_path, "broken.jsonl")[0].splitlines()) == 3000


@pytest.mark.heavy
@pytest.mark.timeout(3600)
@pytest.mark.usefixtures("settings")
def test_a_hundred_thousand_rows_take_no_more_memory_than_a_fifth_of_them(root: Path, tmp_path: Path) -> None:
    rows, environment, out = 100_000, offline_runs.environ(root, 1024), tmp_path / "straight.jsonl"
    source = offline_runs.write(tmp_path / "in.jsonl", offline_runs.mixed(offline_runs.responses(rows)))
    resident: list[tuple[int, int]] = []
    at = 0
    with process(source, out, environment) as child:
        while child.is_alive():
            with suppress(FileNotFoundError, ValueError):
                pages = int(Path(f"/proc/{child.pid}/statm").read_text().split()[1])
                at = max(at, noted(out))
                resident.append((at, pages))
            time.sleep(0.1)
    assert child.exitcode == 0
    early, late = (
        max(pages for at, pages in resident if (at < rows / 5) == first) for first in (True, False)
    )
    assert late <= 1.03 * early, (early, late)
    killed_ten_times(source, tmp_path / "broken.jsonl", environment, rows)
    assert outputs(tmp_path, "straight.jsonl") == outputs(tmp_path, "broken.jsonl")


@pytest.mark.usefixtures("settings")
def test_ctrl_c_stops_at_once_and_says_how_to_go_on(root: Path, tmp_path: Path) -> None:
    source = offline_runs.write(tmp_path / "in.jsonl", offline_runs.responses(20_000))
    out = tmp_path / "out.jsonl"
    program = [sys.executable, "-c", "from app.cli import app; app()"]
    words = [*program, "score", str(source), str(out), "--model", MODEL]
    everything = {**os.environ, **offline_runs.environ(root)}
    with subprocess.Popen(words, env=everything, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as running:
        while noted(out) < 100:
            assert running.poll() is None
            time.sleep(0.01)
        running.send_signal(signal.SIGINT)
        said, _ = running.communicate(timeout=30)
    assert running.returncode == 130
    assert "the same command goes on from here" in said.decode()
    assert 100 <= noted(out) < 20_000
    assert not out.exists()
