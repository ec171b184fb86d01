"""Offline runs over whole data sets: the rows they write, the rows they reject, and that none is lost."""

import json
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet

from app.errors import DataError
from app.offline.tasks import COMPARE, RANK, SCORE, PairFilter, filter_task
from app.reward.engine import Engine
from app.settings import Settings
from app.types import Explain, ScoreOptions
from tests.support import offline_runs, tiny
from tests.support.offline_runs import CLOSE, MODEL

LIMITED = ("margin", "uncertainty", "distance")
BAD_LINES = {
    '{"prompt": "x", \n': "not JSON",
    "[1]\n": "must be an object",
    '{"prompt": "river"}\n': "no 'response'",
    '{"prompt": "river", "response": ""}\n': "'response' must be",
    '{"response": "river"}\n': "no 'prompt'",
    '{"prompt": "river", "response": "stone", "reward": 1}\n': "already has reward",
    '{"prompt": "river", "response": "\\ud800"}\n': "surrogate",
    '{"messages": [{"role": "bot", "content": "a"}], "response": "b"}\n': "messages[0].role: unknown role",
}


def test_rows_get_the_numbers_of_the_engine_in_order(
    engine: Engine, settings: Settings, tmp_path: Path
) -> None:
    rows = offline_runs.make_response_rows(120)
    source = offline_runs.write_rows(tmp_path / "in.jsonl", rows)
    checkpoint = offline_runs.run_task(engine, settings, SCORE, source, tmp_path / "out.jsonl")
    scored_rows = offline_runs.read_rows(tmp_path / "out.jsonl")
    assert (checkpoint.written_rows, checkpoint.bad_rows, checkpoint.dropped_rows) == (120, 0, 0)
    items = [tiny.make_item(row["prompt"], row["response"]) for row in rows]
    scores = tiny.score_items(engine, items, ScoreOptions((MODEL,), Explain.FEATURES, 3))
    for row, scored, (score,) in zip(rows, scored_rows, scores, strict=True):
        assert {name: scored[name] for name in row} == row
        for name in ("reward", "uncertainty", "percentile", "distance"):
            assert scored[name] == pytest.approx(getattr(score, name), abs=1e-3)
        assert scored["reward"] == pytest.approx(score.reward, abs=CLOSE)
        assert [feature["id"] for feature in scored["features"]] == [f.feature.latent for f in score.features]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_every_format_of_an_item_is_scored_alike(engine: Engine, settings: Settings, tmp_path: Path) -> None:
    prompt = {"role": "user", "content": "river?"}
    response = {"role": "assistant", "content": "stone"}
    hh = "\n\nHuman: river?\n\nAssistant:"
    rows: list[dict[str, Any]] = [
        {"prompt": "river?", "response": "stone"},
        {"messages": [prompt], "response": "stone"},
        {"messages": [prompt, response]},
        {"prompt": [prompt], "response": [response]},
        {"prompt": hh, "response": "stone"},
        {"response": f"{hh} stone"},
    ]
    offline_runs.run_task(
        engine, settings, SCORE, offline_runs.write_rows(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    )
    rewards = [row["reward"] for row in offline_runs.read_rows(tmp_path / "out.jsonl")]
    assert rewards == pytest.approx([rewards[0]] * len(rows), abs=CLOSE)


def test_bad_rows_are_written_to_their_own_file_with_reasons(
    engine: Engine, settings: Settings, tmp_path: Path
) -> None:
    rows = offline_runs.make_response_rows(40)
    lines: list[Any] = [line for row, bad in zip(rows, [*BAD_LINES] * 5, strict=True) for line in (row, bad)]
    source = offline_runs.write_rows(tmp_path / "in.jsonl", [*lines, "\n"])
    checkpoint = offline_runs.run_task(engine, settings, SCORE, source, tmp_path / "out.jsonl")
    bad_rows = offline_runs.read_rows(tmp_path / "out.bad.jsonl")
    assert (checkpoint.written_rows, checkpoint.bad_rows) == (40, 40)
    assert [row["n"] for row in offline_runs.read_rows(tmp_path / "out.jsonl")] == list(range(40))
    assert [bad["place"] for bad in bad_rows] == [f"in.jsonl:{2 * n + 2}" for n in range(40)]
    for bad, (line, reason) in zip(bad_rows, [*BAD_LINES.items()] * 5, strict=True):
        assert reason in bad["reason"]
        is_object = line.startswith("{") and line.endswith("}\n")
        assert bad["row"] == (json.loads(line) if is_object else line.strip())


def test_a_line_that_is_not_utf8_is_one_bad_row(engine: Engine, settings: Settings, tmp_path: Path) -> None:
    good = json.dumps(offline_runs.make_response_rows(1)[0]).encode() + b"\n"
    (tmp_path / "in.jsonl").write_bytes(
        good + b'{"prompt": "\xff", "response": "a"}\n' + b"[" * 10**5 + b"\n" + good
    )
    checkpoint = offline_runs.run_task(engine, settings, SCORE, tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    assert (checkpoint.written_rows, checkpoint.bad_rows) == (2, 2)


def test_other_columns_may_hold_any_json_value(engine: Engine, settings: Settings, tmp_path: Path) -> None:
    unusual = {"prompt": "a", "response": "b", "half": "\ud800", "é": [1.5, None, {"x": True}], "big": 2**70}
    offline_runs.run_task(
        engine,
        settings,
        SCORE,
        offline_runs.write_rows(tmp_path / "in.jsonl", [unusual]),
        tmp_path / "out.jsonl",
    )
    (row,) = offline_runs.read_rows(tmp_path / "out.jsonl")
    assert {name: row[name] for name in unusual} == unusual
    assert "é" in (tmp_path / "out.jsonl").read_text()


def test_strict_stops_at_the_first_bad_row_and_resumes_once_it_is_fixed(
    engine: Engine, settings: Settings, tmp_path: Path
) -> None:
    rows: list[Any] = offline_runs.make_response_rows(80)
    good = offline_runs.write_rows(tmp_path / "good.jsonl", rows)
    offline_runs.run_task(engine, settings, SCORE, good, tmp_path / "straight.jsonl")
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    offline_runs.write_rows(source, [*rows[:70], '{"prompt": "x"}\n', *rows[70:]])
    with pytest.raises(DataError, match=r"in\.jsonl:71: no 'response'"):
        offline_runs.run_task(engine, settings, SCORE, source, out, strict=True)
    assert not out.exists()
    offline_runs.write_rows(source, rows)
    offline_runs.run_task(engine, settings, SCORE, source, out, strict=True)
    assert out.read_bytes() == (tmp_path / "straight.jsonl").read_bytes()


def test_a_run_that_stops_before_its_first_chunk_leaves_no_files(
    engine: Engine, settings: Settings, tmp_path: Path
) -> None:
    source = offline_runs.write_rows(
        tmp_path / "in.jsonl", ['{"prompt": "x"}\n', *offline_runs.make_response_rows(3)]
    )
    with pytest.raises(DataError, match=r"in\.jsonl:1"):
        offline_runs.run_task(engine, settings, SCORE, source, tmp_path / "out.jsonl", strict=True)
    assert list(tmp_path.iterdir()) == [source]


def test_a_run_in_which_every_row_is_bad_fails(engine: Engine, settings: Settings, tmp_path: Path) -> None:
    source = offline_runs.write_rows(tmp_path / "in.jsonl", offline_runs.make_pair_rows(5))
    with pytest.raises(DataError, match=r"all 5 rows are bad; the first, in\.jsonl:1: no 'response'"):
        offline_runs.run_task(engine, settings, SCORE, source, tmp_path / "out.jsonl")
    assert list(tmp_path.iterdir()) == [source]


def test_an_empty_input_gives_an_empty_output(engine: Engine, settings: Settings, tmp_path: Path) -> None:
    source = offline_runs.write_rows(tmp_path / "in.jsonl", [])
    offline_runs.run_task(engine, settings, SCORE, source, tmp_path / "out.jsonl")
    offline_runs.run_task(engine, settings, SCORE, source, tmp_path / "out.parquet")
    assert (tmp_path / "out.jsonl").read_bytes() == b""
    assert parquet.read_table(tmp_path / "out.parquet").num_rows == 0


def test_a_comparison_is_the_difference_of_two_rewards(
    engine: Engine, settings: Settings, tmp_path: Path
) -> None:
    rows = offline_runs.make_pair_rows(60)
    offline_runs.run_task(
        engine,
        settings,
        COMPARE,
        offline_runs.write_rows(tmp_path / "in.jsonl", rows),
        tmp_path / "out.jsonl",
        top_k=1000,
    )
    for row, compared in zip(rows, offline_runs.read_rows(tmp_path / "out.jsonl"), strict=True):
        items = [tiny.make_item(row["prompt"], row[side]) for side in ("chosen", "rejected")]
        (chosen,), (rejected,) = tiny.score_items(engine, items, ScoreOptions((MODEL,)))
        assert compared["margin"] == pytest.approx(chosen.reward - rejected.reward, abs=CLOSE)
        assert compared["probability"] == pytest.approx(
            engine.compute_preference_probability(MODEL, compared["margin"])
        )
        assert compared["distance"] == pytest.approx(max(chosen.distance, rejected.distance), abs=1e-3)
        contributions = [feature["contribution"] for feature in compared["features"]]
        assert sum(contributions) == pytest.approx(compared["margin"])


def test_a_filter_drops_the_pairs_outside_its_limits(
    engine: Engine, settings: Settings, tmp_path: Path
) -> None:
    source = offline_runs.write_rows(tmp_path / "in.jsonl", offline_runs.make_pair_rows(80))
    offline_runs.run_task(engine, settings, COMPARE, source, tmp_path / "all.jsonl", top_k=0)
    compared = offline_runs.read_rows(tmp_path / "all.jsonl")
    medians = {name: sorted(row[name] for row in compared)[40] for name in compared[0] if name in LIMITED}
    for index, (pair_filter, expected) in enumerate(
        [
            (PairFilter(), [row for row in compared if row["chosen_reward"] >= row["rejected_reward"]]),
            (PairFilter(medians["margin"]), [row for row in compared if row["margin"] >= medians["margin"]]),
            *(
                (
                    PairFilter(-10.0, **{f"max_{name}": medians[name]}),
                    [row for row in compared if row[name] <= medians[name]],
                )
                for name in ("uncertainty", "distance")
            ),
        ]
    ):
        checkpoint = offline_runs.run_task(
            engine, settings, filter_task(pair_filter), source, tmp_path / f"{index}.jsonl", top_k=0
        )
        assert 0 < len(expected) < 80
        assert (checkpoint.written_rows, checkpoint.dropped_rows) == (len(expected), 80 - len(expected))
        assert offline_runs.read_rows(tmp_path / f"{index}.jsonl") == expected


def test_the_best_of_n_comes_first(engine: Engine, settings: Settings, tmp_path: Path) -> None:
    rows: list[Any] = [
        {"prompt": f"river {n}?", "responses": tiny.WORDS[: n + 1]} for n in range(len(tiny.WORDS))
    ]
    rows.append({"prompt": "twins", "responses": ["stone", "glass", "stone"]})
    offline_runs.run_task(
        engine, settings, RANK, offline_runs.write_rows(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    )
    ranked_rows = offline_runs.read_rows(tmp_path / "out.jsonl")
    for row, ranked in zip(rows, ranked_rows, strict=True):
        items = [tiny.make_item(row["prompt"], text) for text in row["responses"]]
        rewards = [score.reward for (score,) in tiny.score_items(engine, items, ScoreOptions((MODEL,)))]
        assert ranked["rewards"] == pytest.approx(rewards, abs=CLOSE)
        assert [ranked["rewards"][i] for i in ranked["order"]] == sorted(ranked["rewards"], reverse=True)
        assert ranked["chosen"] == row["responses"][ranked["order"][0]]
        assert ranked["margin"] == max(ranked["rewards"]) - min(ranked["rewards"])
        assert len(ranked["features"]) == 3
    assert ranked_rows[0]["rejected"] is None
    assert {ranked["rejected"] for ranked in ranked_rows[1:]} <= set(tiny.WORDS)
    assert ranked_rows[-1]["order"] in ([0, 2, 1], [1, 0, 2])
    assert ranked_rows[-1]["rewards"][0] == ranked_rows[-1]["rewards"][2]


def test_ranked_rows_can_be_compared(engine: Engine, settings: Settings, tmp_path: Path) -> None:
    rows = [{"prompt": "river", "responses": tiny.WORDS}]
    offline_runs.run_task(
        engine,
        settings,
        RANK,
        offline_runs.write_rows(tmp_path / "in.jsonl", rows),
        tmp_path / "ranked.jsonl",
    )
    offline_runs.run_task(
        engine, settings, COMPARE, tmp_path / "ranked.jsonl", tmp_path / "out.jsonl", column_prefix="again_"
    )
    (row,) = offline_runs.read_rows(tmp_path / "out.jsonl")
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
def test_a_row_without_prompt_or_responses_cannot_be_ranked(
    engine: Engine, settings: Settings, tmp_path: Path, row: Any, reason: str
) -> None:
    good = {"prompt": "a", "responses": ["b"]}
    offline_runs.run_task(
        engine,
        settings,
        RANK,
        offline_runs.write_rows(tmp_path / "in.jsonl", [good, row]),
        tmp_path / "out.jsonl",
    )
    (bad,) = offline_runs.read_rows(tmp_path / "out.bad.jsonl")
    assert reason in bad["reason"]
