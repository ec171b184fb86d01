"""The peers' pure functions, the correctness check, the runner and the report."""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest

from app.reward.engine import Engine
from app.settings import Settings
from benchmarks import plots, report
from benchmarks.load_generator import open_client
from benchmarks.peers import catalogue, install
from benchmarks.peers.correctness_check import CorrectnessChecker
from benchmarks.peers.launch.padded import PaddedModel
from benchmarks.peers.launch.padded_naive import create_app
from benchmarks.peers.measure import MeasurementSetup
from benchmarks.peers.peer import Depth, LaunchContext
from benchmarks.peers.runner import Runner, server_environment, venv_python
from benchmarks.peers.schedule import build_schedule, select_steps
from benchmarks.reference import Reference, load_reference
from benchmarks.report import Results
from benchmarks.results_log import (
    BareForward,
    CorrectnessResult,
    LoadPoint,
    ResultsLog,
    RunHeader,
    ServerStart,
)
from benchmarks.workloads import Query, TextGenerator, Workload
from tests.benchmarks.test_load_generator import make_measurement

SCORE_HEAD = [1.0, 0.5]
CONTEXT = LaunchContext(Path("/venv/bin/python"), Path("/checkpoint"), 8123, 4)
KNOWN = catalogue.all_peers(["alpha", "beta"], SCORE_HEAD)


@pytest.fixture(scope="module")
def reference(settings: Settings, engine: Engine) -> Reference:
    assert engine.models
    return load_reference(settings)


@pytest.fixture(scope="module")
def generator(reference: Reference) -> TextGenerator:
    return TextGenerator(reference.tokenizer)


@pytest.fixture(scope="module")
def query(generator: TextGenerator) -> Query:
    """Two responses to one prompt, and one to another."""
    return (*generator.generate_group(Random(0), 2, 60, 80), *generator.generate_group(Random(1), 1, 60, 70))


ANSWERS: dict[str, list[Any]] = {
    "ours": [{"data": [{"model": "alpha", "reward": r} for r in (1.0, 2.0, 3.0)]}],
    "ours-all": [{"data": [{"model": m, "reward": r} for r in (1.0, 2.0, 3.0) for m in ("alpha", "beta")]}],
    "ours-openrlhf": [{"rewards": [1.0, 2.0, 3.0], "scores": [0.1, 0.2, 0.3]}],
    "vllm": [{"data": [{"index": i, "probs": [r, 0.0]} for i, r in enumerate((1.0, 2.0, 3.0))]}],
    "infinity": [
        {
            "data": [
                [{"label": "nought", "score": 0.0}, {"label": "score", "score": r}] for r in (1.0, 2.0, 3.0)
            ]
        }
    ],
    "llamacpp": [{"data": [{"index": i, "embedding": [0.5, i + 0.0]} for i in (2, 0, 1)]}],
    "naive": [{"rewards": [1.0, 2.0, 3.0]}],
    "litserve": [{"score": 1.0}, {"score": 2.0}, {"score": 3.0}],
    "mosec": [{"score": 1.0}, {"score": 2.0}, {"score": 3.0}],
}


@pytest.mark.parametrize("name", ANSWERS)
def test_peer_requests_every_item_and_reads_scores_in_order(name: str, query: Query) -> None:
    peer, answers = KNOWN[name], ANSWERS[name]
    requests = peer.build_requests(query)
    assert len(requests) == len(answers)
    scores = [score for answer in answers for score in peer.read_scores(answer)]
    assert scores == ([0.5, 1.0, 1.5] if name == "llamacpp" else [1.0, 2.0, 3.0])
    sent = json.dumps([request.body for request in requests])
    for item in query:
        assert json.dumps(list(item.ids)) in sent or json.dumps(item.text) in sent or item.response in sent


@pytest.mark.parametrize("name", KNOWN)
def test_start_command_contains_port_python_and_checkpoint(name: str) -> None:
    server = KNOWN[name].server
    command = server.build_command(CONTEXT)
    words = [*command.args, *command.env.values()]
    assert "8123" in words
    assert command.args[0].startswith("/venv/bin/")
    assert server.name in {"ours", "ours-16", "llamacpp"} or "/checkpoint" in words


def test_sparserm_sends_a_prompt_once_for_all_its_responses(query: Query) -> None:
    (request,) = KNOWN["ours"].build_requests(query)
    assert [len(input_["responses"]) for input_ in request.body["inputs"]] == [2, 1]
    assert request.body["explain"] == "none"
    (request,) = KNOWN["ours-reasons"].build_requests(query)
    assert (request.body["explain"], request.body["top_k"]) == ("features", 5)
    assert KNOWN["ours-all"].build_requests(query)[0].body["model"] == ["alpha", "beta"]


