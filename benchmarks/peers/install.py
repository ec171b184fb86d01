"""python -m benchmarks.peers.install [NAME ...]: a venv for each peer, with every version pinned.

What is installed already is left alone; what was cut short is begun again.
"""

import argparse
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from app.settings import Settings

REQUIREMENTS = Path(__file__).with_name("requirements")
MARK = "installed"


def main() -> None:
    """Install all of them, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"some of {', '.join(names())}; all of them by default")
    parser.add_argument("--folder", type=Path, default=folder(Settings()), help="where the venvs go")
    chosen = parser.parse_args()
    if unknown := set(chosen.names) - set(names()):
        parser.error(f"no requirements for {', '.join(sorted(unknown))}")
    for name in chosen.names or names():
        venv = chosen.folder / name
        if installed(venv, name):
            print(f"{name}: installed already")
        else:
            print(f"{name}: installing into {venv}", flush=True)
            install(venv, name)


def folder(settings: Settings) -> Path:
    """Where venvs, checkpoints, logs and results lie unless somebody says otherwise."""
    return settings.cache / "peers"


def names() -> list[str]:
    """Venvs there are requirements for."""
    return sorted(file.stem for file in REQUIREMENTS.glob("*.txt"))


def installed(venv: Path, name: str) -> bool:
    """Whether exactly these requirements were installed to the end."""
    mark = venv / MARK
    return mark.exists() and mark.read_text() == _digest(name)


def install(venv: Path, name: str) -> None:
    """What is listed, and what torch needs on this machine besides."""
    shutil.rmtree(venv, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    file = REQUIREMENTS / f"{name}.txt"
    torch = [line for line in file.read_text().splitlines() if line.startswith("torch==")]
    if torch:
        _pip(venv, *torch)
    _pip(venv, "--no-deps", "--requirement", str(file))
    (venv / MARK).write_text(_digest(name))


def _pip(venv: Path, *what: str) -> None:
    command = [str(venv / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*command, *what], check=True)


def _digest(name: str) -> str:
    return hashlib.sha256((REQUIREMENTS / f"{name}.txt").read_bytes()).hexdigest()


if __name__ == "__main__":
    main()
