"""Ray: the configs in deploy/ray are valid, two replicas act as one server, and output files are the same."""

import asyncio
import os
import re
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import yaml
from pydantic import ValidationError
from ray import serve
from ray.serve.config import HTTPOptions
from ray.serve.schema import ServeDeploySchema

from app.errors import UnprotectedServer
from app.reward.engine import Engine
from app.serve.multiprocess.gateway import ProxiedRequest
from app.serve.ray.cluster import connect
from app.serve.ray.deployment import APPLICATION_NAME, RayDeploymentConfig, build, build_application
from app.serve.ray.request_router import QUEUED_TOKENS, PrefixRequestRouter, QueuedTokensPolicy
from app.settings import Settings
from app.types import ScoreOptions
from tests.serve.test_process import server_environment
from tests.support import offline_runs, tiny
from tests.support.paths import ROOT
from tests.support.replica_servers import PROGRAM, ServerGroup, make_inputs, serving

SERVE = yaml.safe_load((ROOT / "deploy/ray/serve.yaml").read_text())
KUBERAY = yaml.safe_load((ROOT / "deploy/ray/rayservice.yaml").read_text())


@pytest.mark.parametrize("config", [SERVE, yaml.safe_load(KUBERAY["spec"]["serveConfigV2"])])
def test_ray_and_the_server_accept_the_configs(config: dict[str, Any]) -> None:
    (application,) = ServeDeploySchema(**config).applications
    assert application.import_path == "app.serve.ray.deployment:build"
    deployment = RayDeploymentConfig(**application.args)
    settings = {**deployment.settings, "api_keys_file": None, "api_keys": "mine"}
    assert build(deployment.model_copy(update={"settings": settings}))
    with pytest.raises(ValidationError):
        RayDeploymentConfig(**{**application.args, "replica": 1})


