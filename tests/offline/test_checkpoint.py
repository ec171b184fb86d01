"""An interrupted run is resumed: it ends in the same bytes, and only if nothing has changed."""

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
from app.offline.checkpoint import RunFiles, open_writer
from app.offline.tasks import COMPARE, SCORE, PairFilter, filter_task
from app.reward.engine import Engine
from app.settings import Settings
from tests.faults.server_processes import FORKSERVER
from tests.support import offline_runs
from tests.support.offline_runs import MODEL
from tests.support.training_setup import Killed, kill_after

ROWS = 400


def read_outputs(folder: Path, name: str) -> list[bytes]:
    files = RunFiles(folder / name)
    return [files.output.read_bytes(), files.bad_rows.read_bytes()]


@hypothesis_settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(cuts=st.lists(st.integers(0, 12), max_size=4), paired=st.booleans(), parquet=st.booleans())
def test_a_run_interrupted_anywhere_ends_in_the_same_bytes(
    engine: Engine, settings: Settings, tmp_path_factory: pytest.TempPathFactory,
    *, cuts: list[int], paired: bool, parquet: bool,
) -> None:  # fmt: skip
    folder = tmp_path_factory.mktemp("interrupted")
    task = filter_task(PairFilter()) if paired else SCORE
    rows = offline_runs.make_pair_rows(120) if paired else offline_runs.make_response_rows(120)
    source = offline_runs.write_rows(folder / "in.jsonl", offline_runs.insert_bad_rows(rows))
    suffix = "parquet" if parquet else "jsonl"
    straight, interrupted = (f"{name}.{suffix}" for name in ("straight", "interrupted"))
    whole = offline_runs.run_task(engine, settings, task, source, folder / straight, batch_tokens=32)
    for after in cuts:
        try:
            offline_runs.run_task(
                engine,
                settings,
                task,
                source,
                folder / interrupted,
                progress=kill_after(after),
                batch_tokens=32,
            )
        except Killed:
            assert not (folder / interrupted).exists()
        else:
            break
    else:
        assert (
            offline_runs.run_task(engine, settings, task, source, folder / interrupted, batch_tokens=32)
            == whole
        )
    assert read_outputs(folder, straight) == read_outputs(folder, interrupted)
    assert whole.bad_rows == 4


def test_lines_after_the_checkpoint_are_cut_off(engine: Engine, settings: Settings, tmp_path: Path) -> None:
    source = offline_runs.write_rows(
        tmp_path / "in.jsonl", offline_runs.insert_bad_rows(offline_runs.make_response_rows(ROWS))
    )
    offline_runs.run_task(engine, settings, SCORE, source, tmp_path / "straight.jsonl")
    files = RunFiles(tmp_path / "interrupted.jsonl")
    with pytest.raises(Killed):
        offline_runs.run_task(engine, settings, SCORE, source, files.output, progress=kill_after(3))
    for path in (files.partial_output, files.partial_bad_rows):
        with path.open("ab") as stream:
            stream.write(b'{"half a ro')
    offline_runs.run_task(engine, settings, SCORE, source, files.output)
    assert read_outputs(tmp_path, "straight.jsonl") == read_outputs(tmp_path, "interrupted.jsonl")


@pytest.mark.parametrize("parquet", [False, True])
def test_a_run_killed_after_its_output_only_cleans_up(
    engine: Engine, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, parquet: bool
) -> None:
    def kill(_: RunFiles) -> None:
        raise Killed

    name = "out.parquet" if parquet else "out.jsonl"
    source = offline_runs.write_rows(
        tmp_path / "in.jsonl", offline_runs.insert_bad_rows(offline_runs.make_response_rows(60))
    )
    with monkeypatch.context() as patch:
        patch.setattr(RunFiles, "clean_up_after_output", kill)
        with pytest.raises(Killed):
            offline_runs.run_task(engine, settings, SCORE, source, tmp_path / name)
    before = (tmp_path / name).read_bytes()
    checkpoint = offline_runs.run_task(engine, settings, SCORE, source, tmp_path / name)
    with pytest.raises(DataError, match="already exists"):
        offline_runs.run_task(engine, settings, SCORE, source, tmp_path / name)
    assert (checkpoint.written_rows, checkpoint.bad_rows) == (60, 2)
    assert (tmp_path / name).read_bytes() == before
    assert len(offline_runs.read_rows(tmp_path / "out.bad.jsonl")) == 2
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(["in.jsonl", "out.bad.jsonl", name])


def start_run(engine: Engine, settings: Settings, folder: Path) -> Path:
    source = offline_runs.write_rows(folder / "in.jsonl", offline_runs.make_response_rows(ROWS))
    with pytest.raises(Killed):
        offline_runs.run_task(engine, settings, SCORE, source, folder / "out.jsonl", progress=kill_after(3))
    return source


