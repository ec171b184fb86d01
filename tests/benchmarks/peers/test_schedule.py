"""The course through the peers: whose turn it is, and what is left to do."""

from benchmarks.peers.peer import Peer
from benchmarks.peers.schedule import course, in_turns, wanted
from benchmarks.workloads import Workload
from tests.benchmarks.peers.test_peers import KNOWN


def steps(*names: str) -> list[tuple[Peer, Workload]]:
    workloads = (Workload("open", "", open_loop=True), Workload("unique-1", ""))
    return [(KNOWN[name], workload) for name in names for workload in workloads]


def test_every_server_has_its_turn_in_every_round_and_another_one_begins() -> None:
    stints = course(steps("ours", "ours-reasons", "naive", "vllm"), 2, lambda *_: False)
    assert [(one.round, one.server.name) for one in stints] == [
        (0, "ours"), (0, "naive"), (0, "vllm"), (1, "naive"), (1, "vllm"), (1, "ours"),
    ]  # fmt: skip
    assert [workload.name for _, workload in stints[0].steps] == ["unique-1", "unique-1", "open", "open"]
    assert stints[2].seconds(10) > stints[1].seconds(10) > 10


def test_in_turns_a_workload_is_asked_of_all_before_the_next() -> None:
    workloads = [Workload(name, "") for name in ("one", "two")]
    steps = [(KNOWN[name], workload) for name in ("ours", "vllm") for workload in workloads]
    walked = in_turns(course(steps, 2, lambda *_: False))
    assert [(stint.round, workload.name, peer.name) for stint, peer, workload in walked] == [
        (0, "one", "ours"), (0, "one", "vllm"), (0, "two", "ours"), (0, "two", "vllm"),
        (1, "one", "vllm"), (1, "one", "ours"), (1, "two", "vllm"), (1, "two", "ours"),
    ]  # fmt: skip


def test_what_is_done_is_not_done_again() -> None:
    done = {("ours", "open", 0), ("ours", "unique-1", 0), ("naive", "open", 0)}
    stints = course(steps("ours", "naive"), 1, lambda *one: one in done)
    assert [(one.server.name, [workload.name for _, workload in one.steps]) for one in stints] == [
        ("naive", ["unique-1"])
    ]


def test_some_peers_are_there_for_some_workloads_unless_workloads_are_named() -> None:
    peers = [KNOWN["ours"], KNOWN["vllm-four"], KNOWN["naive"]]
    workloads = (Workload("unique-16", ""), Workload("long", ""), Workload("queue", "", only_peers=("ours",)))
    usual = [(peer.name, workload.name) for peer, workload in wanted(peers, workloads, named=False)]
    assert usual == [
        ("ours", "unique-16"), ("ours", "long"), ("ours", "queue"), ("vllm-four", "unique-16"),
        ("naive", "unique-16"), ("naive", "long"),
    ]  # fmt: skip
    assert len(wanted(peers, workloads, named=True)) == 9
