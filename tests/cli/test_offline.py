"""The commands `sparserm score`, `compare`, `filter` and `rank`, and the chart of one reward."""

import json
import re
from io import StringIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from pyarrow import parquet
from rich.console import Console

from app.cli.waterfall import render_waterfall
from app.offline.remote import POSITION_FIELDS
from app.reward import loading
from app.settings import Settings
from tests.cli.test_commands import joined_output, sparserm
from tests.support import offline_runs, tiny
from tests.support.offline_runs import MODEL
from tests.support.servers import run_server
from tests.support.training_setup import ignore_progress

PROMPT_AND_RESPONSE = ("--prompt", "amber river", "--response", "quiet stone")
CHART_LINE = re.compile(r"^(.+?) +([+-]\d+\.\d{3}) ", re.MULTILINE)


@pytest.fixture
def workdir(root: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty working directory; the environment names the tiny models."""
    assert settings.models_dir == root / "models"
    for name, value in offline_runs.make_environment(root).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_data_set_is_scored_and_its_bad_rows_are_counted(workdir: Path) -> None:
    offline_runs.write_rows(
        workdir / "in.jsonl", [*offline_runs.make_response_rows(20), "{\n", '{"prompt": "x"}\n']
    )
    result = sparserm("score", "in.jsonl", "out.parquet", "--model", MODEL, "--top-k", 2, "--prefix", "a_")
    assert result.exit_code == 0, result.output
    expected = "20 rows in out.parquet; 2 bad rows in out.bad.jsonl, each with its reason"
    assert expected in joined_output(result)
    assert result.stdout == ""
    table = parquet.read_table("out.parquet")
    assert {"a_reward", "a_uncertainty", "a_distance", "a_features"} <= set(table.column_names)
    assert {len(features) for features in table["a_features"].to_pylist()} == {2}
    strict = sparserm("score", "in.jsonl", "strict.jsonl", "--model", MODEL, "--strict")
    assert (strict.exit_code, "in.jsonl:21: not JSON" in joined_output(strict)) == (1, True)


def test_pairs_are_compared_and_filtered(workdir: Path) -> None:
    offline_runs.write_rows(workdir / "in.jsonl", offline_runs.make_pair_rows(40))
    assert sparserm("compare", "in.jsonl", "all.jsonl", "--model", MODEL).exit_code == 0
    margins = sorted(row["margin"] for row in offline_runs.read_rows(workdir / "all.jsonl"))
    result = sparserm("filter", "in.jsonl", "kept.jsonl", "--model", MODEL, f"--min-margin={margins[30]}")
    assert "10 rows in kept.jsonl, 30 dropped" in joined_output(result)
    assert "features" not in offline_runs.read_rows(workdir / "kept.jsonl")[0]


def test_responses_are_ranked_by_a_server(workdir: Path, address: str) -> None:
    offline_runs.write_rows(workdir / "in.jsonl", [{"prompt": "river", "responses": tiny.WORDS}])
    result = sparserm("rank", "in.jsonl", "out.jsonl", "--model", MODEL, "--url", address, "--length-control")
    assert result.exit_code == 0, result.output
    (row,) = offline_runs.read_rows(workdir / "out.jsonl")
    assert sorted(row["order"]) == list(range(len(tiny.WORDS)))
    assert row["chosen"] == tiny.WORDS[row["order"][0]]


def test_the_key_of_the_environment_is_sent_to_a_server(
    workdir: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings_with_key = Settings(api_keys="secret").model_copy(
        update={"models_dir": settings.models_dir, "cache_dir": settings.cache_dir, "max_tokens": 256}
    )
    offline_runs.write_rows(workdir / "in.jsonl", offline_runs.make_response_rows(3))
    arguments = ("score", "in.jsonl", "out.jsonl", "--model", MODEL)
    with run_server(loading.load_engine(settings_with_key, ignore_progress), settings_with_key) as url:
        without_key = sparserm(*arguments, "--url", url)
        assert (without_key.exit_code, "401" in joined_output(without_key)) == (1, True)
        monkeypatch.setenv("SPARSERM_KEY", "secret")
        assert sparserm(*arguments, "--url", url).exit_code == 0


@pytest.mark.usefixtures("workdir")
@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("in.jsonl",),
        PROMPT_AND_RESPONSE[:2],
        ("in.jsonl", "out.jsonl", *PROMPT_AND_RESPONSE),
        ("in.jsonl", "out.jsonl", "--json"),
    ],
)
def test_incomplete_arguments_are_refused(arguments: tuple[str, ...]) -> None:
    result = sparserm("score", *arguments, "--model", MODEL)
    expected = "give IN and OUT, or --prompt and --response"
    assert (result.exit_code, expected in joined_output(result)) == (2, True)


@pytest.mark.usefixtures("workdir")
def test_the_json_of_one_response_is_that_of_the_api(address: str) -> None:
    body = {
        "model": MODEL,
        "inputs": [{"prompt": PROMPT_AND_RESPONSE[1], "response": PROMPT_AND_RESPONSE[3]}],
        "top_k": 3,
    }
    row = httpx.post(f"{address}/v1/rewards", json=body).json()["data"][0]
    remote = json.loads(
        sparserm(
            "score", *PROMPT_AND_RESPONSE, "--model", MODEL, "--json", "--top-k", 3, "--url", address
        ).stdout
    )
    local = json.loads(
        sparserm("score", *PROMPT_AND_RESPONSE, "--model", MODEL, "--json", "--top-k", 3).stdout
    )
    expected = {name: value for name, value in row.items() if name not in POSITION_FIELDS}
    assert local.keys() == remote.keys() == expected.keys()
    for name in ("reward", "uncertainty", "percentile", "distance"):
        assert local[name] == pytest.approx(expected[name], abs=1e-4)
        assert remote[name] == pytest.approx(expected[name], abs=1e-4)
    for reward in (local, remote):
        for ours, theirs in zip(reward["features"], expected["features"], strict=True):
            assert ours.keys() == theirs.keys()
            assert ours["id"] == theirs["id"]
            assert ours["contribution"] == pytest.approx(theirs["contribution"], abs=1e-5)


@pytest.mark.usefixtures("workdir")
def test_listed_models_say_what_they_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    listed = sparserm("models", "list").stdout
    assert "layer 3, end; features of tokens, network head" in listed
    assert "layer 4, mean and sentences (weighting: worst); features of tokens, network head" in listed


def render_chart(reward: dict[str, Any]) -> tuple[str, list[tuple[str, float]]]:
    """Return the chart of a reward as text, and the name and number of each bar."""
    stream = StringIO()
    Console(file=stream, width=100).print(render_waterfall(reward))
    text = stream.getvalue()
    bars = text.partition("\n")[2]
    return text, [(name, float(number)) for name, number in CHART_LINE.findall(bars)]


@pytest.mark.usefixtures("workdir")
@pytest.mark.parametrize("control", [(), ("--length-control",)])
def test_the_bars_of_the_chart_sum_to_the_reward(control: tuple[str, ...]) -> None:
    result = sparserm("score", *PROMPT_AND_RESPONSE, "--model", MODEL, *control)
    assert result.exit_code == 0, result.output
    reward = json.loads(sparserm("score", *PROMPT_AND_RESPONSE, "--model", MODEL, "--json", *control).stdout)
    text, steps = render_chart(reward)
    assert text.split() == result.stdout.split()
    *parts, (last, total) = steps
    assert (last, total) == ("reward", round(reward["reward"], 3))
    assert sum(number for _, number in parts) == pytest.approx(total, abs=0.0005 * len(steps))
    assert [number for name, number in parts if name.startswith("latent")] == [
        round(feature["contribution"], 3) for feature in reward["features"]
    ]
    assert ("length control" in dict(parts)) == bool(control)


def test_the_chart_names_each_part_of_a_reward() -> None:
    feature = {"model": "safety", "id": 7, "sign": 1, "label": "[refusal]", "contribution": 0.5}
    other = {"model": "kind", "id": 8, "sign": -1, "label": None, "contribution": -1.0}
    remainder = {"model": "kind", "id": 9, "sign": 0, "label": "the rest", "contribution": 0.25}
    text, steps = render_chart({
        "model": "both", "reward": -0.8, "uncertainty": 0.1, "percentile": None, "distance": 99.6,
        "baseline_reward": 0.0, "length_correction": 0.0, "penalty": 0.25, "truncated": True,
        "features": [feature, other, remainder],
    })  # fmt: skip
    assert dict(steps) == {
        "baseline": 0.0, "safety: [refusal] (7)": 0.5, "kind: latent (8)": -1.0, "kind: the rest": 0.25,
        "everything else": -0.3, "uncertainty penalty": -0.25, "reward": -0.8,
    }  # fmt: skip
    caption = "distance 100 (near 100: the reward is unreliable), the oldest text was truncated"
    assert caption in " ".join(text.split())
    assert "percentile" not in text
