"""The peers' pure functions, the gate before them, the course through them and what is told about them."""

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
from benchmarks.peers.correctness_check import Gatekeeper
from benchmarks.peers.launch.padded import Padded
from benchmarks.peers.launch.padded_naive import create_app
from benchmarks.peers.measure import Bench
from benchmarks.peers.peer import Depth, LaunchContext
from benchmarks.peers.schedule import Runner, course, environment, interpreter, wanted
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
from tests.benchmarks.test_load_generator import block

HEAD = [1.0, 0.5]
PLACE = LaunchContext(Path("/venv/bin/python"), Path("/checkpoint"), 8123, 4)
KNOWN = catalogue.all_peers(["alpha", "beta"], HEAD)


@pytest.fixture(scope="module")
def ground(settings: Settings, engine: Engine) -> Reference:
    assert engine.models
    return load_reference(settings)


@pytest.fixture(scope="module")
def words(ground: Reference) -> TextGenerator:
    return TextGenerator(ground.text)


@pytest.fixture(scope="module")
def query(words: TextGenerator) -> Query:
    """Two responses to one prompt, and one to another."""
    return (*words.generate_group(Random(0), 2, 60, 80), *words.generate_group(Random(1), 1, 60, 70))


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
def test_a_peer_is_asked_for_every_pair_and_read_in_order(name: str, query: Query) -> None:
    peer, answers = KNOWN[name], ANSWERS[name]
    requests = peer.build_requests(query)
    assert len(requests) == len(answers)
    scores = [score for answer in answers for score in peer.read_scores(answer)]
    assert scores == ([0.5, 1.0, 1.5] if name == "llamacpp" else [1.0, 2.0, 3.0])
    said = json.dumps([one.body for one in requests])
    for pair in query:
        assert json.dumps(list(pair.ids)) in said or json.dumps(pair.text) in said or pair.response in said


@pytest.mark.parametrize("name", KNOWN)
def test_a_server_is_started_where_it_is_told_to(name: str) -> None:
    server = KNOWN[name].server
    command = server.build_command(PLACE)
    said = [*command.args, *command.env.values()]
    assert "8123" in said
    assert command.args[0].startswith("/venv/bin/")
    assert server.name in {"ours", "ours-16", "llamacpp"} or "/checkpoint" in said


def test_ours_sends_a_prompt_once_for_all_its_responses(query: Query) -> None:
    (request,) = KNOWN["ours"].build_requests(query)
    assert [len(one["responses"]) for one in request.body["inputs"]] == [2, 1]
    assert request.body["explain"] == "none"
    (request,) = KNOWN["ours-reasons"].build_requests(query)
    assert (request.body["explain"], request.body["top_k"]) == ("features", 5)
    assert KNOWN["ours-all"].build_requests(query)[0].body["model"] == ["alpha", "beta"]


def test_vllm_computes_on_every_core_in_the_precision_it_is_set_against() -> None:
    command = KNOWN["vllm"].server.build_command(PLACE)
    args = list(command.args)
    assert args[args.index("--dtype") + 1] == "float32"
    assert command.env["VLLM_CPU_OMP_THREADS_BIND"] == "0-3"
    assert command.env["VLLM_CPU_NUM_OF_RESERVED_CPU"] == "0"
    assert "--enforce-eager" in KNOWN["vllm-eager"].server.build_command(PLACE).args
    assert KNOWN["vllm-full"].server.depth is Depth.FULL
    assert KNOWN["vllm-four"].compared_with == "ours-all"
    half = KNOWN["vllm-16"]
    assert half.compared_with == "ours-16"
    assert "bfloat16" in half.server.build_command(PLACE).args


def test_every_venv_a_server_needs_can_be_installed_with_pinned_versions() -> None:
    assert {peer.server.venv for peer in KNOWN.values()} - {""} == set(install.names())
    for file in install.REQUIREMENTS.glob("*.txt"):
        assert all("==" in line and "+" not in line for line in file.read_text().splitlines()), file


