"""Ray: deploy/ray is what the code accepts; two replicas are one server; files come out the same."""

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
from app.serve.multiprocess.gateway import Asked
from app.serve.ray.cluster import joined
from app.serve.ray.deployment import NAME, Plan, application, build
from app.serve.ray.request_router import BACKLOG, ByBacklog, ByPrompt
from app.settings import Settings
from app.types import ScoreOptions
from tests.serve.test_process import environment
from tests.support import offline_runs, tiny
from tests.support.paths import ROOT
from tests.support.replica_servers import PROGRAM, Served, inputs, serving

SERVE = yaml.safe_load((ROOT / "deploy/ray/serve.yaml").read_text())
KUBERAY = yaml.safe_load((ROOT / "deploy/ray/rayservice.yaml").read_text())


@pytest.mark.parametrize("config", [SERVE, yaml.safe_load(KUBERAY["spec"]["serveConfigV2"])])
def test_the_configs_are_what_ray_and_we_accept(config: dict[str, Any]) -> None:
    (application,) = ServeDeploySchema(**config).applications
    assert application.import_path == "app.serve.ray.deployment:build"
    plan = Plan(**application.args)
    keyed = {**plan.settings, "api_keys_file": None, "api_keys": "mine"}
    assert build(plan.model_copy(update={"settings": keyed}))
    with pytest.raises(ValidationError):
        Plan(**{**application.args, "replica": 1})


