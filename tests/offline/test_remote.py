"""Offline runs on a server: the same columns as with an engine, and one bad row for each rejected item."""

from pathlib import Path
from typing import Any

import pytest

from app.errors import SparseRMError
from app.offline import run
from app.offline.checkpoint import RunCheckpoint
from app.offline.local import open_local_scorer
from app.offline.remote import open_remote_scorer
from app.offline.run import OfflineRunConfig
from app.offline.scorers import ScoringRequest
from app.offline.tasks import COMPARE, RANK, SCORE, Task
from app.reward import loading
from app.reward.engine import Engine
from app.settings import Settings
from tests.faults.server_processes import OVERFLOW_WORD, FaultyEngine
from tests.support import offline_runs, tiny
from tests.support.offline_runs import MODEL
from tests.support.servers import run_server
from tests.support.training_setup import Killed, ignore_progress, kill_after

ROLE = {"messages": [{"role": "bot", "content": "a"}], "response": "b"}
RANKED = [{"prompt": f"river {n}?", "responses": tiny.WORDS[: 2 + n]} for n in range(9)]


def run_on_server(
    url: str, task: Task, source: Path, output: Path, *, progress: Any = ignore_progress, **options: Any
) -> RunCheckpoint:
    request = ScoringRequest(options.pop("model", MODEL), 3, paired=task.paired, **options)
    return run.run_offline(
        OfflineRunConfig(task, request, str(source), output),
        open_remote_scorer(request, url, None),
        progress,
        batch_tokens=64,
    )


def almost_equal(left: Any, right: Any) -> bool:
    """Return whether two values are equal but for the last digits of numbers."""
    if isinstance(left, float):
        return bool(right == pytest.approx(left, abs=1e-3))
    if isinstance(left, list):
        return len(left) == len(right) and all(map(almost_equal, left, right))
    if isinstance(left, dict):
        return list(left) == list(right) and all(almost_equal(left[name], right[name]) for name in left)
    return bool(left == right)


@pytest.mark.parametrize(
    ("task", "rows"),
    [
        (SCORE, offline_runs.make_response_rows(90)),
        (COMPARE, offline_runs.make_pair_rows(90)),
        (RANK, RANKED),
    ],
    ids=lambda parameter: getattr(parameter, "name", ""),
)
def test_a_server_and_an_engine_give_the_same_rows(
    engine: Engine, settings: Settings, address: str, tmp_path: Path, task: Task, rows: list[Any]
) -> None:
    source = offline_runs.write_rows(tmp_path / "in.jsonl", rows)
    checkpoint = offline_runs.run_task(engine, settings, task, source, tmp_path / "local.jsonl")
    assert (
        run_on_server(address, task, source, tmp_path / "remote.jsonl").written_rows
        == checkpoint.written_rows
        == len(rows)
    )
    local, remote = (offline_runs.read_rows(tmp_path / f"{name}.jsonl") for name in ("local", "remote"))
    assert almost_equal(local, remote)


def test_an_item_that_a_server_rejects_makes_only_its_row_bad(address: str, tmp_path: Path) -> None:
    rows: list[Any] = offline_runs.make_response_rows(60)
    lone_surrogate = '{"prompt": "a", "response": "\\ud800"}\n'
    source = offline_runs.write_rows(
        tmp_path / "in.jsonl", [*rows[:5], ROLE, lone_surrogate, *rows[5:50], ROLE, *rows[50:]]
    )
    checkpoint = run_on_server(address, SCORE, source, tmp_path / "out.jsonl")
    assert (checkpoint.written_rows, checkpoint.bad_rows) == (60, 3)
    assert [row["place"] for row in offline_runs.read_rows(tmp_path / "out.bad.jsonl")] == [
        f"in.jsonl:{n}" for n in (6, 7, 53)
    ]
    assert [row["n"] for row in offline_runs.read_rows(tmp_path / "out.jsonl")] == list(range(60))


def test_an_item_that_a_server_cannot_score_makes_only_its_row_bad(
    settings: Settings, tmp_path: Path
) -> None:
    engine = loading.load_engine(settings, ignore_progress)
    engine.__class__ = FaultyEngine
    rows = offline_runs.make_pair_rows(20)
    rows[4]["rejected"] = f"amber {OVERFLOW_WORD} stone"
    source = offline_runs.write_rows(tmp_path / "in.jsonl", rows)
    with run_server(engine, settings) as url:
        assert run_on_server(url, COMPARE, source, tmp_path / "out.jsonl").written_rows == 19
    (bad,) = offline_runs.read_rows(tmp_path / "out.bad.jsonl")
    assert (bad["place"], "NaN or infinity" in bad["reason"]) == ("in.jsonl:5", True)


def test_a_run_on_a_server_is_resumed(address: str, tmp_path: Path) -> None:
    source = offline_runs.write_rows(tmp_path / "in.jsonl", offline_runs.make_response_rows(150))
    run_on_server(address, SCORE, source, tmp_path / "straight.jsonl")
    with pytest.raises(Killed):
        run_on_server(address, SCORE, source, tmp_path / "interrupted.jsonl", progress=kill_after(2))
    written = (tmp_path / "interrupted.jsonl.part").read_bytes()
    run_on_server(address, SCORE, source, tmp_path / "interrupted.jsonl")
    assert written
    assert (tmp_path / "interrupted.jsonl").read_bytes().startswith(written)
    interrupted, straight = (
        offline_runs.read_rows(tmp_path / f"{name}.jsonl") for name in ("interrupted", "straight")
    )
    assert almost_equal(interrupted, straight)


def test_url_and_model_are_checked_first(address: str, tmp_path: Path) -> None:
    source = offline_runs.write_rows(tmp_path / "in.jsonl", offline_runs.make_response_rows(3))
    for url, model, message in (
        (address, "unknown", "no model 'unknown'"),
        ("nonsense", MODEL, "nonsense: "),
        (f"{address}/nowhere", MODEL, "404"),
    ):
        with pytest.raises(SparseRMError, match=message):
            run_on_server(url, SCORE, source, tmp_path / "out.jsonl", model=model)
    assert list(tmp_path.iterdir()) == [source]


def test_a_profile_and_a_composite_are_scored_alike(tmp_path: Path) -> None:
    settings = tiny.build_models(tmp_path)
    (settings.models_dir / "composites.toml").write_text("[both]\nweights = { alpha = 1, beta = 1 }\n")
    (settings.models_dir / "alpha" / "profiles").mkdir()
    (settings.models_dir / "alpha" / "profiles" / "brief.json").write_text('{"length_control": true}')
    item = (tiny.make_item("river", "amber stone"),)
    with run_server(loading.load_engine(settings, ignore_progress), settings) as url:
        for name in ("alpha@brief", "both"):
            request = ScoringRequest(name, 2)
            with (
                open_remote_scorer(request, url, None) as remote,
                open_local_scorer(request, settings, ignore_progress) as local,
            ):
                theirs, ours = (scorer.score(scorer.prepare([item]))[0] for scorer in (remote, local))
            assert isinstance(theirs, list)
            assert isinstance(ours, list)
            assert almost_equal({name: ours[0][name] for name in theirs[0]}, theirs[0])
            assert ours[0].keys() == theirs[0].keys()
            assert ours[0]["model"] == name
