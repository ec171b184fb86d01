"""Creates a venv for each peer, with pinned versions: python -m benchmarks.peers.install [NAME ...].

Venvs that are up to date are kept; incomplete ones are created again.
"""

import argparse
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from app.settings import Settings

REQUIREMENTS = Path(__file__).with_name("requirements")
# A file in each venv with the digest of the installed requirements.
MARKER = "installed"


def main() -> None:
    """Install the named venvs, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"choose from {', '.join(venv_names())}; default: all")
    parser.add_argument("--folder", type=Path, default=default_folder(Settings()), help="folder of the venvs")
    args = parser.parse_args()
    if unknown := set(args.names) - set(venv_names()):
        parser.error(f"no requirements for {', '.join(sorted(unknown))}")
    for name in args.names or venv_names():
        venv = args.folder / name
        if is_installed(venv, name):
            print(f"{name}: already installed")
        else:
            print(f"{name}: installing into {venv}", flush=True)
            install(venv, name)


def default_folder(settings: Settings) -> Path:
    """The default folder of venvs, checkpoints, logs and results."""
    return settings.cache / "peers"


def venv_names() -> list[str]:
    """The names of all venvs: one requirements file each."""
    return sorted(file.stem for file in REQUIREMENTS.glob("*.txt"))


def is_installed(venv: Path, name: str) -> bool:
    """Whether the installation of exactly these requirements was completed."""
    marker = venv / MARKER
    return marker.exists() and marker.read_text() == _digest(name)


def install(venv: Path, name: str) -> None:
    """Install the listed versions, and the dependencies of torch on this machine, which are not listed."""
    shutil.rmtree(venv, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    file = REQUIREMENTS / f"{name}.txt"
    torch = [line for line in file.read_text().splitlines() if line.startswith("torch==")]
    if torch:
        _pip(venv, *torch)
    _pip(venv, "--no-deps", "--requirement", str(file))
    (venv / MARKER).write_text(_digest(name))


def _pip(venv: Path, *arguments: str) -> None:
    command = [str(venv / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*command, *arguments], check=True)


def _digest(name: str) -> str:
    return hashlib.sha256((REQUIREMENTS / f"{name}.txt").read_bytes()).hexdigest()


if __name__ == "__main__":
    main()
