"""The load generator and what it is built of, on the tiny model."""

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
from benchmarks.peers import ours
from benchmarks.peers.peer import Peer
from benchmarks.results_log import Measurement, ResultsLog, RunHeader
from benchmarks.summary_statistics import MedianAndRange
from benchmarks.workloads import WORKLOADS, Burst, Query, TextGenerator, Workload, select_workloads
from tests.support.servers import run_server

SMALL = (64, 64)


@pytest.fixture(scope="module")
def words(engine: Engine) -> TextGenerator:
    return TextGenerator(engine.text)


def small(workload: Workload) -> Workload:
    """The same at lengths the tiny model takes, with fewer prompts."""
    least, most = (min(bound, 160) for bound in workload.tokens)
    return replace(workload, tokens=(least, most), groups=min(workload.groups, 5), prompt_percent=75)


def first(workload: Workload, words: TextGenerator, seed: int) -> Burst:
    return next(workload.generate_bursts(words, Random(seed)))


def turns(words: TextGenerator, tokens: tuple[int, int] = SMALL, **shape: int) -> Iterator[Burst]:
    return Workload("here", "", tokens=tokens, **shape).generate_bursts(words, Random(0))  # type: ignore[arg-type]


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda one: one.name)
def test_pairs_have_exactly_the_tokens_they_should(
    workload: Workload, words: TextGenerator, engine: Engine
) -> None:
    scaled = small(workload)
    turn = first(scaled, words, 1)
    pairs = [pair for query in turn for pair in query]
    assert len(pairs) == scaled.groups * scaled.responses
    assert len(turn) == (1 if scaled.one_request else len(pairs))
    for pair in pairs:
        (encoded,) = engine.encode([Item(pair.messages, pair.response)])
        assert encoded == pair.encoded
        assert scaled.tokens[0] <= len(pair.ids) <= scaled.tokens[1]
        assert encoded.response_start == len(pair.ids) * scaled.prompt_percent // 100
        assert engine.text.tokenizer.encode(pair.text, add_special_tokens=False) == list(pair.ids)


def test_only_groups_share_more_than_the_template(words: TextGenerator) -> None:
    group = words.generate_group(Random(0), 3, 60, 80)
    assert len({pair.ids[:60] for pair in group}) == 1
    assert len({pair.ids for pair in group}) == 3
    (a,), (b,) = (words.generate_group(Random(seed), 1, 60, 80) for seed in (1, 2))
    shared = next(i for i, (x, y) in enumerate(zip(a.ids, b.ids, strict=True)) if x != y)
    assert shared < 20


def test_words_are_new_for_every_seed_but_lengths_are_the_same(words: TextGenerator) -> None:
    mixed = Workload("mixed", "", tokens=(56, 160), groups=6)
    (one, again, other) = ([pair for (pair,) in first(mixed, words, seed)] for seed in (1, 1, 2))
    assert one == again
    assert [len(pair.ids) for pair in one] == [len(pair.ids) for pair in other]
    assert not {pair.text for pair in one} & {pair.text for pair in other}
    assert len({len(pair.ids) for pair in one}) > 1


def test_too_few_tokens_are_refused(words: TextGenerator) -> None:
    with pytest.raises(ValueError, match="too few"):
        words.generate_group(Random(0), 1, 9, 12)


def test_workloads_are_chosen_by_their_first_words() -> None:
    assert [one.name for one in select_workloads(["unique-1"])] == ["unique-1"]
    assert [one.name for one in select_workloads(["groups-8-75"])] == ["groups-8-75", "groups-8-75-apart"]
    assert select_workloads([]) == WORKLOADS
    with pytest.raises(ValueError, match="no workload 'uniq'"):
        select_workloads(["uniq"])