def test_a_venv_counts_as_installed_when_it_was_finished_with_these_requirements(tmp_path: Path) -> None:
    venv = tmp_path / "llamacpp"
    assert not install.installed(venv, "llamacpp")
    venv.mkdir()
    (venv / install.MARK).write_text("of another list")
    assert not install.installed(venv, "llamacpp")


def test_peers_are_chosen_by_name() -> None:
    assert [one.name for one in catalogue.select_peers(KNOWN, ["naive", "ours"])] == ["ours", "naive"]
    with pytest.raises(ValueError, match="no peer 'them'"):
        catalogue.select_peers(KNOWN, ["them"])


def test_the_checkpoint_says_what_the_reference_says(ground: Reference, query: Query, tmp_path: Path) -> None:
    for depth in Depth:
        folder = ground.checkpoint(depth, tmp_path)
        assert ground.checkpoint(depth, tmp_path) == folder
        padded, expected = Padded(str(folder)), ground.classifier_scores(depth, query)
        assert padded.texts([pair.text for pair in query]) == pytest.approx(expected, abs=1e-5)
        assert padded.ids([list(pair.ids) for pair in query]) == pytest.approx(expected, abs=1e-5)
        assert len({round(score, 6) for score in expected}) == 3
    config = json.loads((folder / "config.json").read_text())
    assert config["rope_theta"] > 0
    assert config["id2label"] == {"0": "score", "1": "nought"}


def test_operations_are_counted_layer_by_layer(ground: Reference) -> None:
    width, inner, keys, hidden, layers, tokens = 64, 64, 32, 96, 4, 10
    matrices = 2 * tokens * (width * (2 * inner + 2 * keys) + 3 * width * hidden)
    attention = sum(4 * inner * seen for seen in range(1, tokens + 1))
    assert ground.flops(Depth.CUT, tokens) == layers * (matrices + attention)


@pytest.mark.anyio
async def test_the_gate_lets_those_pass_who_say_what_they_should(
    ground: Reference, query: Query, address: str
) -> None:
    peer = catalogue.all_peers(list(ground.models), HEAD)["ours"]
    keeper = Gatekeeper(ground, query)
    async with open_client(peer, [address], timeout_s=60) as caller:
        right = await keeper.check(peer, caller, 0)
        wrong = await keeper.check(replace(peer, judge="beta"), caller, 0)
    assert right.passed
    assert right.worst < 1e-5
    assert not wrong.passed


@pytest.mark.anyio
async def test_the_naive_server_answers_as_trainers_expect(
    ground: Reference, query: Query, tmp_path: Path
) -> None:
    app = create_app(Padded(str(ground.checkpoint(Depth.CUT, tmp_path))))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        (request,) = KNOWN["naive"].build_requests(query)
        answer = await http.post(request.path, json=request.body)
        assert KNOWN["naive"].read_scores(answer.json()) == pytest.approx(
            ground.classifier_scores(Depth.CUT, query), abs=1e-5
        )
        assert (await http.get(KNOWN["naive"].server.ready_path)).is_success