def test_vllm_uses_every_core_and_the_dtype_it_is_compared_with() -> None:
    command = KNOWN["vllm"].server.build_command(CONTEXT)
    args = list(command.args)
    assert args[args.index("--dtype") + 1] == "float32"
    assert command.env["VLLM_CPU_OMP_THREADS_BIND"] == "0-3"
    assert command.env["VLLM_CPU_NUM_OF_RESERVED_CPU"] == "0"
    assert "--enforce-eager" in KNOWN["vllm-eager"].server.build_command(CONTEXT).args
    assert KNOWN["vllm-full"].server.depth is Depth.FULL
    assert KNOWN["vllm-four"].compared_with == "ours-all"
    bfloat16 = KNOWN["vllm-16"]
    assert bfloat16.compared_with == "ours-16"
    assert "bfloat16" in bfloat16.server.build_command(CONTEXT).args


def test_every_venv_has_pinned_requirements() -> None:
    assert {peer.server.venv for peer in KNOWN.values()} - {""} == set(install.venv_names())
    for file in install.REQUIREMENTS.glob("*.txt"):
        assert all("==" in line and "+" not in line for line in file.read_text().splitlines()), file


def test_venv_is_installed_only_after_completion_with_these_requirements(tmp_path: Path) -> None:
    venv = tmp_path / "llamacpp"
    assert not install.is_installed(venv, "llamacpp")
    venv.mkdir()
    (venv / install.MARKER).write_text("of another list")
    assert not install.is_installed(venv, "llamacpp")


def test_peers_are_selected_by_name() -> None:
    assert [one.name for one in catalogue.select_peers(KNOWN, ["naive", "ours"])] == ["ours", "naive"]
    with pytest.raises(ValueError, match="no peer 'them'"):
        catalogue.select_peers(KNOWN, ["them"])


def test_checkpoint_scores_equal_the_reference(reference: Reference, query: Query, tmp_path: Path) -> None:
    for depth in Depth:
        folder = reference.checkpoint(depth, tmp_path)
        assert reference.checkpoint(depth, tmp_path) == folder
        model, expected = PaddedModel(str(folder)), reference.classifier_scores(depth, query)
        assert model.score_texts([item.text for item in query]) == pytest.approx(expected, abs=1e-5)
        assert model.score_ids([list(item.ids) for item in query]) == pytest.approx(expected, abs=1e-5)
        assert len({round(score, 6) for score in expected}) == 3
    config = json.loads((folder / "config.json").read_text())
    assert config["rope_theta"] > 0
    assert config["id2label"] == {"0": "score", "1": "nought"}


def test_operations_are_counted_layer_by_layer(reference: Reference) -> None:
    width, inner, keys, hidden, layers, tokens = 64, 64, 32, 96, 4, 10
    matrices = 2 * tokens * (width * (2 * inner + 2 * keys) + 3 * width * hidden)
    attention = sum(4 * inner * seen for seen in range(1, tokens + 1))
    assert reference.flops(Depth.CUT, tokens) == layers * (matrices + attention)


@pytest.mark.anyio
async def test_correctness_check_passes_correct_scores_only(
    reference: Reference, query: Query, address: str
) -> None:
    peer = catalogue.all_peers(list(reference.models), SCORE_HEAD)["ours"]
    checker = CorrectnessChecker(reference, query)
    async with open_client(peer, [address], timeout_s=60) as client:
        correct = await checker.check(peer, client, 0)
        wrong = await checker.check(replace(peer, reward_model="beta"), client, 0)
    assert correct.passed
    assert correct.worst < 1e-5
    assert not wrong.passed


@pytest.mark.anyio
async def test_naive_server_answers_as_trainers_expect(
    reference: Reference, query: Query, tmp_path: Path
) -> None:
    app = create_app(PaddedModel(str(reference.checkpoint(Depth.CUT, tmp_path))))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        (request,) = KNOWN["naive"].build_requests(query)
        answer = await http.post(request.path, json=request.body)
        assert KNOWN["naive"].read_scores(answer.json()) == pytest.approx(
            reference.classifier_scores(Depth.CUT, query), abs=1e-5
        )
        assert (await http.get(KNOWN["naive"].server.ready_path)).is_success


def test_server_environment_has_no_thread_settings_of_this_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("SPARSERM_CACHE_DIR", "/cache")
    env = server_environment({"VLLM_CPU_KVCACHE_SPACE": "1"})
    assert "OMP_NUM_THREADS" not in env
    assert (env["SPARSERM_CACHE_DIR"], env["VLLM_CPU_KVCACHE_SPACE"]) == ("/cache", "1")
    assert venv_python(KNOWN["naive"].server, tmp_path) == Path(sys.executable)
    assert venv_python(KNOWN["mosec"].server, tmp_path) == tmp_path / "mosec/bin/python"


