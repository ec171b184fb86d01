"""The quickstart, typed word by word: its blocks in order, in one shell, on the real backbone."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from app.settings import Settings
from benchmarks.server import find_free_port
from tests.support.documentation import QUICKSTART, blocks
from tests.support.paths import ROOT

pytestmark = [pytest.mark.real, pytest.mark.heavy, pytest.mark.timeout(1800)]
SERVER_GOES_TOO = "trap 'kill $! 2>/dev/null; wait' EXIT\n"


def test_the_quickstart_works_word_by_word(tmp_path: Path) -> None:
    """Prints when each block began, in seconds; `pytest -s` shows it."""
    clone, port = checkout(tmp_path / "clone"), str(find_free_port())
    outside = {key: value for key, value in os.environ.items() if not key.startswith("SPARSERM_")}
    inside = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(clone),
        "SPARSERM_CACHE_DIR": str(fresh_cache(tmp_path / "cache")),
        "SPARSERM_PORT": port,
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script().replace("127.0.0.1:8000", f"127.0.0.1:{port}")],
        cwd=clone, env={**outside, **inside}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    print(done.stdout)  # noqa: T201 # when each block began, for `pytest -s`
    assert done.returncode == 0, done.stderr
    said = dict(part.split("\n", 1) for part in done.stdout.split("@ line ")[1:])
    answers = [json.loads(text) for text in said.values() if text.startswith("{\n")]
    compared, directions = answers
    assert compared["model"] == "mytask"
    assert 0 < compared["data"][0]["probability"] < 1
    assert len(compared["data"][0]["features"]) == len(directions["data"]) == 3
    assert any("mytask: reward" in text and "baseline" in text for text in said.values())
    assert '"reward"' in list(said.values())[-2]
    assert not (clone / "models" / "mytask").exists()
    assert "12 pairs of unseen prompts" in done.stderr


def script() -> str:
    """Every block that is not marked, each announced by its line and the time."""
    parts = [SERVER_GOES_TOO]
    for block in blocks(QUICKSTART):
        if block.runs:
            text = f"python - <<'END'\n{block.text}END\n" if block.language == "python" else block.text
            parts.append(f'echo "@ line {block.line} after $SECONDS s"\n{text}')
    return "".join(parts)


def checkout(folder: Path) -> Path:
    """What a clone would hold."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


def fresh_cache(folder: Path) -> Path:
    """Nothing but the backbones that `make setup` has fetched."""
    folder.mkdir()
    (folder / "backbones").symlink_to(Settings().cache / "backbones")
    return folder