def test_the_cluster_is_one_of_the_pinned_version_with_a_gpu_a_worker() -> None:
    pinned = re.search(r"^ray==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    cluster = KUBERAY["spec"]["rayClusterConfig"]
    (group,) = cluster["workerGroupSpecs"]
    (worker,) = group["template"]["spec"]["containers"]
    args = yaml.safe_load(KUBERAY["spec"]["serveConfigV2"])["applications"][0]["args"]
    assert pinned
    assert cluster["rayVersion"] == pinned[1]
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == args["gpus"]
    assert group["maxReplicas"] == args["most_replicas"]


def test_a_config_without_keys_is_refused_unless_it_says_so() -> None:
    with pytest.raises(UnprotectedServer, match="SPARSERM_API_KEYS"):
        build(Plan())
    assert build(Plan(settings={"allow_no_keys": True}))


@pytest.mark.parametrize(("waiting", "wanted"), [([], 1), ([0.0, 0.0], 1), ([90.0, 15.0], 2), ([500.0], 5)])
def test_there_are_as_many_replicas_as_tokens_wait(waiting: list[float], wanted: int) -> None:
    context = SimpleNamespace(aggregated_metrics={BACKLOG: dict(enumerate(waiting))})
    assert ByBacklog(tokens=100)(context) == (wanted, {})


def test_requests_that_come_at_once_are_shared_out_before_any_is_sent() -> None:
    replicas: Any = [SimpleNamespace(replica_id=SimpleNamespace(unique_id=name)) for name in "ab"]
    router = ByPrompt.__new__(ByPrompt)  # its own part alone: Ray's begins with a cluster
    router.initialize_state()

    async def eight(first: int) -> list[tuple[Any, Any]]:
        bodies = [f'{{"prompt": "{number:040}"}}'.encode() for number in range(first, first + 8)]
        pending: list[Any] = [
            SimpleNamespace(
                args=[Asked("POST", b"/", (), body)],
                metadata=SimpleNamespace(internal_request_id=body),
                future=asyncio.get_running_loop().create_future(),
            )
            for body in bodies
        ]
        return [(one, (await router.choose_replicas(replicas, one))[0][0].replica_id) for one in pending]

    def met(some: list[tuple[Any, Any]]) -> Counter[str]:
        return Counter(replica.unique_id for _, replica in some)

    async def run() -> None:
        come = await eight(0) + await eight(8)
        assert met(come) == {"a": 8, "b": 8}
        for pending, replica in come:
            if replica.unique_id == "a":
                pending.future.cancel()  # its caller goes before it is sent
        await asyncio.sleep(0)
        assert met(await eight(16)) == {"a": 8}
        for pending, replica in come:
            if replica.unique_id == "b":
                router.on_request_routed(pending, replica, None)
                router.on_request_completed(replica, pending.metadata.internal_request_id)
        assert met(await eight(24)) == {"b": 8}

    asyncio.run(run())


def score(source: Path, out: Path, env: dict[str, str], *options: str) -> "subprocess.Popen[bytes]":
    command = [*PROGRAM, "score", str(source), str(out), "--model", offline_runs.MODEL, *options]
    return subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


@pytest.mark.heavy
@pytest.mark.timeout(600)
def test_a_file_scored_on_ray_and_killed_on_the_way_is_the_same_file(
    settings: Settings, tmp_path: Path
) -> None:
    source = offline_runs.write_rows(
        tmp_path / "rows.jsonl", offline_runs.insert_bad_rows(offline_runs.make_response_rows(1500))
    )
    root = settings.models_dir.parent
    one = {**os.environ, **offline_runs.make_environment(root), "SPARSERM_THREADS": "1"}
    two = {**one, "SPARSERM_THREADS": "2", "SPARSERM_WORKERS": "2"}
    assert score(source, tmp_path / "alone.jsonl", one).wait() == 0
    broken = score(source, tmp_path / "spread.jsonl", two, "--ray")
    written = tmp_path / "spread.jsonl.part"
    while broken.poll() is None and not (written.exists() and written.stat().st_size):
        time.sleep(0.05)
    broken.send_signal(signal.SIGKILL)
    broken.wait()
    assert not (tmp_path / "spread.jsonl").exists()
    assert score(source, tmp_path / "spread.jsonl", two, "--ray").wait() == 0
    for name in ("{}.jsonl", "{}.bad.jsonl"):
        alone, spread = (tmp_path / name.format(one) for one in ("alone", "spread"))
        assert alone.read_bytes() == spread.read_bytes()


@pytest.mark.heavy
@pytest.mark.timeout(900)
def test_replicas_come_as_tokens_wait_and_deploying_again_fails_nobody(
    settings: Settings, free_tcp_port: int
) -> None:
    plan = Plan(replicas=1, most_replicas=2, backlog_tokens=300)
    items = inputs(tiny.random_items(40))
    over, codes = threading.Event(), Counter[int]()
    with joined(3), ThreadPoolExecutor(4) as pool:
        serve.start(http_options=HTTPOptions(host="127.0.0.1", port=free_tcp_port))
        serve.run(application(settings, plan), name=NAME)

        def ask(count: int) -> int:
            url = f"http://127.0.0.1:{free_tcp_port}/v1/rewards"
            return httpx.post(url, json={"inputs": items[:count]}, timeout=120).status_code

        def voice() -> None:
            while not over.is_set():
                codes[ask(40)] += 1

        try:
            voices = [pool.submit(voice) for _ in range(4)]
            until = time.monotonic() + 400
            while running() < 2 and time.monotonic() < until:
                time.sleep(1)
            assert running() == 2
            serve.run(application(settings.model_copy(update={"max_items": 41}), plan), name=NAME)
        finally:
            over.set()
        for one in voices:
            one.result()
        assert set(codes) == {200}
        items += items[:2]
        assert ask(42) == 422
        serve.shutdown()


def running() -> int:
    """Replicas that take requests."""
    states = serve.status().applications[NAME].deployments["replica"].replica_states
    return int(states.get("RUNNING", 0))


@pytest.fixture(scope="module")
def served(settings: Settings, free_tcp_port_factory: Any) -> Iterator[Served]:
    port, homeless = free_tcp_port_factory(), {**environment(settings), "HOME": "/proc/nowhere"}
    with serving(port, homeless, "--workers", "2", "--ray", worker="ServeReplica:sparserm:replica") as found:
        yield found
    assert found.process.returncode == 0


@pytest.mark.heavy
@pytest.mark.timeout(600)
def test_two_replicas_are_one_server_and_a_killed_one_loses_nothing(served: Served, engine: Engine) -> None:
    exchanges = tiny.random_items(120, seed=3)
    alone = [scores[0].reward for scores in tiny.score_items(engine, exchanges, ScoreOptions(("beta",)))]
    with ThreadPoolExecutor(8) as pool:
        coming = [pool.submit(served.rewards, [one], model="beta") for one in inputs(exchanges)]
        coming[10].result()
        served.workers[1].kill()
        found = [one.result()[0] for one in coming]
    assert found == pytest.approx(alone, abs=1e-5)
    served.until_ready()
    assert len(served.workers) == 2


@pytest.mark.heavy
@pytest.mark.timeout(600)
def test_metrics_add_up_groups_meet_and_models_stay(served: Served) -> None:
    prompts = [f"{word} " * 60 for word in tiny.WORDS[:6]]
    items = [{"prompt": prompt, "response": f"stone {n}"} for n in range(8) for prompt in prompts]
    names = ("sparserm_scored_total", "sparserm_tokens_saved_total", "sparserm_tokens_total")
    before = [served.metric(name) for name in names]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda one: served.rewards([one]), items))
    scored, saved, tokens = (served.metric(name) - was for name, was in zip(names, before, strict=True))
    assert scored == len(items)
    assert saved / tokens > 0.7
    refused = served.client.post("/v1/models/gamma/unload")
    assert refused.json()["error"]["code"] == "wants_deployment"