def test_only_the_same_run_is_resumed(engine: Engine, settings: Settings, tmp_path: Path) -> None:
    source, out = start_run(engine, settings, tmp_path), tmp_path / "out.jsonl"
    offline_runs.write_rows(tmp_path / "pairs.jsonl", offline_runs.make_pair_rows(9))
    for message, task, options in (
        (r"another task \(score; now compare\)", COMPARE, {}),
        (r"another top_k \(3; now 4\)", SCORE, {"top_k": 4}),
        (r"another prefix", SCORE, {"column_prefix": "a_"}),
        (r"another SPARSERM_MAX_BATCH_TOKENS \(64; now 65\)", SCORE, {"batch_tokens": 65}),
    ):
        with pytest.raises(DataError, match=message):
            offline_runs.run_task(engine, settings, task, source, out, **options)
    shorter = settings.model_copy(update={"max_tokens": 100})
    with pytest.raises(DataError, match="another SPARSERM_MAX_TOKENS"):
        offline_runs.run_task(engine, shorter, SCORE, source, out)
    offline_runs.run_task(engine, settings, SCORE, source, out)
    offline_runs.run_task(engine, settings, SCORE, source, tmp_path / "straight.jsonl")
    assert out.read_bytes() == (tmp_path / "straight.jsonl").read_bytes()


def test_a_run_is_not_resumed_with_a_changed_model(
    settings: Settings, tmp_path: Path, engine: Engine
) -> None:
    source = start_run(engine, settings, tmp_path)
    other = tmp_path / "models"
    other.mkdir()
    (other / MODEL).mkdir()
    for name in ("manifest.json", "SHA256SUMS"):
        text = (settings.models_dir / MODEL / name).read_text()
        (other / MODEL / name).write_text(text.replace("0", "1"))
    moved = settings.model_copy(update={"models_dir": other})
    with pytest.raises(DataError, match="another reward model"):
        offline_runs.run_task(engine, moved, SCORE, source, tmp_path / "out.jsonl")


def test_rows_that_were_read_must_stay_and_more_may_be_appended(
    engine: Engine, settings: Settings, tmp_path: Path
) -> None:
    source, out = start_run(engine, settings, tmp_path), tmp_path / "out.jsonl"
    rows = offline_runs.make_response_rows(ROWS)
    for other in ([*rows[1:], rows[0]], rows[:1]):
        offline_runs.write_rows(source, other)
        with pytest.raises(DataError, match="have changed since this run began"):
            offline_runs.run_task(engine, settings, SCORE, source, out)
    offline_runs.write_rows(source, [*rows, *offline_runs.make_response_rows(20, seed=9)])
    assert offline_runs.run_task(engine, settings, SCORE, source, out).written_rows == ROWS + 20


def test_a_finished_output_and_the_input_are_not_overwritten(
    engine: Engine, settings: Settings, tmp_path: Path
) -> None:
    source, out = start_run(engine, settings, tmp_path), tmp_path / "out.jsonl"
    offline_runs.run_task(engine, settings, SCORE, source, out)
    before = out.read_bytes()
    with pytest.raises(DataError, match="already exists"):
        offline_runs.run_task(engine, settings, SCORE, source, out)
    with pytest.raises(DataError, match="would be overwritten"):
        offline_runs.run_task(engine, settings, SCORE, source, source, fresh=True)
    with pytest.raises(DataError, match=r"must end in \.jsonl or \.parquet"):
        offline_runs.run_task(engine, settings, SCORE, source, tmp_path / "out.csv")
    with pytest.raises(DataError, match="no folder"):
        offline_runs.run_task(engine, settings, SCORE, source, tmp_path / "nowhere" / "out.jsonl")
    with pytest.raises(DataError, match="no file"):
        offline_runs.run_task(engine, settings, SCORE, tmp_path / "none.jsonl", tmp_path / "none_out.jsonl")
    offline_runs.run_task(engine, settings, SCORE, source, out, fresh=True)
    assert out.read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_fresh_starts_over(engine: Engine, settings: Settings, tmp_path: Path) -> None:
    start_run(engine, settings, tmp_path)
    source = offline_runs.write_rows(tmp_path / "in.jsonl", offline_runs.make_response_rows(30, seed=5))
    assert (
        offline_runs.run_task(
            engine, settings, SCORE, source, tmp_path / "out.jsonl", fresh=True
        ).written_rows
        == 30
    )
    assert [row["n"] for row in offline_runs.read_rows(tmp_path / "out.jsonl")] == list(range(30))


def test_a_truncated_partial_output_is_refused(engine: Engine, settings: Settings, tmp_path: Path) -> None:
    source = start_run(engine, settings, tmp_path)
    (tmp_path / "out.jsonl.part").write_bytes(b"")
    with pytest.raises(DataError, match="shorter than its checkpoint says"):
        offline_runs.run_task(engine, settings, SCORE, source, tmp_path / "out.jsonl")


