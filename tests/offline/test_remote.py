"""The same jobs against a running server: the same columns, its refusals item by item."""

from pathlib import Path
from typing import Any

import pytest

from app.errors import SparseRMError
from app.offline import run
from app.offline.checkpoint import Mark
from app.offline.local import resident
from app.offline.remote import remote
from app.offline.run import Order
from app.offline.scorers import Question
from app.offline.tasks import COMPARE, RANK, SCORE, Task
from app.reward import loading
from app.reward.engine import Engine
from app.settings import Settings
from tests.faults.server_processes import OVERFLOW, Faulty
from tests.support import offline_runs, tiny
from tests.support.offline_runs import MODEL
from tests.support.servers import listening
from tests.support.training_setup import Killed, killing, quiet

ROLE = {"messages": [{"role": "bot", "content": "a"}], "response": "b"}
RANKED = [{"prompt": f"river {n}?", "responses": tiny.WORDS[: 2 + n]} for n in range(9)]


def there(url: str, task: Task, source: Path, out: Path, *, report: Any = quiet, **choices: Any) -> Mark:
    question = Question(choices.pop("model", MODEL), 3, paired=task.paired, **choices)
    return run.run(
        Order(task, question, str(source), out), remote(question, url, None), report, pass_tokens=64
    )


def alike(ours: Any, theirs: Any) -> bool:
    """Equal but for the last digits of numbers."""
    if isinstance(ours, float):
        return bool(theirs == pytest.approx(ours, abs=1e-3))
    if isinstance(ours, list):
        return len(ours) == len(theirs) and all(map(alike, ours, theirs))
    if isinstance(ours, dict):
        return list(ours) == list(theirs) and all(alike(ours[name], theirs[name]) for name in ours)
    return bool(ours == theirs)


@pytest.mark.parametrize(
    ("task", "rows"),
    [(SCORE, offline_runs.responses(90)), (COMPARE, offline_runs.pairs(90)), (RANK, RANKED)],
    ids=lambda what: getattr(what, "name", ""),
)
def test_a_server_and_the_engine_say_the_same(
    engine: Engine, settings: Settings, address: str, tmp_path: Path, task: Task, rows: list[Any]
) -> None:
    source = offline_runs.write(tmp_path / "in.jsonl", rows)
    here = offline_runs.run(engine, settings, task, source, tmp_path / "here.jsonl")
    assert there(address, task, source, tmp_path / "there.jsonl").kept == here.kept == len(rows)
    assert alike(offline_runs.read(tmp_path / "here.jsonl"), offline_runs.read(tmp_path / "there.jsonl"))


def test_what_a_server_refuses_costs_only_its_row(address: str, tmp_path: Path) -> None:
    rows: list[Any] = offline_runs.responses(60)
    half = '{"prompt": "a", "response": "\\ud800"}\n'
    source = offline_runs.write(tmp_path / "in.jsonl", [*rows[:5], ROLE, half, *rows[5:50], ROLE, *rows[50:]])
    mark = there(address, SCORE, source, tmp_path / "out.jsonl")
    assert (mark.kept, mark.bad) == (60, 3)
    assert [one["place"] for one in offline_runs.read(tmp_path / "out.bad.jsonl")] == [
        f"in.jsonl:{n}" for n in (6, 7, 53)
    ]
    assert [row["n"] for row in offline_runs.read(tmp_path / "out.jsonl")] == list(range(60))


def test_an_item_the_server_cannot_score_costs_only_its_row(settings: Settings, tmp_path: Path) -> None:
    engine = loading.engine(settings, quiet)
    engine.__class__ = Faulty
    rows = offline_runs.pairs(20)
    rows[4]["rejected"] = f"amber {OVERFLOW} stone"
    source = offline_runs.write(tmp_path / "in.jsonl", rows)
    with listening(engine, settings) as url:
        assert there(url, COMPARE, source, tmp_path / "out.jsonl").kept == 19
    (bad,) = offline_runs.read(tmp_path / "out.bad.jsonl")
    assert (bad["place"], "NaN or infinity" in bad["reason"]) == ("in.jsonl:5", True)


def test_a_run_through_a_server_goes_on(address: str, tmp_path: Path) -> None:
    source = offline_runs.write(tmp_path / "in.jsonl", offline_runs.responses(150))
    there(address, SCORE, source, tmp_path / "straight.jsonl")
    with pytest.raises(Killed):
        there(address, SCORE, source, tmp_path / "cut.jsonl", report=killing(2))
    written = (tmp_path / "cut.jsonl.part").read_bytes()
    there(address, SCORE, source, tmp_path / "cut.jsonl")
    assert written
    assert (tmp_path / "cut.jsonl").read_bytes().startswith(written)
    assert alike(offline_runs.read(tmp_path / "cut.jsonl"), offline_runs.read(tmp_path / "straight.jsonl"))


def test_whom_to_ask_is_checked_first(address: str, tmp_path: Path) -> None:
    source = offline_runs.write(tmp_path / "in.jsonl", offline_runs.responses(3))
    for url, model, complaint in (
        (address, "nobody", "no model 'nobody'"),
        ("nonsense", MODEL, "nonsense: "),
        (f"{address}/nowhere", MODEL, "404"),
    ):
        with pytest.raises(SparseRMError, match=complaint):
            there(url, SCORE, source, tmp_path / "out.jsonl", model=model)
    assert list(tmp_path.iterdir()) == [source]


def test_a_profile_and_a_composite_are_known_by_their_cards(tmp_path: Path) -> None:
    made = tiny.world(tmp_path)
    (made.models_dir / "composites.toml").write_text("[both]\nweights = { alpha = 1, beta = 1 }\n")
    (made.models_dir / "alpha" / "profiles").mkdir()
    (made.models_dir / "alpha" / "profiles" / "brief.json").write_text('{"length_control": true}')
    item = (tiny.exchange("river", "amber stone"),)
    with listening(loading.engine(made, quiet), made) as url:
        for name in ("alpha@brief", "both"):
            question = Question(name, 2)
            with remote(question, url, None) as far, resident(question, made, quiet) as near:
                theirs, ours = (judge.answer(judge.prepare([item]))[0] for judge in (far, near))
            assert isinstance(theirs, list)
            assert isinstance(ours, list)
            assert alike({name: ours[0][name] for name in theirs[0]}, theirs[0])
            assert ours[0].keys() == theirs[0].keys()
            assert ours[0]["model"] == name
