"""The client as an installed package: what it needs, that it works alone, and that it fits into trainers."""

import ast
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.metadata import Metadata
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from sparserm_client import Client, Sample

from tests.support.paths import ROOT

CLIENT = ROOT / "client"
# What httpx itself needs, and what a new environment may have.
HTTPX_PACKAGES = {"anyio", "certifi", "h11", "httpcore", "httpx", "idna", "sniffio", "typing-extensions"}
INSTALLERS = {"pip", "setuptools"}
TRAINERS = [
    "trl==1.16.*",
    "verl==0.9.1",
    "openrlhf==0.11.2",
    "ms-swift==4.6.0",
    "llamafactory==0.9.5",
    "areal==1.0.4",
]
# OpenRLHF needs flash-attn, whose metadata can only be built where torch is installed. So pip cannot resolve
# OpenRLHF in a new environment, with the client or without it; all its other requirements are resolved.
NEED_INSTALLED_TORCH = {"flash-attn"}


def run(*command: object, cwd: Path) -> str:
    result = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True, check=False)
    assert result.returncode == 0, (result.stdout + result.stderr)[-3000:]
    return result.stdout


def create_environment(folder: Path) -> Path:
    """Create an empty virtual environment; return its Python."""
    run(sys.executable, "-m", "venv", folder, cwd=folder.parent)
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The client's wheel, built from a copy of its sources."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(CLIENT, folder / "client", ignore=shutil.ignore_patterns("*.egg-info", "build"))
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir"]
    run(*pip, folder, folder / "client", cwd=folder)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with the client and nothing that it does not need."""
    folder = tmp_path_factory.mktemp("client")
    python = create_environment(folder / "venv")
    pip = [python, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt"]
    run(*pip, wheel, cwd=folder)
    return python


def test_the_wheel_holds_the_package_its_types_and_its_license(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = read_metadata(archive)
    sources = {f"sparserm_client/{path.name}" for path in (CLIENT / "src" / "sparserm_client").glob("*.py")}
    assert {*sources, "sparserm_client/py.typed"} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert str(metadata.requires_python) == ">=3.10"
    assert [requirement.name for requirement in metadata.requires_dist or ()] == ["httpx"]


def test_only_httpx_is_installed_with_the_client(python: Path, tmp_path: Path) -> None:
    listed = json.loads(run(python, "-m", "pip", "list", "--format", "json", cwd=tmp_path))
    installed = {canonicalize_name(package["name"]) for package in listed} - INSTALLERS
    assert {"httpx", "sparserm-client"} <= installed
    assert installed <= {"sparserm-client", *HTTPX_PACKAGES}


def test_the_installed_client_scores_on_a_live_server(python: Path, address: str, tmp_path: Path) -> None:
    script = """
        import asyncio, json, sys
        from sparserm_client import AsyncClient, Client, Sample, trainers

        samples = [Sample("amber river", "quiet stone"), Sample("amber river", "glass")]

        async def score():
            async with AsyncClient(sys.argv[1], model="alpha") as client:
                return await client.rewards(samples)

        with Client(sys.argv[1], model="alpha") as client:
            blocking = [reward.reward for reward in client.rewards(samples)]
        awaited = [reward.reward for reward in asyncio.run(score())]
        trl = trainers.TrlReward(sys.argv[1], model="alpha")(["amber river"], ["glass"])
        print(json.dumps({"blocking": blocking, "awaited": awaited, "trl": trl}))
    """
    lines = "\n".join(line.removeprefix(" " * 8) for line in script.splitlines())
    rewards = json.loads(run(python, "-I", "-c", lines, address, cwd=tmp_path))
    samples = [Sample("amber river", "quiet stone"), Sample("amber river", "glass")]
    with Client(address, model="alpha") as client:
        expected = pytest.approx([reward.reward for reward in client.rewards(samples)], abs=1e-5)
    assert rewards["blocking"] == expected
    assert rewards["awaited"] == expected
    assert rewards["trl"] == pytest.approx(rewards["blocking"][1:], abs=1e-5)


def test_the_example_of_the_readme_runs(python: Path, address: str, tmp_path: Path) -> None:
    _, _, rest = (CLIENT / "README.md").read_text().partition("```python\n")
    example = rest.partition("```")[0]
    for published, here in (
        ("http://127.0.0.1:8000", address), ("truthfulness", "alpha"), ("safety", "beta"),
    ):  # fmt: skip
        assert published in example
        example = example.replace(published, here)
    output = run(python, "-I", "-c", example, cwd=tmp_path)
    assert output.count("FeatureShare(") == 3
    float(output.splitlines()[-1])


@pytest.mark.parametrize("path", sorted((CLIENT / "src").rglob("*.py")), ids=lambda path: path.name)
def test_sources_are_valid_in_the_oldest_supported_python(path: Path) -> None:
    ast.parse(path.read_text(), feature_version=(3, 10))


def test_names_of_the_standard_library_exist_in_the_oldest_supported_python(tmp_path: Path) -> None:
    mypy = [sys.executable, "-m", "mypy", "--python-version", "3.10", "--config-file="]
    options = ["--cache-dir", tmp_path / "cache", "--follow-imports", "skip"]
    run(*mypy, *options, CLIENT / "src" / "sparserm_client", cwd=CLIENT / "src")


@pytest.mark.heavy
@pytest.mark.timeout(900)
@pytest.mark.parametrize("trainer", TRAINERS)
def test_a_trainer_and_the_client_can_be_installed_together(
    trainer: str, wheel: Path, tmp_path: Path
) -> None:
    python = create_environment(tmp_path / "venv")
    run(python, "-m", "pip", "install", "--quiet", "--upgrade", "pip", cwd=tmp_path)
    requirements = [trainer]
    if trainer.startswith("openrlhf"):
        requirements = resolvable_requirements(python, trainer, tmp_path)
    report = tmp_path / "report.json"
    pip = [python, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--report", report]
    run(*pip, wheel, *requirements, cwd=tmp_path)
    install = json.loads(report.read_text())["install"]
    resolved = {canonicalize_name(item["metadata"]["name"]) for item in install}
    expected = {"httpx", "sparserm-client", Requirement(requirements[0]).name}
    assert set(map(canonicalize_name, expected)) <= resolved


def resolvable_requirements(python: Path, trainer: str, folder: Path) -> list[str]:
    """Return the requirements of a trainer but those in NEED_INSTALLED_TORCH, of which it must have one."""
    pip = [python, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder / "trainer"]
    run(*pip, trainer, cwd=folder)
    (path,) = (folder / "trainer").glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        required: list[Any] = read_metadata(archive).requires_dist or []
    mandatory = [item for item in required if item.marker is None or item.marker.evaluate({"extra": ""})]
    resolvable = [item for item in mandatory if item.name not in NEED_INSTALLED_TORCH]
    assert len(resolvable) < len(mandatory)
    return [str(item) for item in resolvable]


def read_metadata(archive: zipfile.ZipFile) -> Metadata:
    (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    return Metadata.from_email(archive.read(name), validate=False)
