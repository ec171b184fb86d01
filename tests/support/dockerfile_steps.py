"""The Dockerfile without Docker: its steps, word for word, each stage in a tree that is `/` to them.

`python -m tests.support.dockerfile_steps FOLDER [TARGET]`, as root on Linux. What the base image would bring is lent by this
machine, read-only: /usr and what belongs to it, and this Python. Only apt-get is left out.
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

LENT = ("usr", "bin", "sbin", "lib", "lib64", "dev", "proc", sys.base_prefix.lstrip("/"))
PASSED = (
    "PIP_CERT",
    "PIP_FIND_LINKS",
    "PIP_INDEX_URL",
    "PIP_DEFAULT_TIMEOUT",
    "HTTPS_PROXY",
    "SSL_CERT_FILE",
)
ENTER = """
set -e
for place in {lent}; do mkdir -p {root}/$place && mount --rbind -o ro /$place {root}/$place; done
exec chroot --userspec={user} {root} /usr/bin/env -i {env} /bin/sh -c {command}
"""


@dataclass(frozen=True)
class Stage:
    """What a Dockerfile has said so far about one image."""

    root: Path
    env: dict[str, str] = field(
        default_factory=lambda: {"PATH": f"{sys.base_prefix}/bin:/usr/bin:/bin:/usr/sbin:/sbin"}
    )
    arguments: dict[str, str] = field(default_factory=dict)
    user: str = "root"
    folder: str = "/"
    entry: str = ""
    command: str = ""

    def enter(self, command: str, **env: str) -> list[str]:
        """The command line that runs a command in this image; its process is the command's own."""
        passed = {name: os.environ[name] for name in PASSED if name in os.environ}
        said = {"HOME": f"/home/{self.user}", **passed, **self.arguments, **self.env, **env}
        script = ENTER.format(
            lent=" ".join([*LENT, *_wheels()]),
            root=self.root,
            user=self.user,
            env=shlex.join(f"{name}={value}" for name, value in said.items()),
            command=shlex.quote(f"cd {self.folder} && {command}"),
        )
        return ["unshare", "--mount", "--propagation", "private", "bash", "-c", script]

    @property
    def start(self) -> str:
        """What a container of this image runs."""
        return f"exec {self.entry} {self.command}"


def build(dockerfile: Path, scratch: Path, target: str, given: Mapping[str, str]) -> Stage:
    """The image of a target, with build arguments."""
    stages: dict[str, Stage] = {}
    name = ""
    for word, rest in _instructions(dockerfile.read_text()):
        print(f"{word} {rest}", flush=True)
        if word == "FROM":
            if name == target:
                break
            base, _, name = rest.partition(" AS ")
            stages[name] = _begin(scratch / name, stages.get(base))
        elif stages:
            stages[name] = _step(stages[name], word, rest, stages, given)
    return stages[target]


def _instructions(text: str) -> Iterator[tuple[str, str]]:
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    for line in re.sub(r"\\\n\s*", " ", "\n".join(lines)).splitlines():
        if line.strip():
            word, _, rest = line.partition(" ")
            yield word, rest.strip()


def _wheels() -> list[str]:
    """Folders in which pip is told to look for wheels on this machine."""
    return [path.lstrip("/") for path in os.environ.get("PIP_FIND_LINKS", "").split() if Path(path).is_dir()]


def _begin(root: Path, base: Stage | None) -> Stage:
    """A tree with nothing in it, or what another stage has left."""
    if base:
        subprocess.run(["cp", "-al", base.root, root], check=True)  # folders keep their owners
        return replace(base, root=root, arguments={})
    for place in (*LENT, "tmp", "opt", "srv", "var/cache", "home"):
        (root / place).mkdir(parents=True)
    (root / "tmp").chmod(0o1777)
    shutil.copytree("/etc", root / "etc", symlinks=True)
    return Stage(root)


def _step(stage: Stage, word: str, rest: str, stages: Mapping[str, Stage], given: Mapping[str, str]) -> Stage:
    match word:
        case "ARG":
            name, _, usual = rest.partition("=")
            return replace(stage, arguments={**stage.arguments, name: given.get(name, usual)})
        case "ENV":
            said = dict(pair.split("=", 1) for pair in shlex.split(rest.replace("$PATH", stage.env["PATH"])))
            return replace(stage, env=stage.env | said)
        case "RUN":
            if rest.startswith("apt-get"):
                print("  left out", flush=True)
            else:
                subprocess.run(stage.enter(rest), check=True)
        case "COPY":
            _copy(stage, rest.split(), stages)
        case "WORKDIR":
            (stage.root / rest.lstrip("/")).mkdir(parents=True, exist_ok=True)
            return replace(stage, folder=rest)
        case "USER":
            return replace(stage, user=rest)
        case "ENTRYPOINT" | "CMD":
            spoken = shlex.join(re.findall(r'"([^"]*)"', rest))
            return replace(stage, entry=spoken) if word == "ENTRYPOINT" else replace(stage, command=spoken)
    return stage


def _copy(stage: Stage, words: list[str], stages: Mapping[str, Stage]) -> None:
    """Files of the context, less what .dockerignore names, or of another stage."""
    origin, ignored = ROOT, (ROOT / ".dockerignore").read_text().split()
    if words[0].startswith("--from="):
        origin, ignored, words = stages[words[0].partition("=")[2]].root, [], words[1:]
    *sources, out = words
    into = stage.root / (Path(stage.folder) / out).as_posix().lstrip("/")
    for name in sources:
        source = origin / name.lstrip("/")
        if source.is_dir():
            shutil.copytree(source, into, symlinks=True, dirs_exist_ok=True, ignore=_leaving(ignored))
        else:
            shutil.copy2(source, into / source.name)


def _leaving(patterns: list[str]) -> "shutil._Ignore":  # type: ignore[name-defined] # not exported by its stub
    names = [pattern.removeprefix("**/") for pattern in patterns if pattern.startswith("**/")]
    return lambda _folder, found: [one for one in found if any(fnmatch(one, name) for name in names)]


if __name__ == "__main__":
    place, target = Path(sys.argv[1]).resolve(), (sys.argv[2:] or ["cpu"])[0]
    made = build(ROOT / "Dockerfile", place, target, dict(word.split("=", 1) for word in sys.argv[3:]))
    print("start it with:", shlex.join(made.enter(made.start, SPARSERM_HOST="127.0.0.1")))
