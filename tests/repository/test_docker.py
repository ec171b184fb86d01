"""The container files, as far as they can be checked without Docker."""

import fnmatch
import re
import shlex
import subprocess
import sys
import tomllib
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from tests.support.paths import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CLIENT: dict[str, Any] = tomllib.loads((ROOT / "client" / "pyproject.toml").read_text())["project"]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVERS = ("cpu", "gpu", "ray")


def instructions(name: str) -> list[str]:
    return [line.split(maxsplit=1)[1] for line in DOCKERFILE.splitlines() if line.startswith(f"{name} ")]


def pins() -> dict[str, Version]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {r.name.lower().replace("_", "-"): Version(str(r.specifier).removeprefix("==")) for r in pinned}


def dependencies(project: dict[str, Any]) -> list[str]:
    """A project's dependencies, except the client, which is installed from this repository."""
    names: list[str] = project["dependencies"]
    return [name for name in names if Requirement(name).name != CLIENT["name"]]


def requirements() -> list[str]:
    """What the pip lines install; a local project is replaced by its dependencies."""
    local = {".": dependencies(PROJECT), "./client": dependencies(CLIENT)}
    names: list[str] = []
    for command in instructions("RUN"):
        for part in re.split("&&|;", command):
            words = [w for w in shlex.split(re.sub(r"\$\{TORCH_INDEX:[^}]*\}\}|\$\{EXTRAS\}", "", part)) if w]
            if words[:2] == ["pip", "install"]:
                arguments = [w for w in words[2:] if not w.startswith("-") and w != "constraints.txt"]
                names += [d for w in arguments for d in local.get(w, [w])]
    return names


def test_every_copied_file_exists_and_is_not_ignored() -> None:
    ignored = (ROOT / ".dockerignore").read_text().split()
    for line in instructions("COPY"):
        if "--from" not in line:
            for source in line.split()[:-1]:
                assert (ROOT / source).exists(), source
                assert not any(fnmatch.fnmatch(source, pattern) for pattern in ignored), source


@pytest.mark.parametrize("requirement", requirements())
def test_every_installed_requirement_is_pinned(requirement: str) -> None:
    parsed = Requirement(requirement)
    assert pins()[parsed.name.lower()] in parsed.specifier


def test_pip_lines_use_the_constraints() -> None:
    lines = [line for line in instructions("RUN") if "pip install" in line]
    assert len(lines) == 2
    assert all("-c constraints.txt" in line for line in lines)


def test_pins_are_consistent() -> None:
    """pip's own resolver accepts the constraints for everything the project asks for."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "-c", "constraints.txt"]
    result = subprocess.run(
        [*command, "./client", *dependencies(PROJECT)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


def test_entry_point_is_the_command_and_its_user_has_no_privileges() -> None:
    assert instructions("ENTRYPOINT") == ['["sparserm"]']
    assert instructions("CMD") == ['["serve"]']
    assert "sparserm" in PROJECT["scripts"]
    assert instructions("USER") == ["sparserm", "root", "sparserm"]
    assert "/ready" in DOCKERFILE[DOCKERFILE.index("HEALTHCHECK") :]


def test_both_devices_are_built_and_the_base_is_pinned() -> None:
    arguments = dict(line.split("=") for line in instructions("ARG"))
    stages = [line.split(" AS ") for line in instructions("FROM")]
    builds = [COMPOSE["services"][name]["build"] for name in SERVERS]
    assert [build["target"] for build in builds] == ["cpu", "cuda", "cpu"]
    assert {build["target"] for build in builds} <= {name for _, name in stages}
    assert all(set(build["args"]) <= set(arguments) for build in builds)
    assert {base for base, _ in stages} == {"python:${PYTHON}", "server"}
    assert re.fullmatch(r"3\.11\.\d+-slim-\w+", arguments["PYTHON"])


def test_caches_are_in_the_writable_volume() -> None:
    """Containers are read-only except for the volume; compiled kernels are executed from it."""
    text = " ".join(instructions("ENV"))
    (volume,) = instructions("VOLUME")
    caches = re.findall(r"(?:\w+_CACHE_DIR|HF_HOME)=(/\S+)", text)
    assert len(caches) == 4, caches
    assert all(cache.startswith(volume) for cache in caches)
    for name in SERVERS:
        assert f"cache:{volume}" in COMPOSE["services"][name]["volumes"]


def test_ports_stay_on_loopback_and_mounts_exist() -> None:
    for name, service in COMPOSE["services"].items():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"]), name
        for mount in service["volumes"]:
            source = mount.split(":")[0]
            assert source in COMPOSE["volumes"] or (ROOT / source).exists(), source


def test_server_is_read_only_and_has_no_capabilities() -> None:
    for name in SERVERS:
        service = COMPOSE["services"][name]
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]


def test_compose_accepts_the_file() -> None:
    compose = ["docker", "compose"]
    try:
        usable = subprocess.run([*compose, "version"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        usable = False
    if not usable:
        pytest.skip("docker's compose plugin is not installed here")
    profiles = [word for name in (*SERVERS, "metrics") for word in ("--profile", name)]
    result = subprocess.run(
        [*compose, "-f", str(ROOT / "docker-compose.yml"), *profiles, "config", "-q"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
