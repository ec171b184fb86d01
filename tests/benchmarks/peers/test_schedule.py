"""The schedule of peer measurements: order of servers and workloads, and what is left to do."""

from benchmarks.peers.peer import Peer
from benchmarks.peers.schedule import build_schedule, interleave_by_workload, select_steps
from benchmarks.workloads import Workload
from tests.benchmarks.peers.test_peers import KNOWN


def make_steps(*names: str) -> list[tuple[Peer, Workload]]:
    workloads = (Workload("open", "", open_loop=True), Workload("unique-1", ""))
    return [(KNOWN[name], workload) for name in names for workload in workloads]


def test_every_round_measures_every_server_and_starts_with_another() -> None:
    sessions = build_schedule(make_steps("ours", "ours-reasons", "naive", "vllm"), 2, lambda *_: False)
    assert [(session.round, session.server.name) for session in sessions] == [
        (0, "ours"), (0, "naive"), (0, "vllm"), (1, "naive"), (1, "vllm"), (1, "ours"),
    ]  # fmt: skip
    assert [workload.name for _, workload in sessions[0].steps] == ["unique-1", "unique-1", "open", "open"]
    assert sessions[2].expected_seconds(10) > sessions[1].expected_seconds(10) > 10


def test_interleaving_runs_a_workload_on_all_servers_before_the_next() -> None:
    workloads = [Workload(name, "") for name in ("one", "two")]
    steps = [(KNOWN[name], workload) for name in ("ours", "vllm") for workload in workloads]
    order = interleave_by_workload(build_schedule(steps, 2, lambda *_: False))
    assert [(session.round, workload.name, peer.name) for session, peer, workload in order] == [
        (0, "one", "ours"), (0, "one", "vllm"), (0, "two", "ours"), (0, "two", "vllm"),
        (1, "one", "vllm"), (1, "one", "ours"), (1, "two", "vllm"), (1, "two", "ours"),
    ]  # fmt: skip


def test_finished_measurements_are_not_scheduled_again() -> None:
    done = {("ours", "open", 0), ("ours", "unique-1", 0), ("naive", "open", 0)}
    sessions = build_schedule(make_steps("ours", "naive"), 1, lambda *key: key in done)
    assert [
        (session.server.name, [workload.name for _, workload in session.steps]) for session in sessions
    ] == [("naive", ["unique-1"])]


def test_default_combinations_apply_unless_workloads_are_named() -> None:
    peers = [KNOWN["ours"], KNOWN["vllm-four"], KNOWN["naive"]]
    workloads = (Workload("unique-16", ""), Workload("long", ""), Workload("queue", "", only_peers=("ours",)))
    default = [
        (peer.name, workload.name) for peer, workload in select_steps(peers, workloads, workloads_named=False)
    ]
    assert default == [
        ("ours", "unique-16"), ("ours", "long"), ("ours", "queue"), ("vllm-four", "unique-16"),
        ("naive", "unique-16"), ("naive", "long"),
    ]  # fmt: skip
    assert len(select_steps(peers, workloads, workloads_named=True)) == 9
