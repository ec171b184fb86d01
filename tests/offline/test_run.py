"""Whole data sets through a model: what is written, what is refused, and that nothing is lost."""

import json
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet

from app.errors import DataError
from app.offline.tasks import COMPARE, RANK, SCORE, Rule, filtered
from app.reward.engine import Engine
from app.settings import Settings
from app.types import Explain, ScoreOptions
from tests.support import offline_runs, tiny
from tests.support.offline_runs import CLOSE, MODEL

LIMITED = ("margin", "uncertainty", "distance")
BAD = {
    '{"prompt": "x", \n': "not JSON",
    "[1]\n": "must be an object",
    '{"prompt": "river"}\n': "no 'response'",
    '{"prompt": "river", "response": ""}\n': "'response' must be",
    '{"response": "river"}\n': "no 'prompt'",
    '{"prompt": "river", "response": "stone", "reward": 1}\n': "already has reward",
    '{"prompt": "river", "response": "\\ud800"}\n': "surrogate",
    '{"messages": [{"role": "bot", "content": "a"}], "response": "b"}\n': "messages[0].role: unknown role",
}


def test_every_row_gets_the_engine_s_own_numbers_in_order(
    engine: Engine, settings: Settings, tmp_path: Path
) -> None:
    rows = offline_runs.responses(120)
    mark = offline_runs.run(
        engine, settings, SCORE, offline_runs.write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    )
    found = offline_runs.read(tmp_path / "out.jsonl")
    assert (mark.kept, mark.bad, mark.dropped) == (120, 0, 0)
    exchanges = [tiny.exchange(row["prompt"], row["response"]) for row in rows]
    for row, one, (score,) in zip(
        rows, found, tiny.scores(engine, exchanges, ScoreOptions((MODEL,), Explain.FEATURES, 3)), strict=True
    ):
        assert {name: one[name] for name in row} == row
        for name in ("reward", "uncertainty", "percentile", "distance"):
            assert one[name] == pytest.approx(getattr(score, name), abs=1e-3)
        assert one["reward"] == pytest.approx(score.reward, abs=CLOSE)
        assert [feature["id"] for feature in one["features"]] == [f.feature.latent for f in score.features]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_every_way_of_writing_an_exchange_is_scored_alike(
    engine: Engine, settings: Settings, tmp_path: Path
) -> None:
    asked = {"role": "user", "content": "river?"}
    said = {"role": "assistant", "content": "stone"}
    hh = "\n\nHuman: river?\n\nAssistant:"
    forms: list[dict[str, Any]] = [
        {"prompt": "river?", "response": "stone"},
        {"messages": [asked], "response": "stone"},
        {"messages": [asked, said]},
        {"prompt": [asked], "response": [said]},
        {"prompt": hh, "response": "stone"},
        {"response": f"{hh} stone"},
    ]
    offline_runs.run(
        engine, settings, SCORE, offline_runs.write(tmp_path / "in.jsonl", forms), tmp_path / "out.jsonl"
    )
    rewards = [row["reward"] for row in offline_runs.read(tmp_path / "out.jsonl")]
    assert rewards == pytest.approx([rewards[0]] * len(forms), abs=CLOSE)


def test_bad_rows_go_aside_with_their_reasons(engine: Engine, settings: Settings, tmp_path: Path) -> None:
    rows = offline_runs.responses(40)
    mixed: list[Any] = [
        one for row, bad in zip(rows, [*BAD, *BAD, *BAD, *BAD, *BAD], strict=True) for one in (row, bad)
    ]
    source = offline_runs.write(tmp_path / "in.jsonl", [*mixed, "\n"])
    mark = offline_runs.run(engine, settings, SCORE, source, tmp_path / "out.jsonl")
    bad = offline_runs.read(tmp_path / "out.bad.jsonl")
    assert (mark.kept, mark.bad) == (40, 40)
    assert [row["n"] for row in offline_runs.read(tmp_path / "out.jsonl")] == list(range(40))
    assert [one["place"] for one in bad] == [f"in.jsonl:{2 * n + 2}" for n in range(40)]
    for one, (line, reason) in zip(bad, [*BAD.items()] * 5, strict=True):
        assert reason in one["reason"]
        whole = line.startswith("{") and line.endswith("}\n")
        assert one["row"] == (json.loads(line) if whole else line.strip())


