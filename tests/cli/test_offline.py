"""`sparserm score`, `compare`, `filter` and `rank` as a user types them, and a reward as a picture."""

import json
import re
from io import StringIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from pyarrow import parquet
from rich.console import Console

from app.cli.waterfall import waterfall
from app.offline.remote import PLACE
from app.reward import loading
from app.settings import Settings
from tests.cli.test_commands import said, sparserm
from tests.support import offline_runs, tiny
from tests.support.offline_runs import MODEL
from tests.support.servers import listening
from tests.support.training_setup import quiet

ONE = ("--prompt", "amber river", "--response", "quiet stone")
LINE = re.compile(r"^(.+?) +([+-]\d+\.\d{3}) ", re.MULTILINE)


@pytest.fixture
def shop(root: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder to work in; the tiny models are the ones there are."""
    assert settings.models_dir == root / "models"
    for name, value in offline_runs.environ(root).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_data_set_is_scored_and_its_bad_rows_are_counted(shop: Path) -> None:
    offline_runs.write(shop / "in.jsonl", [*offline_runs.responses(20), "{\n", '{"prompt": "x"}\n'])
    done = sparserm("score", "in.jsonl", "out.parquet", "--model", MODEL, "--top-k", 2, "--prefix", "a_")
    assert done.exit_code == 0, done.output
    assert "20 rows in out.parquet; 2 bad rows in out.bad.jsonl, each with its reason" in said(done)
    assert done.stdout == ""
    table = parquet.read_table("out.parquet")
    assert {"a_reward", "a_uncertainty", "a_distance", "a_features"} <= set(table.column_names)
    assert {len(features) for features in table["a_features"].to_pylist()} == {2}
    strict = sparserm("score", "in.jsonl", "strict.jsonl", "--model", MODEL, "--strict")
    assert (strict.exit_code, "in.jsonl:21: not JSON" in said(strict)) == (1, True)


def test_pairs_are_compared_and_filtered(shop: Path) -> None:
    offline_runs.write(shop / "in.jsonl", offline_runs.pairs(40))
    assert sparserm("compare", "in.jsonl", "all.jsonl", "--model", MODEL).exit_code == 0
    margins = sorted(row["margin"] for row in offline_runs.read(shop / "all.jsonl"))
    done = sparserm("filter", "in.jsonl", "kept.jsonl", "--model", MODEL, f"--min-margin={margins[30]}")
    assert "10 rows in kept.jsonl, 30 dropped" in said(done)
    assert "features" not in offline_runs.read(shop / "kept.jsonl")[0]


def test_responses_are_ranked_through_a_server(shop: Path, address: str) -> None:
    offline_runs.write(shop / "in.jsonl", [{"prompt": "river", "responses": tiny.WORDS}])
    done = sparserm("rank", "in.jsonl", "out.jsonl", "--model", MODEL, "--url", address, "--length-control")
    assert done.exit_code == 0, done.output
    (row,) = offline_runs.read(shop / "out.jsonl")
    assert sorted(row["order"]) == list(range(len(tiny.WORDS)))
    assert row["chosen"] == tiny.WORDS[row["order"][0]]


def test_a_server_that_wants_a_key_gets_it(
    shop: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    keyed = Settings(api_keys="secret").model_copy(
        update={"models_dir": settings.models_dir, "cache_dir": settings.cache_dir, "max_tokens": 256}
    )
    offline_runs.write(shop / "in.jsonl", offline_runs.responses(3))
    words = ("score", "in.jsonl", "out.jsonl", "--model", MODEL)
    with listening(loading.engine(keyed, quiet), keyed) as url:
        without = sparserm(*words, "--url", url)
        assert (without.exit_code, "401" in said(without)) == (1, True)
        monkeypatch.setenv("SPARSERM_KEY", "secret")
        assert sparserm(*words, "--url", url).exit_code == 0


@pytest.mark.usefixtures("shop")
@pytest.mark.parametrize(
    "words",
    [(), ("in.jsonl",), ONE[:2], ("in.jsonl", "out.jsonl", *ONE), ("in.jsonl", "out.jsonl", "--json")],
)
def test_half_a_question_is_no_question(words: tuple[str, ...]) -> None:
    result = sparserm("score", *words, "--model", MODEL)
    assert (result.exit_code, "give IN and OUT, or --prompt and --response" in said(result)) == (2, True)


@pytest.mark.usefixtures("shop")
def test_one_response_s_json_is_the_api_s(address: str) -> None:
    body = {"model": MODEL, "inputs": [{"prompt": ONE[1], "response": ONE[3]}], "top_k": 3}
    api = httpx.post(f"{address}/v1/rewards", json=body).json()["data"][0]
    through = json.loads(
        sparserm("score", *ONE, "--model", MODEL, "--json", "--top-k", 3, "--url", address).stdout
    )
    here = json.loads(sparserm("score", *ONE, "--model", MODEL, "--json", "--top-k", 3).stdout)
    told = {name: value for name, value in api.items() if name not in PLACE}
    assert here.keys() == through.keys() == told.keys()
    for name in ("reward", "uncertainty", "percentile", "distance"):
        assert here[name] == pytest.approx(told[name], abs=1e-4)
        assert through[name] == pytest.approx(told[name], abs=1e-4)
    for answer in (here, through):
        for ours, theirs in zip(answer["features"], told["features"], strict=True):
            assert ours.keys() == theirs.keys()
            assert ours["id"] == theirs["id"]
            assert ours["contribution"] == pytest.approx(theirs["contribution"], abs=1e-5)


def drawn(reward: dict[str, Any]) -> tuple[str, list[tuple[str, float]]]:
    """A reward's picture, and the numbers in it."""
    stream = StringIO()
    Console(file=stream, width=100).print(waterfall(reward))
    text = stream.getvalue()
    below = text.partition("\n")[2]
    return text, [(name, float(number)) for name, number in LINE.findall(below)]


@pytest.mark.usefixtures("shop")
@pytest.mark.parametrize("control", [(), ("--length-control",)])
def test_the_bars_of_a_picture_sum_to_the_reward(control: tuple[str, ...]) -> None:
    shown = sparserm("score", *ONE, "--model", MODEL, *control)
    assert shown.exit_code == 0, shown.output
    reward = json.loads(sparserm("score", *ONE, "--model", MODEL, "--json", *control).stdout)
    text, steps = drawn(reward)
    assert text.split() == shown.stdout.split()
    *parts, (last, total) = steps
    assert (last, total) == ("reward", round(reward["reward"], 3))
    assert sum(number for _, number in parts) == pytest.approx(total, abs=0.0005 * len(steps))
    assert [number for name, number in parts if name.startswith("latent")] == [
        round(feature["contribution"], 3) for feature in reward["features"]
    ]
    assert ("length" in dict(parts)) == bool(control)


def test_a_picture_names_what_an_answer_holds() -> None:
    feature = {"model": "safety", "id": 7, "label": "[refusal]", "contribution": 0.5}
    other = {"model": "kind", "id": 8, "label": None, "contribution": -1.0}
    text, steps = drawn({
        "model": "both", "reward": -0.8, "uncertainty": 0.1, "percentile": None, "distance": 99.6,
        "baseline_reward": 0.0, "length_correction": 0.0, "penalty": 0.25, "truncated": True,
        "features": [feature, other],
    })  # fmt: skip
    assert dict(steps) == {
        "baseline": 0.0, "safety: [refusal] (7)": 0.5, "kind: latent (8)": -1.0, "all other features": -0.05,
        "doubt of its heads": -0.25, "reward": -0.8,
    }  # fmt: skip
    assert "distance 100 (near 100: do not trust it), older text was cut" in " ".join(text.split())
    assert "percentile" not in text
