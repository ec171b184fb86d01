"""The load generator, the workloads, the results log and the statistics, on the tiny model."""

import asyncio
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

import httpx
import pytest

from app.reward.engine import Engine
from app.settings import Settings
from app.types import Item
from benchmarks import machine, summary_statistics
from benchmarks.load_generator import (
    LoadClient,
    LoadRun,
    Outcome,
    RequestRecord,
    open_client,
    poisson_arrivals,
    pregenerate,
    run_closed_loop,
    run_open_loop,
)
from benchmarks.peers import sparserm
from benchmarks.peers.peer import Peer
from benchmarks.results_log import Measurement, ResultsLog, RunHeader
from benchmarks.summary_statistics import MedianAndRange
from benchmarks.workloads import WORKLOADS, Burst, Query, TextGenerator, Workload, select_workloads
from tests.support.servers import run_server

SMALL = (64, 64)


@pytest.fixture(scope="module")
def generator(engine: Engine) -> TextGenerator:
    return TextGenerator(engine.text)


def shrink(workload: Workload) -> Workload:
    """The workload at lengths that fit the tiny model, with fewer prompts."""
    low, high = (min(bound, 160) for bound in workload.tokens)
    return replace(workload, tokens=(low, high), groups=min(workload.groups, 5), prompt_percent=75)


def first_burst(workload: Workload, generator: TextGenerator, seed: int) -> Burst:
    return next(workload.generate_bursts(generator, Random(seed)))


def make_bursts(generator: TextGenerator, tokens: tuple[int, int] = SMALL, **shape: int) -> Iterator[Burst]:
    return Workload("here", "", tokens=tokens, **shape).generate_bursts(generator, Random(0))  # type: ignore[arg-type]


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.name)
def test_items_have_exactly_the_requested_tokens(
    workload: Workload, generator: TextGenerator, engine: Engine
) -> None:
    scaled = shrink(workload)
    burst = first_burst(scaled, generator, 1)
    items = [item for query in burst for item in query]
    assert len(items) == scaled.groups * scaled.responses
    assert len(burst) == (1 if scaled.one_request else len(items))
    for item in items:
        (encoded,) = engine.encode([Item(item.messages, item.response)])
        assert encoded == item.encoded
        assert scaled.tokens[0] <= len(item.ids) <= scaled.tokens[1]
        assert encoded.response_start == len(item.ids) * scaled.prompt_percent // 100
        assert engine.text.tokenizer.encode(item.text, add_special_tokens=False) == list(item.ids)


def test_only_groups_share_more_than_the_template(generator: TextGenerator) -> None:
    group = generator.generate_group(Random(0), 3, 60, 80)
    assert len({item.ids[:60] for item in group}) == 1
    assert len({item.ids for item in group}) == 3
    (a,), (b,) = (generator.generate_group(Random(seed), 1, 60, 80) for seed in (1, 2))
    shared = next(i for i, (x, y) in enumerate(zip(a.ids, b.ids, strict=True)) if x != y)
    assert shared < 20


def test_words_depend_on_the_seed_and_lengths_do_not(generator: TextGenerator) -> None:
    mixed = Workload("mixed", "", tokens=(56, 160), groups=6)
    (seed_1, seed_1_again, seed_2) = (
        [item for (item,) in first_burst(mixed, generator, seed)] for seed in (1, 1, 2)
    )
    assert seed_1 == seed_1_again
    assert [len(item.ids) for item in seed_1] == [len(item.ids) for item in seed_2]
    assert not {item.text for item in seed_1} & {item.text for item in seed_2}
    assert len({len(item.ids) for item in seed_1}) > 1


def test_rejects_too_few_tokens(generator: TextGenerator) -> None:
    with pytest.raises(ValueError, match="too few"):
        generator.generate_group(Random(0), 1, 9, 12)


def test_workloads_are_selected_by_their_first_words() -> None:
    assert [workload.name for workload in select_workloads(["unique-1"])] == ["unique-1"]
    assert [workload.name for workload in select_workloads(["groups-8-75"])] == [
        "groups-8-75",
        "groups-8-75-apart",
    ]
    assert select_workloads([]) == WORKLOADS
    with pytest.raises(ValueError, match="no workload 'uniq'"):
        select_workloads(["uniq"])