def test_bytes_that_are_no_text_are_one_bad_row(engine: Engine, settings: Settings, tmp_path: Path) -> None:
    good = json.dumps(offline_runs.responses(1)[0]).encode() + b"\n"
    (tmp_path / "in.jsonl").write_bytes(
        good + b'{"prompt": "\xff", "response": "a"}\n' + b"[" * 10**5 + b"\n" + good
    )
    mark = offline_runs.run(engine, settings, SCORE, tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    assert (mark.kept, mark.bad) == (2, 2)


def test_other_columns_may_hold_anything_json_can(engine: Engine, settings: Settings, tmp_path: Path) -> None:
    odd = {"prompt": "a", "response": "b", "half": "\ud800", "é": [1.5, None, {"x": True}], "big": 2**70}
    offline_runs.run(
        engine, settings, SCORE, offline_runs.write(tmp_path / "in.jsonl", [odd]), tmp_path / "out.jsonl"
    )
    (row,) = offline_runs.read(tmp_path / "out.jsonl")
    assert {name: row[name] for name in odd} == odd
    assert "é" in (tmp_path / "out.jsonl").read_text()


def test_strict_stops_at_the_first_bad_row_and_goes_on_once_it_is_mended(
    engine: Engine, settings: Settings, tmp_path: Path
) -> None:
    rows: list[Any] = offline_runs.responses(80)
    whole = offline_runs.write(tmp_path / "whole.jsonl", rows)
    offline_runs.run(engine, settings, SCORE, whole, tmp_path / "straight.jsonl")
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    offline_runs.write(source, [*rows[:70], '{"prompt": "x"}\n', *rows[70:]])
    with pytest.raises(DataError, match=r"in\.jsonl:71: no 'response'"):
        offline_runs.run(engine, settings, SCORE, source, out, strict=True)
    assert not out.exists()
    offline_runs.write(source, rows)
    offline_runs.run(engine, settings, SCORE, source, out, strict=True)
    assert out.read_bytes() == (tmp_path / "straight.jsonl").read_bytes()


def test_a_stop_before_anything_was_done_leaves_nothing(
    engine: Engine, settings: Settings, tmp_path: Path
) -> None:
    source = offline_runs.write(tmp_path / "in.jsonl", ['{"prompt": "x"}\n', *offline_runs.responses(3)])
    with pytest.raises(DataError, match=r"in\.jsonl:1"):
        offline_runs.run(engine, settings, SCORE, source, tmp_path / "out.jsonl", strict=True)
    assert list(tmp_path.iterdir()) == [source]


def test_not_one_good_row_is_a_mistake(engine: Engine, settings: Settings, tmp_path: Path) -> None:
    source = offline_runs.write(tmp_path / "in.jsonl", offline_runs.pairs(5))
    with pytest.raises(
        DataError, match=r"not one of 5 rows could be used; the first, in\.jsonl:1: no 'response'"
    ):
        offline_runs.run(engine, settings, SCORE, source, tmp_path / "out.jsonl")
    assert list(tmp_path.iterdir()) == [source]


def test_no_rows_give_no_rows(engine: Engine, settings: Settings, tmp_path: Path) -> None:
    source = offline_runs.write(tmp_path / "in.jsonl", [])
    offline_runs.run(engine, settings, SCORE, source, tmp_path / "out.jsonl")
    offline_runs.run(engine, settings, SCORE, source, tmp_path / "out.parquet")
    assert (tmp_path / "out.jsonl").read_bytes() == b""
    assert parquet.read_table(tmp_path / "out.parquet").num_rows == 0


def test_a_comparison_is_the_difference_of_two_rewards(
    engine: Engine, settings: Settings, tmp_path: Path
) -> None:
    rows = offline_runs.pairs(60)
    offline_runs.run(
        engine,
        settings,
        COMPARE,
        offline_runs.write(tmp_path / "in.jsonl", rows),
        tmp_path / "out.jsonl",
        top_k=1000,
    )
    for row, one in zip(rows, offline_runs.read(tmp_path / "out.jsonl"), strict=True):
        exchanges = [tiny.exchange(row["prompt"], row[side]) for side in ("chosen", "rejected")]
        (chosen,), (rejected,) = tiny.scores(engine, exchanges, ScoreOptions((MODEL,)))
        assert one["margin"] == pytest.approx(chosen.reward - rejected.reward, abs=CLOSE)
        assert one["probability"] == pytest.approx(engine.probability(MODEL, one["margin"]))
        assert one["distance"] == pytest.approx(max(chosen.distance, rejected.distance), abs=1e-3)
        assert sum(feature["contribution"] for feature in one["features"]) == pytest.approx(one["margin"])


def test_a_filter_drops_what_the_model_disagrees_with(
    engine: Engine, settings: Settings, tmp_path: Path
) -> None:
    source = offline_runs.write(tmp_path / "in.jsonl", offline_runs.pairs(80))
    offline_runs.run(engine, settings, COMPARE, source, tmp_path / "all.jsonl", top_k=0)
    everything = offline_runs.read(tmp_path / "all.jsonl")
    middle = {name: sorted(row[name] for row in everything)[40] for name in everything[0] if name in LIMITED}
    for at, (rule, kept) in enumerate(
        [
            (Rule(), [row for row in everything if row["chosen_reward"] >= row["rejected_reward"]]),
            (Rule(middle["margin"]), [row for row in everything if row["margin"] >= middle["margin"]]),
            *(
                (
                    Rule(-10.0, **{f"max_{name}": middle[name]}),
                    [r for r in everything if r[name] <= middle[name]],
                )
                for name in ("uncertainty", "distance")
            ),
        ]
    ):
        mark = offline_runs.run(engine, settings, filtered(rule), source, tmp_path / f"{at}.jsonl", top_k=0)
        assert 0 < len(kept) < 80
        assert (mark.kept, mark.dropped) == (len(kept), 80 - len(kept))
        assert offline_runs.read(tmp_path / f"{at}.jsonl") == kept


def test_the_best_of_n_comes_first(engine: Engine, settings: Settings, tmp_path: Path) -> None:
    rows: list[Any] = [
        {"prompt": f"river {n}?", "responses": tiny.WORDS[: n + 1]} for n in range(len(tiny.WORDS))
    ]
    rows.append({"prompt": "twins", "responses": ["stone", "glass", "stone"]})
    offline_runs.run(
        engine, settings, RANK, offline_runs.write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    )
    found = offline_runs.read(tmp_path / "out.jsonl")
    for row, one in zip(rows, found, strict=True):
        exchanges = [tiny.exchange(row["prompt"], text) for text in row["responses"]]
        rewards = [score.reward for (score,) in tiny.scores(engine, exchanges, ScoreOptions((MODEL,)))]
        assert one["rewards"] == pytest.approx(rewards, abs=CLOSE)
        assert [one["rewards"][i] for i in one["order"]] == sorted(one["rewards"], reverse=True)
        assert one["chosen"] == row["responses"][one["order"][0]]
        assert one["margin"] == max(one["rewards"]) - min(one["rewards"])
        assert len(one["features"]) == 3
    assert found[0]["rejected"] is None
    assert {row["rejected"] for row in found[1:]} <= set(tiny.WORDS)
    assert found[-1]["order"] in ([0, 2, 1], [1, 0, 2])
    assert found[-1]["rewards"][0] == found[-1]["rewards"][2]


def test_ranked_rows_are_pairs(engine: Engine, settings: Settings, tmp_path: Path) -> None:
    rows = [{"prompt": "river", "responses": tiny.WORDS}]
    offline_runs.run(
        engine, settings, RANK, offline_runs.write(tmp_path / "in.jsonl", rows), tmp_path / "ranked.jsonl"
    )
    offline_runs.run(
        engine, settings, COMPARE, tmp_path / "ranked.jsonl", tmp_path / "out.jsonl", prefix="again_"
    )
    (row,) = offline_runs.read(tmp_path / "out.jsonl")
    assert row["again_margin"] == pytest.approx(row["margin"], abs=CLOSE)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "a", "responses": []}, "'responses' must be a list"),
        ({"prompt": "a", "responses": ["b", ""]}, "'responses' must be a non-empty string"),
        ({"prompt": "a", "response": "b"}, "'responses' must be a list"),
        ({"responses": ["b"]}, "no 'prompt'"),
    ],
)
def test_what_cannot_be_ranked(
    engine: Engine, settings: Settings, tmp_path: Path, row: Any, reason: str
) -> None:
    good = {"prompt": "a", "responses": ["b"]}
    offline_runs.run(
        engine, settings, RANK, offline_runs.write(tmp_path / "in.jsonl", [good, row]), tmp_path / "out.jsonl"
    )
    (bad,) = offline_runs.read(tmp_path / "out.bad.jsonl")
    assert reason in bad["reason"]
