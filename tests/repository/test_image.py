"""The image as its Dockerfile says, built and started without Docker (`make test-all`, as root on Linux)."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import httpx
import pytest

from tests.support import dockerfile_steps
from tests.support.paths import ROOT

BACKBONE = "smollm2-135m-instruct"
pytestmark = [
    pytest.mark.heavy,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(
        sys.platform != "linux" or os.geteuid() != 0 or shutil.which("unshare") is None,
        reason="needs a mount namespace of its own",
    ),
]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> dockerfile_steps.Stage:
    place = tmp_path_factory.mktemp("image")
    return dockerfile_steps.build(ROOT / "Dockerfile", place, "cpu", {"BACKBONE": BACKBONE})


def test_the_context_is_what_it_should_be(image: dockerfile_steps.Stage) -> None:
    held = {path.name for path in (image.root.parent / "build" / "build").iterdir()}
    assert {"app", "pyproject.toml", "constraints.txt", "README.md"} <= held
    assert not held & {"tests", "docs", ".git"}
    assert not list((image.root / "srv").rglob("__pycache__"))


def test_the_image_holds_a_backbone_and_belongs_to_nobody(image: dockerfile_steps.Stage) -> None:
    cache = image.root / "var/cache/sparserm"
    assert list((cache / "backbones").glob(f"{BACKBONE}-*/model.safetensors"))
    assert {path.stat().st_uid for path in cache.rglob("*")} == {10001}
    told = subprocess.run(
        image.enter("id -u; touch /srv/models/x; echo $?"), capture_output=True, check=False
    )
    assert told.stdout.split() == [b"10001", b"1"]


def test_it_starts_offline_and_answers(image: dockerfile_steps.Stage) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    said = {"SPARSERM_HOST": "127.0.0.1", "SPARSERM_PORT": str(port), "PIP_INDEX_URL": "http://127.0.0.1:9"}
    running = subprocess.Popen(image.enter(image.start, HF_HUB_OFFLINE="1", **said))
    try:
        answer = asked(f"http://127.0.0.1:{port}")
    finally:
        running.terminate()
        code = running.wait(60)
    assert answer["data"][0]["features"]
    assert code == -signal.SIGTERM  # uvicorn passes it on when all is done


def asked(address: str) -> dict[str, list[dict[str, object]]]:
    """A reward, as soon as the server is ready."""
    for _ in range(600):
        try:
            httpx.get(f"{address}/ready").raise_for_status()
            break
        except httpx.HTTPError:
            time.sleep(1)
    body = {"model": "truthfulness", "inputs": [{"prompt": "Is chewing gum food?", "response": "No."}]}
    found: dict[str, list[dict[str, object]]] = httpx.post(
        f"{address}/v1/rewards", json=body, timeout=60
    ).json()
    return found