def test_the_cluster_has_the_pinned_version_and_a_gpu_per_worker() -> None:
    pinned = re.search(r"^ray==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    cluster = KUBERAY["spec"]["rayClusterConfig"]
    (group,) = cluster["workerGroupSpecs"]
    (worker,) = group["template"]["spec"]["containers"]
    args = yaml.safe_load(KUBERAY["spec"]["serveConfigV2"])["applications"][0]["args"]
    assert pinned
    assert cluster["rayVersion"] == pinned[1]
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == args["gpus"]
    assert group["maxReplicas"] == args["max_replicas"]


def test_a_config_without_keys_is_refused_unless_it_allows_that() -> None:
    with pytest.raises(UnprotectedServer, match="SPARSERM_API_KEYS"):
        build(RayDeploymentConfig())
    assert build(RayDeploymentConfig(settings={"allow_no_keys": True}))


@pytest.mark.parametrize(("queued", "expected"), [([], 1), ([0.0, 0.0], 1), ([90.0, 15.0], 2), ([500.0], 5)])
def test_replicas_are_proportional_to_the_queued_tokens(queued: list[float], expected: int) -> None:
    context = SimpleNamespace(aggregated_metrics={QUEUED_TOKENS: dict(enumerate(queued))})
    assert QueuedTokensPolicy(tokens_per_replica=100)(context) == (expected, {})


def test_requests_that_arrive_together_are_spread_before_any_is_sent() -> None:
    replicas: Any = [SimpleNamespace(replica_id=SimpleNamespace(unique_id=name)) for name in "ab"]
    # Without the constructor of the base class, which needs a cluster.
    router = PrefixRequestRouter.__new__(PrefixRequestRouter)
    router.initialize_state()

    async def route_eight(first: int) -> list[tuple[Any, Any]]:
        bodies = [f'{{"prompt": "{number:040}"}}'.encode() for number in range(first, first + 8)]
        pending: list[Any] = [
            SimpleNamespace(
                args=[ProxiedRequest("POST", b"/", (), body)],
                metadata=SimpleNamespace(internal_request_id=body),
                future=asyncio.get_running_loop().create_future(),
            )
            for body in bodies
        ]
        return [(item, (await router.choose_replicas(replicas, item))[0][0].replica_id) for item in pending]

    def count_by_replica(routed: list[tuple[Any, Any]]) -> Counter[str]:
        return Counter(replica.unique_id for _, replica in routed)

    async def run() -> None:
        routed = await route_eight(0) + await route_eight(8)
        assert count_by_replica(routed) == {"a": 8, "b": 8}
        for pending, replica in routed:
            if replica.unique_id == "a":
                pending.future.cancel()  # the caller disconnects before the request is sent
        await asyncio.sleep(0)
        assert count_by_replica(await route_eight(16)) == {"a": 8}
        for pending, replica in routed:
            if replica.unique_id == "b":
                router.on_request_routed(pending, replica, None)
                router.on_request_completed(replica, pending.metadata.internal_request_id)
        assert count_by_replica(await route_eight(24)) == {"b": 8}

    asyncio.run(run())


def start_scoring(
    source: Path, output: Path, env: dict[str, str], *options: str
) -> "subprocess.Popen[bytes]":
    command = [*PROGRAM, "score", str(source), str(output), "--model", offline_runs.MODEL, *options]
    return subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


@pytest.mark.heavy
@pytest.mark.timeout(600)
def test_a_run_on_ray_that_was_killed_writes_the_same_file_as_one_engine(
    settings: Settings, tmp_path: Path
) -> None:
    source = offline_runs.write_rows(
        tmp_path / "rows.jsonl", offline_runs.insert_bad_rows(offline_runs.make_response_rows(1500))
    )
    root = settings.models_dir.parent
    one_thread = {**os.environ, **offline_runs.make_environment(root), "SPARSERM_THREADS": "1"}
    two_workers = {**one_thread, "SPARSERM_THREADS": "2", "SPARSERM_WORKERS": "2"}
    assert start_scoring(source, tmp_path / "local.jsonl", one_thread).wait() == 0
    interrupted = start_scoring(source, tmp_path / "ray.jsonl", two_workers, "--ray")
    partial = tmp_path / "ray.jsonl.part"
    while interrupted.poll() is None and not (partial.exists() and partial.stat().st_size):
        time.sleep(0.05)
    interrupted.send_signal(signal.SIGKILL)
    interrupted.wait()
    assert not (tmp_path / "ray.jsonl").exists()
    assert start_scoring(source, tmp_path / "ray.jsonl", two_workers, "--ray").wait() == 0
    for suffix in (".jsonl", ".bad.jsonl"):
        local, ray = (tmp_path / f"{name}{suffix}" for name in ("local", "ray"))
        assert local.read_bytes() == ray.read_bytes()


@pytest.mark.heavy
@pytest.mark.timeout(900)
def test_replicas_are_added_for_queued_tokens_and_redeploying_fails_no_request(
    settings: Settings, free_tcp_port: int
) -> None:
    config = RayDeploymentConfig(replicas=1, max_replicas=2, tokens_per_replica=300)
    inputs = make_inputs(tiny.random_items(40))
    done, codes = threading.Event(), Counter[int]()
    with connect(3), ThreadPoolExecutor(4) as pool:
        serve.start(http_options=HTTPOptions(host="127.0.0.1", port=free_tcp_port))
        serve.run(build_application(settings, config), name=APPLICATION_NAME)

        def send(count: int) -> int:
            url = f"http://127.0.0.1:{free_tcp_port}/v1/rewards"
            return httpx.post(url, json={"inputs": inputs[:count]}, timeout=120).status_code

        def send_until_done() -> None:
            while not done.is_set():
                codes[send(40)] += 1

        try:
            senders = [pool.submit(send_until_done) for _ in range(4)]
            deadline = time.monotonic() + 400
            while count_running() < 2 and time.monotonic() < deadline:
                time.sleep(1)
            assert count_running() == 2
            changed = settings.model_copy(update={"max_items": 41})
            serve.run(build_application(changed, config), name=APPLICATION_NAME)
        finally:
            done.set()
        for sender in senders:
            sender.result()
        assert set(codes) == {200}
        inputs += inputs[:2]
        assert send(42) == 422
        serve.shutdown()


def count_running() -> int:
    """Return how many replicas take requests."""
    states = serve.status().applications[APPLICATION_NAME].deployments["replica"].replica_states
    return int(states.get("RUNNING", 0))


@pytest.fixture(scope="module")
def group(settings: Settings, free_tcp_port_factory: Any) -> Iterator[ServerGroup]:
    without_home = {**server_environment(settings), "HOME": "/proc/nowhere"}
    options = ("--workers", "2", "--ray")
    pattern = "ServeReplica:sparserm:replica"
    with serving(free_tcp_port_factory(), without_home, *options, worker_pattern=pattern) as group:
        yield group
    assert group.process.returncode == 0


@pytest.mark.heavy
@pytest.mark.timeout(600)
def test_two_replicas_act_as_one_server_and_a_killed_one_loses_no_request(
    group: ServerGroup, engine: Engine
) -> None:
    items = tiny.random_items(120, seed=3)
    expected = [score.reward for (score,) in tiny.score_items(engine, items, ScoreOptions(("beta",)))]
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(group.score, [body], model="beta") for body in make_inputs(items)]
        futures[10].result()
        group.workers[1].kill()
        rewards = [future.result()[0] for future in futures]
    assert rewards == pytest.approx(expected, abs=1e-5)
    group.wait_until_ready()
    assert len(group.workers) == 2


@pytest.mark.heavy
@pytest.mark.timeout(600)
def test_metrics_are_merged_prompts_share_a_replica_and_models_cannot_be_changed(group: ServerGroup) -> None:
    prompts = [f"{word} " * 60 for word in tiny.WORDS[:6]]
    inputs = [{"prompt": prompt, "response": f"stone {n}"} for n in range(8) for prompt in prompts]
    names = ("sparserm_scored_total", "sparserm_tokens_saved_total", "sparserm_tokens_total")
    before = [group.metric(name) for name in names]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda body: group.score([body]), inputs))
    scored, saved, tokens = (
        group.metric(name) - earlier for name, earlier in zip(names, before, strict=True)
    )
    assert scored == len(inputs)
    assert saved / tokens > 0.7
    refused = group.client.post("/v1/models/gamma/unload")
    assert refused.json()["error"]["code"] == "wants_deployment"
