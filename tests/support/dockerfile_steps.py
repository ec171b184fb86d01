"""Builds the image without Docker: runs the Dockerfile's steps, with the file tree of their stage as `/`.

`python -m tests.support.dockerfile_steps FOLDER [TARGET]`, as root on Linux. This machine provides what the
base image would: /usr and related folders, and this Python, mounted read-only. Only apt-get steps are
skipped.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path

from tests.support.paths import ROOT

HOST_PATHS = ("usr", "bin", "sbin", "lib", "lib64", "dev", "proc", sys.base_prefix.lstrip("/"))
PASSED_VARIABLES = (
    "PIP_CERT",
    "PIP_FIND_LINKS",
    "PIP_INDEX_URL",
    "PIP_DEFAULT_TIMEOUT",
    "HTTPS_PROXY",
    "SSL_CERT_FILE",
)
ENTER_SCRIPT = """
set -e
for path in {host_paths}; do mkdir -p {root}/$path && mount --rbind -o ro /$path {root}/$path; done
exec chroot --userspec={user} {root} /usr/bin/env -i {env} /bin/sh -c {command}
"""


@dataclass(frozen=True)
class ImageStage:
    """The state of one image after the Dockerfile's steps so far; `root` is its file tree."""

    root: Path
    env: dict[str, str] = field(
        default_factory=lambda: {"PATH": f"{sys.base_prefix}/bin:/usr/bin:/bin:/usr/sbin:/sbin"}
    )
    arguments: dict[str, str] = field(default_factory=dict)
    user: str = "root"
    folder: str = "/"
    entrypoint: str = ""
    command: str = ""

    def command_line(self, command: str, **env: str) -> list[str]:
        """The command line that runs a command in this image, as its own process."""
        passed = {name: os.environ[name] for name in PASSED_VARIABLES if name in os.environ}
        variables = {"HOME": f"/home/{self.user}", **passed, **self.arguments, **self.env, **env}
        script = ENTER_SCRIPT.format(
            host_paths=" ".join([*HOST_PATHS, *_wheel_folders()]),
            root=self.root,
            user=self.user,
            env=shlex.join(f"{name}={value}" for name, value in variables.items()),
            command=shlex.quote(f"cd {self.folder} && {command}"),
        )
        return ["unshare", "--mount", "--propagation", "private", "bash", "-c", script]

    @property
    def start_command(self) -> str:
        """The command that a container of this image runs."""
        return f"exec {self.entrypoint} {self.command}"


def build_image(dockerfile: Path, scratch: Path, target: str, arguments: Mapping[str, str]) -> ImageStage:
    """Run the steps of a target and return its stage; `arguments` are the build arguments."""
    stages: dict[str, ImageStage] = {}
    name = ""
    for word, rest in _instructions(dockerfile.read_text()):
        print(f"{word} {rest}", flush=True)
        if word == "FROM":
            if name == target:
                break
            base, _, name = rest.partition(" AS ")
            stages[name] = _start_stage(scratch / name, stages.get(base))
        elif stages:
            stages[name] = _step(stages[name], word, rest, stages, arguments)
    return stages[target]


def _instructions(text: str) -> Iterator[tuple[str, str]]:
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    for line in re.sub(r"\\\n\s*", " ", "\n".join(lines)).splitlines():
        if line.strip():
            word, _, rest = line.partition(" ")
            yield word, rest.strip()


def _wheel_folders() -> list[str]:
    """Folders of this machine in which pip looks for wheels (PIP_FIND_LINKS)."""
    return [path.lstrip("/") for path in os.environ.get("PIP_FIND_LINKS", "").split() if Path(path).is_dir()]


def _start_stage(root: Path, base: ImageStage | None) -> ImageStage:
    """A stage with an empty file tree, or with a copy of another stage's tree."""
    if base:
        subprocess.run(["cp", "-al", base.root, root], check=True)  # -a keeps the owners of folders
        return replace(base, root=root, arguments={})
    for path in (*HOST_PATHS, "tmp", "opt", "srv", "var/cache", "home"):
        (root / path).mkdir(parents=True)
    (root / "tmp").chmod(0o1777)
    shutil.copytree("/etc", root / "etc", symlinks=True)
    return ImageStage(root)


def _step(
    stage: ImageStage, word: str, rest: str, stages: Mapping[str, ImageStage], arguments: Mapping[str, str]
) -> ImageStage:
    match word:
        case "ARG":
            name, _, default = rest.partition("=")
            return replace(stage, arguments={**stage.arguments, name: arguments.get(name, default)})
        case "ENV":
            variables = dict(
                pair.split("=", 1) for pair in shlex.split(rest.replace("$PATH", stage.env["PATH"]))
            )
            return replace(stage, env=stage.env | variables)
        case "RUN":
            if rest.startswith("apt-get"):
                print("  skipped", flush=True)
            else:
                subprocess.run(stage.command_line(rest), check=True)
        case "COPY":
            _copy(stage, rest.split(), stages)
        case "WORKDIR":
            (stage.root / rest.lstrip("/")).mkdir(parents=True, exist_ok=True)
            return replace(stage, folder=rest)
        case "USER":
            return replace(stage, user=rest)
        case "ENTRYPOINT" | "CMD":
            words = shlex.join(re.findall(r'"([^"]*)"', rest))
            return replace(stage, entrypoint=words) if word == "ENTRYPOINT" else replace(stage, command=words)
    return stage


def _copy(stage: ImageStage, words: list[str], stages: Mapping[str, ImageStage]) -> None:
    """Copy files of the build context, except those in .dockerignore, or of another stage."""
    origin, ignored = ROOT, (ROOT / ".dockerignore").read_text().split()
    if words[0].startswith("--from="):
        origin, ignored, words = stages[words[0].partition("=")[2]].root, [], words[1:]
    *sources, out = words
    target = stage.root / (Path(stage.folder) / out).as_posix().lstrip("/")
    for name in sources:
        source = origin / name.lstrip("/")
        if source.is_dir():
            shutil.copytree(
                source, target, symlinks=True, dirs_exist_ok=True, ignore=_ignore_function(ignored)
            )
        else:
            shutil.copy2(source, target / source.name)


def _ignore_function(patterns: list[str]) -> "shutil._Ignore":  # type: ignore[name-defined] # not exported by its stub
    names = [pattern.removeprefix("**/") for pattern in patterns if pattern.startswith("**/")]
    return lambda _folder, entries: [
        entry for entry in entries if any(fnmatch(entry, name) for name in names)
    ]


if __name__ == "__main__":
    folder, target = Path(sys.argv[1]).resolve(), (sys.argv[2:] or ["cpu"])[0]
    image = build_image(
        ROOT / "Dockerfile", folder, target, dict(word.split("=", 1) for word in sys.argv[3:])
    )
    print("start it with:", shlex.join(image.command_line(image.start_command, SPARSERM_HOST="127.0.0.1")))