def test_two_runs_cannot_write_one_output(engine: Engine, settings: Settings, tmp_path: Path) -> None:
    source = offline_runs.write_rows(tmp_path / "in.jsonl", offline_runs.make_response_rows(9))
    files = RunFiles(tmp_path / "out.jsonl")
    with open_writer(files, {}, fresh=False), pytest.raises(DataError, match="another run is writing"):
        offline_runs.run_task(engine, settings, SCORE, source, files.output, fresh=True)


@contextmanager
def scoring(source: Path, output: Path, environment: dict[str, str]) -> Iterator[BaseProcess]:
    """Run the command in a process; wait for its end when the block ends."""
    child = FORKSERVER.Process(target=offline_runs.score_in_process, args=(source, output, environment))
    child.start()
    yield child
    child.join()


def count_done_rows(output: Path) -> int:
    """Return the rows that are done according to a run's checkpoint."""
    path = RunFiles(output).checkpoint
    return int(json.loads(path.read_text())["checkpoint"]["position"]["rows"]) if path.exists() else 0


def kill_ten_times(source: Path, output: Path, environment: dict[str, str], rows: int) -> None:
    """Start the command and kill it at a random row and moment, ten times; then let it end."""
    rng = random.Random(7)
    for target in sorted(rng.sample(range(int(0.95 * rows)), 10)):
        with scoring(source, output, environment) as child:
            while count_done_rows(output) <= target and child.is_alive():
                time.sleep(0.002)
            time.sleep(rng.uniform(0, 0.05))
            child.kill()
        assert child.exitcode == -signal.SIGKILL
        assert not output.exists()
    with scoring(source, output, environment) as child:
        pass
    assert child.exitcode == 0


@pytest.mark.usefixtures("settings")
@pytest.mark.heavy
def test_a_command_killed_ten_times_ends_in_the_same_bytes(root: Path, tmp_path: Path) -> None:
    source = offline_runs.write_rows(
        tmp_path / "in.jsonl", offline_runs.insert_bad_rows(offline_runs.make_response_rows(3000))
    )
    kill_ten_times(source, tmp_path / "interrupted.jsonl", offline_runs.make_environment(root), 3000)
    with scoring(source, tmp_path / "straight.jsonl", offline_runs.make_environment(root)):
        pass
    assert read_outputs(tmp_path, "straight.jsonl") == read_outputs(tmp_path, "interrupted.jsonl")
    assert len(read_outputs(tmp_path, "interrupted.jsonl")[0].splitlines()) == 3000


@pytest.mark.heavy
@pytest.mark.timeout(3600)
@pytest.mark.usefixtures("settings")
def test_a_hundred_thousand_rows_take_no_more_memory_than_a_fifth_of_them(root: Path, tmp_path: Path) -> None:
    rows, environment, output = (
        100_000,
        offline_runs.make_environment(root, 1024),
        tmp_path / "straight.jsonl",
    )
    source = offline_runs.write_rows(
        tmp_path / "in.jsonl", offline_runs.insert_bad_rows(offline_runs.make_response_rows(rows))
    )
    memory_pages: list[tuple[int, int]] = []
    done = 0
    with scoring(source, output, environment) as child:
        while child.is_alive():
            with suppress(FileNotFoundError, ValueError):
                pages = int(Path(f"/proc/{child.pid}/statm").read_text().split()[1])
                done = max(done, count_done_rows(output))
                memory_pages.append((done, pages))
            time.sleep(0.1)
    assert child.exitcode == 0
    early, late = (
        max(pages for done, pages in memory_pages if (done < rows / 5) == first) for first in (True, False)
    )
    assert late <= 1.03 * early, (early, late)
    kill_ten_times(source, tmp_path / "interrupted.jsonl", environment, rows)
    assert read_outputs(tmp_path, "straight.jsonl") == read_outputs(tmp_path, "interrupted.jsonl")


@pytest.mark.usefixtures("settings")
def test_ctrl_c_stops_at_once_and_says_how_to_resume(root: Path, tmp_path: Path) -> None:
    source = offline_runs.write_rows(tmp_path / "in.jsonl", offline_runs.make_response_rows(20_000))
    out = tmp_path / "out.jsonl"
    program = [sys.executable, "-c", "from app.cli import app; app()"]
    command = [*program, "score", str(source), str(out), "--model", MODEL]
    environment = {**os.environ, **offline_runs.make_environment(root)}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as running:
        while count_done_rows(out) < 100:
            assert running.poll() is None
            time.sleep(0.01)
        running.send_signal(signal.SIGINT)
        stderr, _ = running.communicate(timeout=30)
    assert running.returncode == 130
    assert "run the same command again to resume" in stderr.decode()
    assert 100 <= count_done_rows(out) < 20_000
    assert not out.exists()
