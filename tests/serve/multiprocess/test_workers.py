"""`serve --workers 2`: two processes behind one address are one server, whatever happens to one of them."""

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import Any

import httpx
import pytest

from app.reward.engine import Engine
from app.settings import Settings
from app.types import ScoreOptions
from tests.serve.test_process import environment
from tests.support import tiny
from tests.support.replica_servers import ADMIN, Served, inputs, serving


@pytest.fixture(scope="module")
def served(settings: Settings, free_tcp_port_factory: Any) -> Iterator[Served]:
    port = free_tcp_port_factory()
    with serving(port, environment(settings), "--workers", "2", worker="spawn_main") as found:
        yield found


def busy(served: Served) -> list[float]:
    """Seconds each worker's processor was busy."""
    return [sum(worker.cpu_times()[:2]) for worker in served.workers]


def test_scores_are_those_of_one_server(served: Served, engine: Engine) -> None:
    exchanges = tiny.random_items(12)
    alone = [scores[0].reward for scores in tiny.score_items(engine, exchanges, ScoreOptions(("beta",)))]
    apart = [served.rewards([one], model="beta")[0] for one in inputs(exchanges)]
    assert apart == pytest.approx(alone, abs=1e-5)


def test_two_connections_keep_both_workers_busy(served: Served) -> None:
    before = busy(served)
    with ThreadPoolExecutor(2) as pool:
        for turns in [pool.submit(talk, served, seed) for seed in (1, 2)]:
            turns.result()
    spent = [after - start for after, start in zip(busy(served), before, strict=True)]
    assert min(spent) > 0.5 * max(spent) > 0


def talk(served: Served, seed: int) -> None:
    """Words that nobody has read before, on a connection of its own, again and again."""
    random = Random(seed)
    with httpx.Client(base_url=served.client.base_url, headers=ADMIN, timeout=60) as client:
        for _ in range(30):
            said = [" ".join(random.choices(tiny.WORDS, k=60)) for _ in range(6)]
            items = [{"prompt": one, "response": one} for one in said]
            assert client.post("/v1/rewards", json={"inputs": items}).status_code == 200


def test_a_group_meets_on_one_worker(served: Served) -> None:
    prompts = [f"{word} " * 60 for word in tiny.WORDS[:6]]
    items = [{"prompt": prompt, "response": f"stone {n}"} for n in range(8) for prompt in prompts]
    saved, tokens = (served.metric(f"sparserm_tokens{part}_total") for part in ("_saved", ""))
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda one: served.rewards([one]), items))
    after = served.metric("sparserm_tokens_saved_total") - saved
    assert after / (served.metric("sparserm_tokens_total") - tokens) > 0.7


def test_metrics_are_the_sum_of_all(served: Served) -> None:
    scored = served.metric("sparserm_scored_total")
    asked = served.metric("sparserm_requests_total", route="/metrics")
    for one in inputs(tiny.random_items(6, seed=9)):
        served.rewards([one])
    assert served.metric("sparserm_scored_total") == scored + 6
    assert served.metric("sparserm_requests_total", route="/metrics") == asked + 2
    assert served.metric("sparserm_requests_in_flight") == 1
    assert served.metric("sparserm_model_info") == 3
    assert served.client.get("/load").json() == {"server_load": 0}


def test_who_hangs_up_is_forgotten_by_the_worker(served: Served) -> None:
    items = [{"prompt": "amber river " * 60, "response": f"stone {n} " * 40} for n in range(1000)]
    scored = served.metric("sparserm_scored_total")
    with pytest.raises(httpx.ReadTimeout):
        served.client.post("/v1/rewards", json={"inputs": items}, timeout=0.5)
    while served.client.get("/load").json()["server_load"]:
        time.sleep(0.05)
    assert served.metric("sparserm_scored_total") == scored


def test_keys_open_what_they_always_do(served: Served) -> None:
    ask = {"inputs": [{"prompt": "amber", "response": "river"}]}
    base = str(served.client.base_url)
    assert httpx.post(f"{base}/v1/rewards", json=ask).status_code == 401
    assert httpx.get(f"{base}/metrics", headers={"X-API-Key": "eye"}).status_code == 200
    assert httpx.get(f"{base}/ready").status_code == 200
    assert httpx.post(f"{base}/k/mine/m/beta/v1/rewards", json=ask).json()["models"] == ["beta"]
    assert httpx.post(f"{base}/k/mine/v1/models/beta/reload").status_code == 403
    assert httpx.get(f"{base}/").headers["content-type"].startswith("text/html")
    refused = httpx.post(f"{base}/k/mine/v1/rewards", json={"inputs": []})
    assert refused.json()["error"]["param"] == "inputs"


def test_a_killed_worker_loses_no_request_and_comes_back_as_the_others_are(served: Served) -> None:
    items = inputs(tiny.random_items(120, seed=3))
    expected = served.rewards(items)
    assert served.client.post("/v1/models/gamma/unload").status_code == 200
    assert served.client.post("/v1/models/nobody/load").status_code == 404
    scored = served.metric("sparserm_scored_total")
    with ThreadPoolExecutor(8) as pool:
        coming = [pool.submit(served.rewards, [one]) for one in items]
        coming[10].result()
        served.workers[1].kill()
        found = [one.result()[0] for one in coming]
    assert found == pytest.approx(expected, abs=1e-5)
    assert served.client.get("/ready").status_code == 503
    assert served.client.post("/v1/models/gamma/load").status_code == 503
    served.until_ready()
    assert len(served.workers) == 2
    assert served.metric("sparserm_scored_total") >= scored
    known = [{card["id"] for card in served.client.get("/v1/models").json()["data"]} for _ in range(6)]
    assert known == [{"alpha", "beta"}] * 6


def test_the_end_waits_for_requests_in_flight(served: Served) -> None:
    items = [{"prompt": "amber river " * 60, "response": f"stone {n} " * 40} for n in range(300)]
    workers = served.workers
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(served.rewards, items)
        time.sleep(0.5)
        os.kill(served.process.pid, signal.SIGTERM)
        assert len(answer.result()) == 300
    served.process.wait(60)
    assert not any(worker.is_running() for worker in workers)
