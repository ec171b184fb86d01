"""Documentation that cannot lie. `python -m tests.repository.test_docs` rewrites the generated pages."""

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from prometheus_client import CollectorRegistry
from typer.testing import CliRunner

from app import cli
from app.align.config import AlignmentConfig
from app.reward import loading
from app.reward.bundle import save_bundle
from app.serve.api import openapi
from app.serve.metrics import Metrics
from app.settings import Settings
from app.types import Pooling
from tests.support import tiny
from tests.support.documentation import (
    COMMANDS,
    DOCS,
    PAGES,
    QUICKSTART,
    REASONS,
    Block,
    anchors,
    blocks,
    links,
    prose,
)
from tests.support.paths import ROOT
from tests.support.servers import run_server

BLOCKS = [block for page in PAGES for block in blocks(page)]
HERE = [block for block in BLOCKS if block.runs and block.page != QUICKSTART]


def render_settings() -> str:
    """The settings page."""
    rows = [
        f"| `SPARSERM_{name.upper()}` | `{field.default}` | {field.description} |"
        for name, field in Settings.model_fields.items()
    ]
    table = "\n".join(["| variable | default | meaning |", "|---|---|---|", *rows])
    return f"# Settings\n\nEvery setting is an environment variable.\n\n{table}\n"


def commands() -> list[str]:
    """Every command there is, groups before what is in them."""

    def walk(command: Any, path: str) -> Iterator[str]:
        yield path
        for name, inner in getattr(command, "commands", {}).items():
            yield from walk(inner, f"{path} {name}".strip())

    return list(walk(typer.main.get_command(cli.app), ""))


def render_cli() -> str:
    """The command line page: the real help texts."""
    plain = {"COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1", "TERMINAL_WIDTH": "100"}
    parts = []
    for command in commands():
        shown = CliRunner().invoke(cli.app, [*command.split(), "--help"], prog_name="sparserm", env=plain)
        text = "\n".join(line.rstrip() for line in shown.output.strip().splitlines())
        parts.append(f"## sparserm {command}".rstrip() + f"\n\n```text\n{text}\n```\n")
    return "# Command line\n\n" + "\n".join(parts)


def render_choices() -> str:
    """Every choice of an alignment plan, as a table's rows."""
    rows = []
    for name, field in AlignmentConfig.model_fields.items():
        default = "required" if field.is_required() else f"`{json.dumps(field.default)}`"
        rows.append(f"| `{name}` | {default} | {field.description} |")
    return "\n".join(rows)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A tiny model that bears the shipped one's name."""
    settings = tiny.make_settings(tmp_path_factory.mktemp("docs"))
    backbone, text = loading.load_backbone(
        str(tiny.save_backbone(settings.models_dir.parent / "backbone")), None, settings, lambda *_: None
    )
    model = tiny.make_reward_model("truthfulness", backbone, text, layer=4, pooling=Pooling.MEAN, seed=0)
    save_bundle(model, settings.models_dir / "truthfulness")
    return settings


@pytest.fixture(scope="module")
def address(shop: Settings) -> Iterator[str]:
    """A tiny server whose model bears the shipped one's name."""
    with run_server(loading.load_engine(shop, lambda *_: None), shop) as found:
        yield found