class Slow:
    """Answers after a while, and knows how many wait at once."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.asked = self.waiting = self.most = 0

    async def ask(self, _query: Query) -> Outcome:
        self.asked += 1
        self.waiting += 1
        self.most = max(self.most, self.waiting)
        await asyncio.sleep(self.seconds)
        self.waiting -= 1
        return Outcome.GOOD


@pytest.mark.anyio
async def test_voices_ask_again_as_soon_as_they_have_heard(words: TextGenerator) -> None:
    server, workload = Slow(0.02), Workload("here", "", clients=3)
    run = await run_closed_loop(server.ask, turns(words), workload, seconds=0.2, rng=Random(0))
    assert server.most == 3
    assert len(run.records) == server.asked > 6
    assert run.seconds >= 0.2
    assert all(one.latency_s >= 0.02 and one.item_lengths == (64,) for one in run.records)


@pytest.mark.anyio
async def test_a_turn_goes_out_at_once_and_is_waited_for(words: TextGenerator) -> None:
    server, workload = Slow(0.01), Workload("here", "", groups=7)
    run = await run_closed_loop(server.ask, turns(words, groups=7), workload, seconds=0, rng=Random(0))
    assert server.most == len(run.records) == 7


@pytest.mark.anyio
async def test_latency_counts_from_the_moment_a_request_was_meant_to_go_out(words: TextGenerator) -> None:
    async def stalls(_query: Query) -> Outcome:
        time.sleep(0.05)  # noqa: ASYNC251 # the client itself is held up
        return Outcome.GOOD

    run = await run_open_loop(stalls, turns(words), rate=200, seconds=0.1, rng=Random(0))
    assert len(run.records) > 5
    assert max(one.latency_s for one in run.records) > 0.05 * (len(run.records) - 3)
    assert run.seconds == 0.1


def test_arrivals_are_a_poisson_process() -> None:
    moments = poisson_arrivals(Random(0), rate=50, seconds=100)
    gaps = [b - a for a, b in zip([0.0, *moments], moments, strict=False)]
    mean = sum(gaps) / len(gaps)
    assert len(moments) == pytest.approx(5000, rel=0.05)
    assert sum((gap - mean) ** 2 for gap in gaps) / len(gaps) == pytest.approx(mean**2, rel=0.15)


def test_turns_are_written_beforehand_and_none_is_lost(words: TextGenerator) -> None:
    made = 0

    def counting() -> Iterator[Burst]:
        nonlocal made
        for turn in turns(words):
            made += 1
            yield turn

    ahead = pregenerate(counting(), 64 * 5)
    assert made == 5
    wanted, found = turns(words), [next(ahead) for _ in range(7)]
    assert found == [next(wanted) for _ in range(7)]


@pytest.fixture(scope="module")
def tiny_peer(engine: Engine) -> Peer:
    return ours.peers(list(engine.models))[0]


@pytest.mark.anyio
async def test_what_becomes_of_requests(tiny_peer: Peer, address: str, words: TextGenerator) -> None:
    query = words.generate_group(Random(0), 2, 60, 80)
    unknown = replace(tiny_peer, ask=ours.asking(["nobody"], explain=False))
    sparing = replace(tiny_peer, read=lambda _answer: [1.0])
    cases = (
        (tiny_peer, address, "60", Outcome.GOOD),
        (unknown, address, "60", Outcome.WRONG),
        (sparing, address, "60", Outcome.WRONG),
        (tiny_peer, "http://127.0.0.1:9", "60", Outcome.LOST),
        (tiny_peer, address, "0.00001", Outcome.REFUSED),
    )
    for peer, url, patience, fate in cases:
        async with httpx.AsyncClient(headers={peer.timeout_header: patience}, timeout=60) as http:
            assert await LoadClient(peer, [url], http).send(query) is fate


@pytest.mark.anyio
async def test_every_server_is_asked_and_the_first_one_heard(
    tiny_peer: Peer, engine: Engine, settings: Settings, words: TextGenerator
) -> None:
    query = words.generate_group(Random(0), 2, 60, 80)
    with run_server(engine, settings) as one, run_server(engine, settings) as two:
        async with open_client(tiny_peer, [one, two], timeout_s=60, own_connections=True) as caller:
            both = await caller.scores(query)
        async with open_client(tiny_peer, [two], timeout_s=60) as caller:
            assert await caller.scores(query) == pytest.approx(both)
        async with open_client(tiny_peer, [one, "http://127.0.0.1:9"], timeout_s=60) as caller:
            assert await caller.send(query) is Outcome.LOST


def test_quantiles_need_answers_beyond_them() -> None:
    assert summary_statistics.latency_quantiles([]) == {}
    assert summary_statistics.latency_quantiles([3.0]) == {0.5: 3.0}
    assert list(summary_statistics.latency_quantiles([1.0] * 99)) == [0.5]
    assert list(summary_statistics.latency_quantiles([1.0] * 100)) == [0.5, 0.9]
    assert list(summary_statistics.latency_quantiles([1.0] * 1000)) == [0.5, 0.9, 0.99]


def test_ratios_are_taken_round_by_round() -> None:
    found = summary_statistics.ratio_by_round({0: 4.0, 1: 6.0, 2: 9.0}, {0: 2.0, 1: 2.0})
    assert found == MedianAndRange(2.5, 2.0, 3.0, 2)
    assert f"{found:.1f}" == "2.5 [2.0-3.0]"
    assert summary_statistics.ratio_by_round({0: 1.0}, {1: 1.0}) is None


def test_goodput_counts_what_was_refused_and_late() -> None:
    heard = [
        RequestRecord(Outcome.GOOD, 1.0, (10,)),
        RequestRecord(Outcome.GOOD, 3.0, (20,)),
        RequestRecord(Outcome.REFUSED, 0.1, (30,)),
    ]
    run = LoadRun(tuple(heard), 2.0)
    assert summary_statistics.share_in_time(run, 2.0) == pytest.approx(1 / 3)
    assert summary_statistics.scored_lengths(run) == [10, 20]
    assert summary_statistics.count_outcomes(run) == {"good": 2, "refused": 1}


def block(**given: object) -> Measurement:
    base = {
        "peer": "ours", "against": "ours", "workload": "unique-16", "round": 0, "seed": 1, "at": "now",
        "load_average": 0.1, "peaks": (100.0, 100.0), "steady": True, "seconds": 2.0, "fates": {"good": 4},
        "pairs": 4, "tokens": 1024, "gflops": 100.0, "latencies": (0.5, 0.6), "cores": 2,
        "shares": {"server": 0.9, "client": 0.02, "others": 0.01}, "resident_mib": (500.0, 510.0),
    }  # fmt: skip
    return Measurement(**{**base, **given})  # type: ignore[arg-type]


def test_a_journal_goes_on_where_it_stood(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    journal = ResultsLog(file, RunHeader({"cores": "2"}))
    journal.append(block())
    journal.append(block(workload="long", steady=False))
    with file.open("ab") as out:
        out.write(b'{"kind":"block","peer":"cut sho')
    again = ResultsLog(file, RunHeader({"cores": "2"}))
    assert again.measurements == journal.measurements
    assert again.has_steady("ours", "unique-16", 0)
    assert not again.has_steady("ours", "unique-16", 1)
    assert not again.has_steady("ours", "long", 0)
    again.append(block(round=1))
    assert [json.loads(line)["kind"] for line in file.read_text().splitlines()] == ["header", *["block"] * 3]


def test_a_journal_of_another_machine_is_refused(tmp_path: Path) -> None:
    ResultsLog(tmp_path / "results.jsonl", RunHeader({"cores": "2"}))
    with pytest.raises(ValueError, match="another machine"):
        ResultsLog(tmp_path / "results.jsonl", RunHeader({"cores": "4"}))


def test_a_block_knows_its_rates() -> None:
    found = block()
    assert (found.tokens_per_s, found.share_of_peak) == (512.0, 0.5)
    assert found.cpu_s_per_1000_tokens == pytest.approx(1000 * 0.9 * 2 * 2 / 1024)
    assert block(gflops=None).share_of_peak is None


def test_the_machine_s_peak_is_a_rate_of_operations() -> None:
    assert 1 < machine.measure_peak_gflops([(64, 96)]) < 1e6
    assert machine.is_steady(100, 96, 0.05)
    assert not machine.is_steady(94, 100, 0.05)
    assert not machine.is_steady(100, 100, 0.5)
    assert {"processor", "cores", "instructions", "torch"} <= machine.describe_machine().keys()


@pytest.mark.anyio
async def test_a_watch_tells_who_used_the_machine() -> None:
    async with machine.ResourceMonitor([]) as watch:
        until = time.process_time() + 0.2
        while time.process_time() < until:
            pass
    assert watch.shares["server"] == 0
    assert 0 < watch.shares["client"] <= 1
    assert watch.initial_mib == 0
