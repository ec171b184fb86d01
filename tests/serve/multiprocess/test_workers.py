"""`serve --workers 2`: two processes behind one address act as one server, also when one is killed."""

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
from tests.serve.test_process import server_environment
from tests.support import tiny
from tests.support.replica_servers import ADMIN, ServerGroup, make_inputs, serving


@pytest.fixture(scope="module")
def group(settings: Settings, free_tcp_port_factory: Any) -> Iterator[ServerGroup]:
    port = free_tcp_port_factory()
    with serving(port, server_environment(settings), "--workers", "2", worker_pattern="spawn_main") as group:
        yield group


def measure_cpu_seconds(group: ServerGroup) -> list[float]:
    """Return the CPU seconds that each worker has used."""
    return [sum(worker.cpu_times()[:2]) for worker in group.workers]


def test_scores_are_those_of_one_server(group: ServerGroup, engine: Engine) -> None:
    items = tiny.random_items(12)
    expected = [score.reward for (score,) in tiny.score_items(engine, items, ScoreOptions(("beta",)))]
    rewards = [group.score([body], model="beta")[0] for body in make_inputs(items)]
    assert rewards == pytest.approx(expected, abs=1e-5)


def test_two_connections_keep_both_workers_busy(group: ServerGroup) -> None:
    before = measure_cpu_seconds(group)
    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(send_new_texts, group, seed) for seed in (1, 2)]:
            future.result()
    used = [after - start for after, start in zip(measure_cpu_seconds(group), before, strict=True)]
    assert min(used) > 0.5 * max(used) > 0


def send_new_texts(group: ServerGroup, seed: int) -> None:
    """Send requests with texts that no worker has computed before, on one connection."""
    random = Random(seed)
    with httpx.Client(base_url=group.client.base_url, headers=ADMIN, timeout=60) as client:
        for _ in range(30):
            texts = [" ".join(random.choices(tiny.WORDS, k=60)) for _ in range(6)]
            inputs = [{"prompt": text, "response": text} for text in texts]
            assert client.post("/v1/rewards", json={"inputs": inputs}).status_code == 200


def test_responses_to_one_prompt_go_to_one_worker(group: ServerGroup) -> None:
    prompts = [f"{word} " * 60 for word in tiny.WORDS[:6]]
    inputs = [{"prompt": prompt, "response": f"stone {n}"} for n in range(8) for prompt in prompts]
    saved, tokens = (group.metric(f"sparserm_tokens{part}_total") for part in ("_saved", ""))
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda body: group.score([body]), inputs))
    newly_saved = group.metric("sparserm_tokens_saved_total") - saved
    assert newly_saved / (group.metric("sparserm_tokens_total") - tokens) > 0.7


def test_metrics_are_merged(group: ServerGroup) -> None:
    scored = group.metric("sparserm_scored_total")
    requests = group.metric("sparserm_requests_total", route="/metrics")
    for body in make_inputs(tiny.random_items(6, seed=9)):
        group.score([body])
    assert group.metric("sparserm_scored_total") == scored + 6
    assert group.metric("sparserm_requests_total", route="/metrics") == requests + 2
    assert group.metric("sparserm_requests_in_flight") == 1
    assert group.metric("sparserm_model_info") == len(tiny.MODELS)
    assert group.client.get("/load").json() == {"server_load": 0}


def test_a_worker_drops_the_request_of_a_caller_that_disconnects(group: ServerGroup) -> None:
    inputs = [{"prompt": "amber river " * 60, "response": f"stone {n} " * 40} for n in range(1000)]
    scored = group.metric("sparserm_scored_total")
    with pytest.raises(httpx.ReadTimeout):
        group.client.post("/v1/rewards", json={"inputs": inputs}, timeout=0.5)
    while group.client.get("/load").json()["server_load"]:
        time.sleep(0.05)
    assert group.metric("sparserm_scored_total") == scored


def test_keys_have_their_roles_through_the_gateway(group: ServerGroup) -> None:
    body = {"inputs": [{"prompt": "amber", "response": "river"}]}
    base = str(group.client.base_url)
    assert httpx.post(f"{base}/v1/rewards", json=body).status_code == 401
    assert httpx.get(f"{base}/metrics", headers={"X-API-Key": "eye"}).status_code == 200
    assert httpx.get(f"{base}/ready").status_code == 200
    assert httpx.post(f"{base}/k/mine/m/beta/v1/rewards", json=body).json()["models"] == ["beta"]
    assert httpx.post(f"{base}/k/mine/v1/models/beta/reload").status_code == 403
    assert httpx.get(f"{base}/").headers["content-type"].startswith("text/html")
    refused = httpx.post(f"{base}/k/mine/v1/rewards", json={"inputs": []})
    assert refused.json()["error"]["param"] == "inputs"


def test_a_killed_worker_loses_no_request_and_restarts_with_the_current_models(group: ServerGroup) -> None:
    inputs = make_inputs(tiny.random_items(120, seed=3))
    expected = group.score(inputs)
    assert group.client.post("/v1/models/gamma/unload").status_code == 200
    assert group.client.post("/v1/models/unknown/load").status_code == 404
    scored = group.metric("sparserm_scored_total")
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(group.score, [body]) for body in inputs]
        futures[10].result()
        group.workers[1].kill()
        rewards = [future.result()[0] for future in futures]
    assert rewards == pytest.approx(expected, abs=1e-5)
    assert group.client.get("/ready").status_code == 503
    assert group.client.post("/v1/models/gamma/load").status_code == 503
    group.wait_until_ready()
    assert len(group.workers) == 2
    assert group.metric("sparserm_scored_total") >= scored
    models = [{card["id"] for card in group.client.get("/v1/models").json()["data"]} for _ in range(6)]
    assert models == [{"alpha", "beta", "delta"}] * 6


def test_shutdown_waits_for_requests_in_flight(group: ServerGroup) -> None:
    inputs = [{"prompt": "amber river " * 60, "response": f"stone {n} " * 40} for n in range(300)]
    workers = group.workers
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(group.score, inputs)
        time.sleep(0.5)
        os.kill(group.process.pid, signal.SIGTERM)
        assert len(future.result()) == 300
    group.process.wait(60)
    assert not any(worker.is_running() for worker in workers)
