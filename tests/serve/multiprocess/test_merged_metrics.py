"""The merged metrics of several servers, and the routing of requests by prefix and load."""

from prometheus_client import CollectorRegistry, generate_latest

from app.serve.metrics import Metrics
from app.serve.multiprocess.merged_metrics import MergedMetrics
from app.serve.multiprocess.prefix_routing import PrefixRouter, hash_texts


def make_metrics(scored: int, *, budget: int = 0, queue: int = 0, shared: int = 0) -> str:
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    metrics.scored.labels("alpha").inc(scored)
    metrics.request_seconds.labels("/v1/rewards").observe(0.2)
    metrics.requests.labels("/metrics", "GET", "200").inc(shared)
    metrics.batch_budget_tokens.set(budget)
    metrics.queue_items.set(queue)
    metrics.model_info.labels("alpha", "toy", "b", "d", "s", "4").set(1)
    return generate_latest(registry).decode()


def parse_values(text: bytes) -> dict[str, float]:
    lines = (line.rsplit(" ", 1) for line in text.decode().splitlines() if line[0] != "#")
    return {name: float(value) for name, value in lines}


def test_counts_are_added_and_gauges_merged() -> None:
    own = CollectorRegistry()
    Metrics(own).requests.labels("/metrics", "GET", "200").inc(3)
    merged = MergedMetrics(own, frozenset({"/metrics"}))
    first = make_metrics(3, budget=1024, queue=2, shared=9)
    second = make_metrics(4, budget=64, queue=5, shared=9)
    values = parse_values(merged.merge({"a": first, "b": second}))
    assert values['sparserm_scored_total{model="alpha"}'] == 7
    assert values['sparserm_request_seconds_bucket{le="0.25",route="/v1/rewards"}'] == 2
    assert values['sparserm_requests_total{code="200",method="GET",route="/metrics"}'] == 3
    assert values["sparserm_batch_budget_tokens"] == 64
    assert values["sparserm_queue_items"] == 7
    assert sum(value for name, value in values.items() if name.startswith("sparserm_model_info")) == 1


def test_the_counts_of_an_ended_server_stay_and_its_gauges_go() -> None:
    merged = MergedMetrics(CollectorRegistry(), frozenset())
    merged.merge({"a": make_metrics(3, queue=2), "b": make_metrics(4, queue=5)})
    for name in ("c", "d"):
        values = parse_values(merged.merge({"a": make_metrics(3, queue=1), name: make_metrics(1)}))
    assert values['sparserm_scored_total{model="alpha"}'] == 3 + 4 + 1 + 1
    assert values["sparserm_queue_items"] == 1


def make_body(prompt: str, response: str) -> bytes:
    return f'{{"inputs": [{{"prompt": "{prompt}", "response": "{response}"}}]}}'.encode()


def test_a_common_prefix_goes_to_one_server_until_that_is_far_busier() -> None:
    router = PrefixRouter()
    requests = [hash_texts(make_body("amber river " * 40, f"stone {n}")) for n in range(60)]
    chosen = []
    for texts in requests:
        chosen.append(router.rank(texts, ("a", "b"))[0])
        router.start_request(texts, chosen[-1])
    assert chosen[:8] == [chosen[0]] * 8
    assert 20 <= chosen.count("a") <= 40


def test_requests_without_common_text_are_spread_evenly() -> None:
    for requests_wait in (True, False):
        router, chosen = PrefixRouter(), []
        for n in range(40):
            texts = hash_texts(make_body(f"{n} amber " * 30, f"{n} stone"))
            chosen.append(router.rank(texts, ("a", "b"))[0])
            new_bytes = router.start_request(texts, chosen[-1])
            if not requests_wait:
                router.finish_request(chosen[-1], new_bytes)
        assert 18 <= chosen.count("a") <= 22


def test_texts_are_recognised_anywhere_in_a_body() -> None:
    prompt = r"maple \"orbit\" " * 20
    first = hash_texts(f'{{"index": 7, "prompt": "{prompt}", "response": "x"}}'.encode()).blocks
    second = hash_texts(f'{{"response": "glass", "index": 8, "prompt": "{prompt} and more"}}'.encode()).blocks
    assert len(first) > 5
    assert set(first) <= set(second)
    assert hash_texts(b"not json").blocks == hash_texts(b'"cut in the mid').blocks == ()


def test_a_new_server_counts_as_assigned_as_little_as_any_other() -> None:
    router = PrefixRouter()
    for name in ("a", "b"):
        router.finish_request(name, router.start_request(hash_texts(b"x" * 1000), name))
    router.set_servers(("b", "c"))
    router.finish_request("c", router.start_request(hash_texts(b"x"), "c"))
    assert router.rank(hash_texts(b""), ("b", "c"))[0] == "b"