class SlowServer:
    """Answers after a delay, and counts its requests and how many wait at once."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.requests = self.waiting = self.max_waiting = 0

    async def send(self, _query: Query) -> Outcome:
        self.requests += 1
        self.waiting += 1
        self.max_waiting = max(self.max_waiting, self.waiting)
        await asyncio.sleep(self.seconds)
        self.waiting -= 1
        return Outcome.GOOD


@pytest.mark.anyio
async def test_clients_send_again_as_soon_as_they_are_answered(generator: TextGenerator) -> None:
    server, workload = SlowServer(0.02), Workload("here", "", clients=3)
    run = await run_closed_loop(server.send, make_bursts(generator), workload, seconds=0.2, rng=Random(0))
    assert server.max_waiting == 3
    assert len(run.records) == server.requests > 6
    assert run.seconds >= 0.2
    assert all(record.latency_s >= 0.02 and record.item_lengths == (64,) for record in run.records)


@pytest.mark.anyio
async def test_burst_is_sent_at_once_and_awaited(generator: TextGenerator) -> None:
    server, workload = SlowServer(0.01), Workload("here", "", groups=7)
    run = await run_closed_loop(
        server.send, make_bursts(generator, groups=7), workload, seconds=0, rng=Random(0)
    )
    assert server.max_waiting == len(run.records) == 7


@pytest.mark.anyio
async def test_latency_counts_from_the_scheduled_send_time(generator: TextGenerator) -> None:
    async def block_the_client(_query: Query) -> Outcome:
        time.sleep(0.05)  # noqa: ASYNC251 # the client itself is blocked
        return Outcome.GOOD

    run = await run_open_loop(block_the_client, make_bursts(generator), rate=200, seconds=0.1, rng=Random(0))
    assert len(run.records) > 5
    assert max(record.latency_s for record in run.records) > 0.05 * (len(run.records) - 3)
    assert run.seconds == 0.1


def test_arrivals_are_a_poisson_process() -> None:
    moments = poisson_arrivals(Random(0), rate=50, seconds=100)
    gaps = [b - a for a, b in zip([0.0, *moments], moments, strict=False)]
    mean = sum(gaps) / len(gaps)
    assert len(moments) == pytest.approx(5000, rel=0.05)
    assert sum((gap - mean) ** 2 for gap in gaps) / len(gaps) == pytest.approx(mean**2, rel=0.15)


def test_pregenerates_bursts_and_loses_none(generator: TextGenerator) -> None:
    generated = 0

    def counted_bursts() -> Iterator[Burst]:
        nonlocal generated
        for burst in make_bursts(generator):
            generated += 1
            yield burst

    bursts = pregenerate(counted_bursts(), 64 * 5)
    assert generated == 5
    expected = make_bursts(generator)
    assert [next(bursts) for _ in range(7)] == [next(expected) for _ in range(7)]


@pytest.fixture(scope="module")
def tiny_peer(engine: Engine) -> Peer:
    return sparserm.make_peers(list(engine.models))[0]


@pytest.mark.anyio
async def test_outcome_of_each_kind_of_response(
    tiny_peer: Peer, address: str, generator: TextGenerator
) -> None:
    query = generator.generate_group(Random(0), 2, 60, 80)
    unknown_model = replace(
        tiny_peer, build_requests=sparserm.make_request_builder(["nobody"], explain=False)
    )
    too_few_scores = replace(tiny_peer, read_scores=lambda _answer: [1.0])
    cases = (
        (tiny_peer, address, "60", Outcome.GOOD),
        (unknown_model, address, "60", Outcome.WRONG),
        (too_few_scores, address, "60", Outcome.WRONG),
        (tiny_peer, "http://127.0.0.1:9", "60", Outcome.LOST),
        (tiny_peer, address, "0.00001", Outcome.REFUSED),
    )
    for peer, url, timeout_s, outcome in cases:
        async with httpx.AsyncClient(headers={peer.timeout_header: timeout_s}, timeout=60) as http:
            assert await LoadClient(peer, [url], http).send(query) is outcome


@pytest.mark.anyio
async def test_all_servers_are_queried_and_the_first_one_is_read(
    tiny_peer: Peer, engine: Engine, settings: Settings, generator: TextGenerator
) -> None:
    query = generator.generate_group(Random(0), 2, 60, 80)
    with run_server(engine, settings) as first, run_server(engine, settings) as second:
        async with open_client(tiny_peer, [first, second], timeout_s=60, own_connections=True) as client:
            both = await client.scores(query)
        async with open_client(tiny_peer, [second], timeout_s=60) as client:
            assert await client.scores(query) == pytest.approx(both)
        async with open_client(tiny_peer, [first, "http://127.0.0.1:9"], timeout_s=60) as client:
            assert await client.send(query) is Outcome.LOST


def test_quantiles_need_ten_latencies_beyond_them() -> None:
    assert summary_statistics.latency_quantiles([]) == {}
    assert summary_statistics.latency_quantiles([3.0]) == {0.5: 3.0}
    assert list(summary_statistics.latency_quantiles([1.0] * 99)) == [0.5]
    assert list(summary_statistics.latency_quantiles([1.0] * 100)) == [0.5, 0.9]
    assert list(summary_statistics.latency_quantiles([1.0] * 1000)) == [0.5, 0.9, 0.99]


def test_ratios_are_taken_round_by_round() -> None:
    ratio = summary_statistics.ratio_by_round({0: 4.0, 1: 6.0, 2: 9.0}, {0: 2.0, 1: 2.0})
    assert ratio == MedianAndRange(2.5, 2.0, 3.0, 2)
    assert f"{ratio:.1f}" == "2.5 [2.0-3.0]"
    assert summary_statistics.ratio_by_round({0: 1.0}, {1: 1.0}) is None


def test_share_in_time_includes_refused_and_late_requests() -> None:
    records = [
        RequestRecord(Outcome.GOOD, 1.0, (10,)),
        RequestRecord(Outcome.GOOD, 3.0, (20,)),
        RequestRecord(Outcome.REFUSED, 0.1, (30,)),
    ]
    run = LoadRun(tuple(records), 2.0)
    assert summary_statistics.share_in_time(run, 2.0) == pytest.approx(1 / 3)
    assert summary_statistics.scored_lengths(run) == [10, 20]
    assert summary_statistics.count_outcomes(run) == {"good": 2, "refused": 1}


def make_measurement(**fields: object) -> Measurement:
    base = {
        "peer": "ours", "compared_with": "ours", "workload": "unique-16", "round": 0, "seed": 1, "at": "now",
        "load_average": 0.1, "peaks": (100.0, 100.0), "steady": True, "seconds": 2.0, "outcomes": {"good": 4},
        "pairs": 4, "tokens": 1024, "gflops": 100.0, "latencies": (0.5, 0.6), "cores": 2,
        "shares": {"server": 0.9, "client": 0.02, "others": 0.01}, "resident_mib": (500.0, 510.0),
    }  # fmt: skip
    return Measurement(**{**base, **fields})  # type: ignore[arg-type]


def test_results_log_continues_an_interrupted_run(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    log = ResultsLog(file, RunHeader({"cores": "2"}))
    log.append(make_measurement())
    log.append(make_measurement(workload="long", steady=False))
    with file.open("ab") as out:
        out.write(b'{"kind":"block","peer":"cut sho')
    reopened = ResultsLog(file, RunHeader({"cores": "2"}))
    assert reopened.measurements == log.measurements
    assert reopened.has_steady("ours", "unique-16", 0)
    assert not reopened.has_steady("ours", "unique-16", 1)
    assert not reopened.has_steady("ours", "long", 0)
    reopened.append(make_measurement(round=1))
    assert [json.loads(line)["kind"] for line in file.read_text().splitlines()] == ["header", *["block"] * 3]


def test_rejects_a_results_log_of_another_machine(tmp_path: Path) -> None:
    ResultsLog(tmp_path / "results.jsonl", RunHeader({"cores": "2"}))
    with pytest.raises(ValueError, match="another machine"):
        ResultsLog(tmp_path / "results.jsonl", RunHeader({"cores": "4"}))


def test_measurement_computes_its_rates() -> None:
    measurement = make_measurement()
    assert (measurement.tokens_per_s, measurement.share_of_peak) == (512.0, 0.5)
    assert measurement.cpu_s_per_1000_tokens == pytest.approx(1000 * 0.9 * 2 * 2 / 1024)
    assert make_measurement(gflops=None).share_of_peak is None


def test_machine_peak_is_a_rate_of_operations() -> None:
    assert 1 < machine.measure_peak_gflops([(64, 96)]) < 1e6
    assert machine.is_steady(100, 96, 0.05)
    assert not machine.is_steady(94, 100, 0.05)
    assert not machine.is_steady(100, 100, 0.5)
    assert {"processor", "cores", "instructions", "torch"} <= machine.describe_machine().keys()


@pytest.mark.anyio
async def test_resource_monitor_measures_who_used_the_machine() -> None:
    async with machine.ResourceMonitor([]) as monitor:
        until = time.process_time() + 0.2
        while time.process_time() < until:
            pass
    assert monitor.shares["server"] == 0
    assert 0 < monitor.shares["client"] <= 1
    assert monitor.initial_mib == 0