@pytest.fixture
def place(tmp_path: Path, shop: Settings, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the docs in it, where `sparserm` is found and serves the tiny model."""
    (tmp_path / "docs").symlink_to(DOCS)
    program = tmp_path / "bin" / "sparserm"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\nexec {sys.executable} -c 'from app.cli import app; app()' \"$@\"\n")
    program.chmod(0o755)
    found = (str(program.parent), str(Path(sys.executable).parent), os.environ["PATH"])
    monkeypatch.setenv("PATH", os.pathsep.join(found))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("SPARSERM_MODELS_DIR", str(shop.models_dir))
    monkeypatch.setenv("SPARSERM_CACHE_DIR", str(shop.cache_dir))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_every_block_is_run_or_says_why_not(block: Block) -> None:
    if block.language not in COMMANDS:
        assert block.language in {"text", "json", "toml"}
        assert block.reason is None
    elif block.reason is not None:
        assert block.reason.startswith(REASONS)
    else:
        assert block.page == QUICKSTART or block in HERE


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed here")
@pytest.mark.parametrize("block", HERE, ids=str)
def test_every_block_works(block: Block, address: str, place: Path) -> None:
    text = block.text.replace("http://127.0.0.1:8000", address)
    if all(line.startswith("sparserm ") and ">" not in line for line in text.splitlines()):
        for line in text.splitlines():
            run_here(line, place)
        return
    command = [sys.executable, "-c"] if block.language == "python" else ["bash", "-euo", "pipefail", "-c"]
    result = subprocess.run([*command, text], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    if result.stdout.startswith("{"):
        assert "error" not in json.loads(result.stdout)


def run_here(line: str, place: Path) -> None:
    """A command without a process of its own, which would load torch again."""
    _, *words = shlex.split(line)
    done = CliRunner().invoke(cli.app, words)
    assert done.exit_code == 0, done.output
    if "--prompt" not in words:
        assert (place / words[2]).exists()


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed here")
def test_the_readme_s_curl_answers_a_comparison_with_five_features(address: str) -> None:
    script = next(block for block in HERE if block.page.name == "README.md").text
    script = script.replace("http://127.0.0.1:8000", address)
    answer = json.loads(subprocess.run(["bash", "-c", script], capture_output=True, check=True).stdout)
    assert len(answer["data"][0]["features"]) == 5


def lines_not_run() -> list[str]:
    return [line.split("#")[0] for block in BLOCKS if block.reason for line in block.text.splitlines()]


def test_commands_that_are_only_shown_exist() -> None:
    said = "\n".join([*lines_not_run(), *(prose(page) for page in PAGES if page.name != "log.md")])
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    made = set(re.findall(r"(?:^|`)make ([a-z-]+)", said, re.MULTILINE))
    modules = set(re.findall(r"python -m ([a-z_.]+)", said)) - {"json.tool"}
    verbs = set(re.findall(r"`sparserm ([a-z]+)", said))
    assert {"serve", "setup", "bench-peers"} <= made <= targets
    assert {"benchmarks.peers", "benchmarks.offline_scoring"} <= modules
    assert all(importlib.util.find_spec(name) for name in modules)
    assert {"serve", "evaluate"} <= verbs <= {command.split(" ")[0] for command in commands()}


def test_readme_s_accuracies_are_those_of_the_reports() -> None:
    text = (ROOT / "README.md").read_text()
    for folder in sorted(file.parent for file in (ROOT / "models").glob("*/manifest.json")):
        found = json.loads((folder / "report.json").read_text())
        [row] = re.findall(rf"^\| {folder.name} \| ([\d,]+) .*? \| (.*) \|$", text, re.MULTILINE)
        rivals = ("linear probe on the residual", "same head on random directions", "TF-IDF of the response",
                  "longer response wins")  # fmt: skip
        test = found["test"]
        ours = f"**{test['accuracy']:.3f}** [{test['ci_low']:.3f}, {test['ci_high']:.3f}]"
        cells = [ours, *(f"{found['baselines'][rival]['accuracy']:.3f}" for rival in rivals)]
        assert row == (f"{found['training']['pairs']:,}", " | ".join(cells).replace("0.", "."))


def test_readme_s_duels_are_those_of_the_reports() -> None:
    text = (ROOT / "README.md").read_text()
    rows = re.findall(r"^(\| ([\d,]+) of (\w+) \| .*\|)$", text, re.MULTILINE)
    assert {f"1,000 of {task}" for task in ("truthfulness", "safety", "redteam", "helpfulness")} <= {
        f"{size} of {task}" for _, size, task in rows
    }
    for row, size, task in rows:
        found = json.loads((ROOT / "models" / task / "report.json").read_text())
        assert row == duelled(found, task, int(size.replace(",", "")))


def duelled(found: dict[str, Any], task: str, size: int) -> str:
    """The row of a duel in the README."""
    row, stock = found["standard"]["sizes"][str(size)], found["stock"]["cpu_seconds"]
    ours, theirs = row["sparse"]["cpu_seconds"], row["standard"]["cpu_seconds"]
    times = theirs / ours
    accuracies = [
        f"{one['accuracy']:{sign}.3f} [{one['ci_low']:.3f}, {one['ci_high']:.3f}]"
        for one, sign in ((row["sparse"], ""), (row["standard"], ""), (row["lead"], "+"))
    ]
    shipped = times * stock["stock"] / stock["siblings"]
    costs = (f"{ours:.0f} s", f"{times:.0f} times", f"{shipped:.0f} times")
    return f"| {size:,} of {task} | {' | '.join([*accuracies, *costs])} |".replace("0.", ".")


def test_settings_are_documented() -> None:
    assert (DOCS / "settings.md").read_text() == render_settings()


def test_every_choice_of_a_plan_is_documented() -> None:
    assert f"\n{render_choices()}\n" in (DOCS / "alignment.md").read_text()


def test_commands_are_documented() -> None:
    assert {"serve", "train", "evaluate", "sae train", "models pull"} <= set(commands())
    assert (DOCS / "cli.md").read_text() == render_cli()


def test_the_api_description_is_current() -> None:
    assert (DOCS / "openapi.json").read_text() == openapi.render_openapi()


def test_every_route_is_documented() -> None:
    text = (DOCS / "api.md").read_text()
    for path in json.loads(openapi.render_openapi())["paths"]:
        assert path in text, path


def test_every_metric_is_documented() -> None:
    registry = CollectorRegistry()
    Metrics(registry)
    text = (DOCS / "operations.md").read_text()
    for family in registry.collect():
        assert f"| `{family.name}` | {family.type} |" in text, family.name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        if link.startswith("https://"):
            continue
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_the_readme_s_tree_is_true() -> None:
    text = (ROOT / "README.md").read_text()
    for file in (ROOT / "app").rglob("*.py"):
        assert file.name == "__init__.py" or file.name in text, file


if __name__ == "__main__":
    os.chdir(ROOT)
    (DOCS / "settings.md").write_text(render_settings())
    (DOCS / "cli.md").write_text(render_cli())
