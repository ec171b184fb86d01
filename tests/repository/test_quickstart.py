"""The quickstart as written: all code blocks in order, in one shell, with the real backbone."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from app.settings import Settings
from benchmarks.server import find_free_port
from tests.support.documentation import QUICKSTART, parse_blocks
from tests.support.paths import ROOT

pytestmark = [pytest.mark.real, pytest.mark.heavy, pytest.mark.timeout(1800)]
STOP_SERVER_AT_EXIT = "trap 'kill $! 2>/dev/null; wait' EXIT\n"


def test_quickstart_works_as_written(tmp_path: Path) -> None:
    """Prints when each block started, in seconds; `pytest -s` shows it."""
    clone, port = copy_checkout(tmp_path / "clone"), str(find_free_port())
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("SPARSERM_")}
    overrides = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(clone),
        "SPARSERM_CACHE_DIR": str(make_cache(tmp_path / "cache")),
        "SPARSERM_PORT": port,
    }
    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", build_script().replace("127.0.0.1:8000", f"127.0.0.1:{port}")],
        cwd=clone, env={**inherited, **overrides}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    print(result.stdout)  # noqa: T201 # when each block started, for `pytest -s`
    assert result.returncode == 0, result.stderr
    outputs = dict(part.split("\n", 1) for part in result.stdout.split("@ line ")[1:])
    answers = [json.loads(text) for text in outputs.values() if text.startswith("{\n")]
    comparison, directions = answers
    assert comparison["model"] == "mytask"
    assert 0 < comparison["data"][0]["probability"] < 1
    assert len(comparison["data"][0]["features"]) == len(directions["data"]) == 3
    assert any("mytask: reward" in text and "baseline" in text for text in outputs.values())
    assert '"reward"' in list(outputs.values())[-2]
    assert not (clone / "models" / "mytask").exists()
    assert "12 test pairs" in result.stderr


def build_script() -> str:
    """All blocks that are run; each prints its line number and the elapsed time first."""
    parts = [STOP_SERVER_AT_EXIT]
    for block in parse_blocks(QUICKSTART):
        if block.runs:
            text = f"python - <<'END'\n{block.text}END\n" if block.language == "python" else block.text
            parts.append(f'echo "@ line {block.line} after $SECONDS s"\n{text}')
    return "".join(parts)


def copy_checkout(folder: Path) -> Path:
    """Copy the files that a clone would contain."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name, follow_symlinks=False)
    return folder


def make_cache(folder: Path) -> Path:
    """A cache with only the backbones that `make setup` has downloaded."""
    folder.mkdir()
    (folder / "backbones").symlink_to(Settings().cache / "backbones")
    return folder