def test_servers_see_nothing_of_this_process_s_threads(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("SPARSERM_CACHE_DIR", "/cache")
    seen = environment({"VLLM_CPU_KVCACHE_SPACE": "1"})
    assert "OMP_NUM_THREADS" not in seen
    assert (seen["SPARSERM_CACHE_DIR"], seen["VLLM_CPU_KVCACHE_SPACE"]) == ("/cache", "1")
    assert interpreter(KNOWN["naive"].server, tmp_path) == Path(sys.executable)
    assert interpreter(KNOWN["mosec"].server, tmp_path) == tmp_path / "mosec/bin/python"


@pytest.mark.anyio
@pytest.mark.heavy
@pytest.mark.parametrize("how", ["one by one", "together"])
async def test_servers_are_started_gated_measured_and_stopped(
    ground: Reference, query: Query, settings: Settings, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, how: str,
) -> None:  # fmt: skip
    for name in ("models_dir", "cache_dir", "max_tokens"):
        monkeypatch.setenv(f"SPARSERM_{name.upper()}", str(getattr(settings, name)))
    known = catalogue.all_peers(list(ground.models), ground.score_head())
    twice = replace(known["naive"], server=replace(known["naive"].server, copies=2))
    liar = replace(known["naive"], name="liar", read=lambda answer: [r + 1 for r in answer["rewards"]])
    workloads = (
        Workload("unique-1", "", 2, (64, 64)),
        Workload("open", "", 2, (64, 64), open_loop=True),
    )
    bench = Bench(ground, TextGenerator(ground.text), 0.3, 2.0, Workload("warm", "", 1, (56, 120)))
    journal = ResultsLog(tmp_path / "results.jsonl", RunHeader({"slo_s": "2"}))
    said: list[str] = []
    gatekeeper = Gatekeeper(ground, query)
    runner = Runner(bench, gatekeeper, journal, tmp_path, said.append, together=how == "together")
    todo = [*wanted([known["ours"]], workloads, named=True), (twice, workloads[0]), (liar, workloads[0])]
    assert await runner.run(course(todo, 1, journal.has_steady))
    assert {one.peer: one.passed for one in journal.entries if isinstance(one, CorrectnessResult)} == {
        "ours": True, "naive": True, "liar": False,
    }  # fmt: skip
    measured = {(one.peer, one.workload): one for one in journal.measurements}
    assert measured.keys() == {("ours", "unique-1"), ("ours", "open"), ("naive", "unique-1")}
    for one in measured.values():
        assert set(one.outcomes) == {"good"}
        assert one.tokens_per_s > 0
        assert one.shares["server"] > 0
    assert measured["ours", "open"].curve
    assert {one.server: one.ready_s > 0 for one in journal.entries if isinstance(one, ServerStart)} == {
        "ours": True, "naive": True,
    }  # fmt: skip
    assert sum(isinstance(one, BareForward) for one in journal.entries) == 1
    assert "NOT TIMED" in "".join(said)


def results(tmp_path: Path, entries: Sequence[Any]) -> Results:
    journal = ResultsLog(tmp_path / "results.jsonl", RunHeader({"cores": "2", "slo_s": "2"}))
    for entry in entries:
        journal.append(entry)
    return Results(journal)


def test_a_report_shows_medians_ratios_and_what_was_not_steady(tmp_path: Path) -> None:
    point = LoadPoint(2.0, 0.75, {"good": 3, "refused": 1}, {0.5: 0.2})
    found = results(
        tmp_path,
        [
            *(block(round=n, tokens=tokens) for n, tokens in enumerate((1000, 1200, 1100))),
            *(block(round=n, peer="vllm", tokens=tokens) for n, tokens in enumerate((500, 400, 1100))),
            block(workload="groups-8-75", tokens=3000, gflops=None),
            block(workload="groups-8-75", round=1, tokens=9, steady=False),
            block(workload="groups-8-75", round=1, tokens=3000, gflops=None),
            block(workload="unique-1", steady=False, latencies=(0.3,)),
            block(workload="open", curve=(point,)),
            ServerStart("vllm", 0, 90.0, 3900.0), BareForward(0, 0.2),
        ],
    )  # fmt: skip
    text = report.markdown(found)
    assert "| unique-16 | 550 | 250 (2.00) |" in text
    assert "| ours | 2.75 [2.50-3.00] |" in text
    assert "| unique-1 | ~512 |" in text
    assert "| ours | 300 | 1.50 |" in text
    assert "| vllm | 90.0 [90.0-90.0] | 3,900 [3,900-3,900] |" in text
    assert "| ours | 2.00 | 0.750 | 200 |  |  |  | 3 good, 1 refused |" in text
    assert json.loads(json.dumps(report.as_json(found)))["blocks"][0]["speed"] == 500
    plots.draw(found, tmp_path / "peers.svg")
    drawn = (tmp_path / "peers.svg").read_text()
    assert "unique-16" in drawn
    assert "median and range, n = " in drawn
