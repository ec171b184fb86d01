"""The image, built and started from its Dockerfile without Docker (`make test-all`, as root on Linux)."""

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
def image(tmp_path_factory: pytest.TempPathFactory) -> dockerfile_steps.ImageStage:
    folder = tmp_path_factory.mktemp("image")
    return dockerfile_steps.build_image(ROOT / "Dockerfile", folder, "cpu", {"BACKBONE": BACKBONE})


def test_build_context_contains_the_package_and_no_tests(image: dockerfile_steps.ImageStage) -> None:
    names = {path.name for path in (image.root.parent / "build" / "build").iterdir()}
    assert {"app", "pyproject.toml", "constraints.txt", "README.md"} <= names
    assert not names & {"tests", "docs", ".git"}
    assert not list((image.root / "srv").rglob("__pycache__"))


def test_image_contains_the_backbone_and_its_user_cannot_write_models(
    image: dockerfile_steps.ImageStage,
) -> None:
    cache = image.root / "var/cache/sparserm"
    assert list((cache / "backbones").glob(f"{BACKBONE}-*/model.safetensors"))
    assert {path.stat().st_uid for path in cache.rglob("*")} == {10001}
    result = subprocess.run(
        image.command_line("id -u; touch /srv/models/x; echo $?"), capture_output=True, check=False
    )
    assert result.stdout.split() == [b"10001", b"1"]


def test_container_starts_offline_and_answers(image: dockerfile_steps.ImageStage) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        "SPARSERM_HOST": "127.0.0.1",
        "SPARSERM_PORT": str(port),
        "PIP_INDEX_URL": "http://127.0.0.1:9",
    }
    process = subprocess.Popen(image.command_line(image.start_command, HF_HUB_OFFLINE="1", **environment))
    try:
        answer = request_reward(f"http://127.0.0.1:{port}")
    finally:
        process.terminate()
        code = process.wait(60)
    assert answer["data"][0]["features"]
    assert code == -signal.SIGTERM  # uvicorn re-raises the signal after its shutdown


def request_reward(address: str) -> dict[str, list[dict[str, object]]]:
    """Wait until the server is ready and request a reward."""
    for _ in range(600):
        try:
            httpx.get(f"{address}/ready").raise_for_status()
            break
        except httpx.HTTPError:
            time.sleep(1)
    body = {"model": "truthfulness", "inputs": [{"prompt": "Is chewing gum food?", "response": "No."}]}
    answer: dict[str, list[dict[str, object]]] = httpx.post(
        f"{address}/v1/rewards", json=body, timeout=60
    ).json()
    return answer
