"""What several servers count, told as one; and who gets which request."""

from prometheus_client import CollectorRegistry, generate_latest

from app.serve.metrics import Metrics
from app.serve.multiprocess.merged_metrics import Sums
from app.serve.multiprocess.prefix_routing import Affinity, texts


def told(scored: int, *, budget: int = 0, queue: int = 0, shared: int = 0) -> str:
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    metrics.scored.labels("alpha").inc(scored)
    metrics.request_seconds.labels("/v1/rewards").observe(0.2)
    metrics.requests.labels("/metrics", "GET", "200").inc(shared)
    metrics.budget.set(budget)
    metrics.queue_items.set(queue)
    metrics.info.labels("alpha", "toy", "b", "d", "s", "4").set(1)
    return generate_latest(registry).decode()


def lines(text: bytes) -> dict[str, float]:
    found = (line.rsplit(" ", 1) for line in text.decode().splitlines() if line[0] != "#")
    return {name: float(value) for name, value in found}


def test_counts_are_added_and_gauges_make_sense() -> None:
    own = CollectorRegistry()
    Metrics(own).requests.labels("/metrics", "GET", "200").inc(3)
    sums = Sums(own, frozenset({"/metrics"}))
    found = lines(
        sums.told({"a": told(3, budget=1024, queue=2, shared=9), "b": told(4, budget=64, queue=5, shared=9)})
    )
    assert found['sparserm_scored_total{model="alpha"}'] == 7
    assert found['sparserm_request_seconds_bucket{le="0.25",route="/v1/rewards"}'] == 2
    assert found['sparserm_requests_total{code="200",method="GET",route="/metrics"}'] == 3
    assert found["sparserm_batch_budget_tokens"] == 64
    assert found["sparserm_queue_items"] == 7
    assert sum(value for name, value in found.items() if name.startswith("sparserm_model_info")) == 1


def test_what_an_ended_server_counted_stays_and_its_gauges_go() -> None:
    sums = Sums(CollectorRegistry(), frozenset())
    sums.told({"a": told(3, queue=2), "b": told(4, queue=5)})
    for name in ("c", "d"):
        found = lines(sums.told({"a": told(3, queue=1), name: told(1)}))
    assert found['sparserm_scored_total{model="alpha"}'] == 3 + 4 + 1 + 1
    assert found["sparserm_queue_items"] == 1


def body(prompt: str, response: str) -> bytes:
    return f'{{"inputs": [{{"prompt": "{prompt}", "response": "{response}"}}]}}'.encode()


def test_what_begins_alike_meets_until_one_is_far_behind() -> None:
    affinity = Affinity()
    asked = [texts(body("amber river " * 40, f"stone {n}")) for n in range(60)]
    places = []
    for one in asked:
        places.append(affinity.ranked(one, ("a", "b"))[0])
        affinity.begin(one, places[-1])
    assert places[:8] == [places[0]] * 8
    assert 20 <= places.count("a") <= 40


def test_what_shares_nothing_is_spread_evenly_whether_it_waits_or_not() -> None:
    for waits in (True, False):
        affinity, places = Affinity(), []
        for n in range(40):
            one = texts(body(f"{n} amber " * 30, f"{n} stone"))
            places.append(affinity.ranked(one, ("a", "b"))[0])
            new = affinity.begin(one, places[-1])
            if not waits:
                affinity.end(places[-1], new)
        assert 18 <= places.count("a") <= 22


def test_texts_are_found_wherever_they_stand_in_a_body() -> None:
    prompt = r"maple \"orbit\" " * 20
    first = texts(f'{{"index": 7, "prompt": "{prompt}", "response": "x"}}'.encode()).blocks
    second = texts(f'{{"response": "glass", "index": 8, "prompt": "{prompt} and more"}}'.encode()).blocks
    assert len(first) > 5
    assert set(first) <= set(second)
    assert texts(b"not json").blocks == texts(b'"cut in the mid').blocks == ()


def test_a_newcomer_has_had_as_little_as_anybody() -> None:
    affinity = Affinity()
    for name in ("a", "b"):
        affinity.end(name, affinity.begin(texts(b"x" * 1000), name))
    affinity.keep(("b", "c"))
    affinity.end("c", affinity.begin(texts(b"x"), "c"))
    assert affinity.ranked(texts(b""), ("b", "c"))[0] == "b"