@pytest.mark.anyio
@pytest.mark.heavy
@pytest.mark.parametrize("mode", ["one by one", "interleaved"])
async def test_runner_starts_checks_measures_and_stops_servers(
    reference: Reference, query: Query, settings: Settings, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, mode: str,
) -> None:  # fmt: skip
    for name in ("models_dir", "cache_dir", "max_tokens"):
        monkeypatch.setenv(f"SPARSERM_{name.upper()}", str(getattr(settings, name)))
    known = catalogue.all_peers(list(reference.models), reference.score_head())
    two_copies = replace(known["naive"], server=replace(known["naive"].server, copies=2))
    wrong = replace(
        known["naive"], name="wrong", read_scores=lambda answer: [r + 1 for r in answer["rewards"]]
    )
    workloads = (
        Workload("unique-1", "", 2, (64, 64)),
        Workload("open", "", 2, (64, 64), open_loop=True),
    )
    setup = MeasurementSetup(
        reference, TextGenerator(reference.tokenizer), 0.3, 2.0, Workload("warm", "", 1, (56, 120))
    )
    log = ResultsLog(tmp_path / "results.jsonl", RunHeader({"slo_s": "2"}))
    lines: list[str] = []
    checker = CorrectnessChecker(reference, query)
    runner = Runner(setup, checker, log, tmp_path, lines.append, interleaved=mode == "interleaved")
    steps = [
        *select_steps([known["ours"]], workloads, workloads_named=True),
        (two_copies, workloads[0]),
        (wrong, workloads[0]),
    ]
    assert await runner.run(build_schedule(steps, 1, log.has_steady))
    assert {entry.peer: entry.passed for entry in log.entries if isinstance(entry, CorrectnessResult)} == {
        "ours": True, "naive": True, "wrong": False,
    }  # fmt: skip
    measured = {(entry.peer, entry.workload): entry for entry in log.measurements}
    assert measured.keys() == {("ours", "unique-1"), ("ours", "open"), ("naive", "unique-1")}
    for measurement in measured.values():
        assert set(measurement.outcomes) == {"good"}
        assert measurement.tokens_per_s > 0
        assert measurement.shares["server"] > 0
    assert measured["ours", "open"].curve
    assert {entry.server: entry.ready_s > 0 for entry in log.entries if isinstance(entry, ServerStart)} == {
        "ours": True, "naive": True,
    }  # fmt: skip
    assert sum(isinstance(entry, BareForward) for entry in log.entries) == 1
    assert "NOT TIMED" in "".join(lines)


def make_results(tmp_path: Path, entries: Sequence[Any]) -> Results:
    log = ResultsLog(tmp_path / "results.jsonl", RunHeader({"cores": "2", "slo_s": "2"}))
    for entry in entries:
        log.append(entry)
    return Results(log)


def test_report_shows_medians_ratios_and_unsteady_measurements(tmp_path: Path) -> None:
    point = LoadPoint(2.0, 0.75, {"good": 3, "refused": 1}, {0.5: 0.2})
    results = make_results(
        tmp_path,
        [
            *(make_measurement(round=n, tokens=tokens) for n, tokens in enumerate((1000, 1200, 1100))),
            *(
                make_measurement(round=n, peer="vllm", tokens=tokens)
                for n, tokens in enumerate((500, 400, 1100))
            ),
            make_measurement(workload="groups-8-75", tokens=3000, gflops=None),
            make_measurement(workload="groups-8-75", round=1, tokens=9, steady=False),
            make_measurement(workload="groups-8-75", round=1, tokens=3000, gflops=None),
            make_measurement(workload="unique-1", steady=False, latencies=(0.3,)),
            make_measurement(workload="open", curve=(point,)),
            ServerStart("vllm", 0, 90.0, 3900.0), BareForward(0, 0.2),
        ],
    )  # fmt: skip
    text = report.render_markdown(results)
    assert "| unique-16 | 550 | 250 (2.00) |" in text
    assert "| ours | 2.75 [2.50-3.00] |" in text
    assert "| unique-1 | ~512 |" in text
    assert "| ours | 300 | 1.50 |" in text
    assert "| vllm | 90.0 [90.0-90.0] | 3,900 [3,900-3,900] |" in text
    assert "| ours | 2.00 | 0.750 | 200 |  |  |  | 3 good, 1 refused |" in text
    assert json.loads(json.dumps(report.to_json(results)))["blocks"][0]["speed"] == 500
    plots.save_plot(results, tmp_path / "peers.svg")
    svg = (tmp_path / "peers.svg").read_text()
    assert "unique-16" in svg
    assert "median and range, n = " in svg
