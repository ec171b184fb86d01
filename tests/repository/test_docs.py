"""The documentation matches the code; `python -m tests.repository.test_docs` rewrites the generated pages."""

import ast
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
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
    CodeBlock,
    find_links,
    heading_anchors,
    parse_blocks,
    read_prose,
)
from tests.support.paths import CLIENT, CONTRIBUTING, ROOT
from tests.support.servers import run_server

BLOCKS = [block for page in PAGES for block in parse_blocks(page)]
RUN_BLOCKS = [block for block in BLOCKS if block.runs and block.page != QUICKSTART]


def render_settings() -> str:
    """The generated settings page."""
    rows = [
        f"| `SPARSERM_{name.upper()}` | `{field.default}` | {field.description} |"
        for name, field in Settings.model_fields.items()
    ]
    table = "\n".join(["| variable | default | meaning |", "|---|---|---|", *rows])
    return f"# Settings\n\nEvery setting is an environment variable.\n\n{table}\n"


def all_commands() -> list[str]:
    """All commands; a group comes before its subcommands."""

    def walk(command: Any, path: str) -> Iterator[str]:
        yield path
        for name, inner in getattr(command, "commands", {}).items():
            yield from walk(inner, f"{path} {name}".strip())

    return list(walk(typer.main.get_command(cli.app), ""))


def render_cli() -> str:
    """The generated command line page: the help text of every command."""
    environment = {"COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1", "TERMINAL_WIDTH": "100"}
    parts = []
    for command in all_commands():
        result = CliRunner().invoke(
            cli.app, [*command.split(), "--help"], prog_name="sparserm", env=environment
        )
        text = "\n".join(line.rstrip() for line in result.output.strip().splitlines())
        parts.append(f"## sparserm {command}".rstrip() + f"\n\n```text\n{text}\n```\n")
    return "# Command line\n\n" + "\n".join(parts)


def render_alignment_config() -> str:
    """The fields of an alignment config, as rows of a table."""
    rows = []
    for name, field in AlignmentConfig.model_fields.items():
        default = "required" if field.is_required() else f"`{json.dumps(field.default)}`"
        rows.append(f"| `{name}` | {default} | {field.description} |")
    return "\n".join(rows)


def render_package_tree() -> str:
    """Every package with the first line of its docstring and the names of its modules."""
    tops = (ROOT / "app", CLIENT, ROOT / "benchmarks")
    lines = []
    for package in (file.parent for top in tops for file in sorted(top.rglob("__init__.py"))):
        docstring = ast.get_docstring(ast.parse((package / "__init__.py").read_text())) or ""
        modules = " ".join(sorted(file.name for file in package.glob("*.py") if file.name != "__init__.py"))
        lines.append(f"{package.relative_to(ROOT).as_posix()}/")
        lines += [f"    {line}" for line in (docstring.splitlines()[0], *textwrap.wrap(modules, 120))]
    return "\n".join(["```text", *lines, "```"])


@pytest.fixture(scope="module")
def docs_settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Settings with a tiny model that has a shipped model's name."""
    settings = tiny.make_settings(tmp_path_factory.mktemp("docs"))
    backbone, text = loading.load_backbone(
        str(tiny.save_backbone(settings.models_dir.parent / "backbone")), None, settings, lambda *_: None
    )
    model = tiny.make_reward_model("truthfulness", backbone, text, layer=4, pooling=Pooling.MEAN, seed=0)
    save_bundle(model, settings.models_dir / "truthfulness")
    return settings


@pytest.fixture(scope="module")
def address(docs_settings: Settings) -> Iterator[str]:
    """The URL of a server with that model."""
    with run_server(loading.load_engine(docs_settings, lambda *_: None), docs_settings) as url:
        yield url


@pytest.fixture
def docs_folder(tmp_path: Path, docs_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the docs, in which `sparserm` runs with the tiny model."""
    (tmp_path / "docs").symlink_to(DOCS)
    program = tmp_path / "bin" / "sparserm"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\nexec {sys.executable} -c 'from app.cli import app; app()' \"$@\"\n")
    program.chmod(0o755)
    path = (str(program.parent), str(Path(sys.executable).parent), os.environ["PATH"])
    monkeypatch.setenv("PATH", os.pathsep.join(path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("SPARSERM_MODELS_DIR", str(docs_settings.models_dir))
    monkeypatch.setenv("SPARSERM_CACHE_DIR", str(docs_settings.cache_dir))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_every_block_is_run_or_gives_a_reason(block: CodeBlock) -> None:
    if block.language not in COMMANDS:
        assert block.language in {"text", "json", "toml"}
        assert block.reason is None
    elif block.reason is not None:
        assert block.reason.startswith(REASONS)
    else:
        assert block.page == QUICKSTART or block in RUN_BLOCKS


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed here")
@pytest.mark.parametrize("block", RUN_BLOCKS, ids=str)
def test_every_block_works(block: CodeBlock, address: str, docs_folder: Path) -> None:
    text = block.text.replace("http://127.0.0.1:8000", address)
    if all(line.startswith("sparserm ") and ">" not in line for line in text.splitlines()):
        for line in text.splitlines():
            run_in_process(line, docs_folder)
        return
    command = [sys.executable, "-c"] if block.language == "python" else ["bash", "-euo", "pipefail", "-c"]
    result = subprocess.run([*command, text], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    if result.stdout.startswith("{"):
        assert "error" not in json.loads(result.stdout)


def run_in_process(line: str, docs_folder: Path) -> None:
    """Run a command in this process; a new one would load torch again."""
    _, *words = shlex.split(line)
    result = CliRunner().invoke(cli.app, words)
    assert result.exit_code == 0, result.output
    if "--prompt" not in words:
        assert (docs_folder / words[2]).exists()


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed here")
def test_curl_of_the_readme_returns_five_features(address: str) -> None:
    script = next(block for block in RUN_BLOCKS if block.page.name == "README.md").text
    script = script.replace("http://127.0.0.1:8000", address)
    answer = json.loads(subprocess.run(["bash", "-c", script], capture_output=True, check=True).stdout)
    assert len(answer["data"][0]["features"]) == 5


def lines_not_run() -> list[str]:
    """The lines of blocks that no test runs."""
    return [line.split("#")[0] for block in BLOCKS if block.reason for line in block.text.splitlines()]


def test_commands_that_are_only_shown_exist() -> None:
    text = "\n".join([*lines_not_run(), *(read_prose(page) for page in PAGES)])
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    used_targets = set(re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE))
    modules = set(re.findall(r"python -m ([a-z0-9_.]+)", text)) - {"json.tool"}
    used_commands = set(re.findall(r"`sparserm ([a-z]+)", text))
    assert {"serve", "setup", "bench-peers"} <= used_targets <= targets
    assert {"benchmarks.peers", "benchmarks.offline_scoring"} <= modules
    assert all(importlib.util.find_spec(name) for name in modules)
    assert {"serve", "evaluate"} <= used_commands <= {command.split(" ")[0] for command in all_commands()}


def test_accuracies_in_the_readme_match_the_reports() -> None:
    text = (ROOT / "README.md").read_text()
    for folder in sorted(file.parent for file in (ROOT / "models").glob("*/manifest.json")):
        report = json.loads((folder / "report.json").read_text())
        [row] = re.findall(rf"^\| {folder.name} \| ([\d,]+) .*? \| (.*) \|$", text, re.MULTILINE)
        baselines = (
            "linear probe on the residual", "same head on random directions", "TF-IDF of the response",
            "longer response wins",
        )  # fmt: skip
        test = report["test"]
        accuracy = f"**{test['accuracy']:.3f}** [{test['ci_low']:.3f}, {test['ci_high']:.3f}]"
        cells = [accuracy, *(f"{report['baselines'][baseline]['accuracy']:.3f}" for baseline in baselines)]
        assert row == (f"{report['training']['pairs']:,}", " | ".join(cells).replace("0.", "."))


def test_comparisons_with_standard_rm_match_the_measurements() -> None:
    text = (DOCS / "results.md").read_text()
    measured = json.loads((DOCS / "standard_rm.json").read_text())
    assert f"models of version {measured['sparserm_version']}" in text
    rows = re.findall(r"^(\| ([\d,]+) of (\w+) \| .*\|)$", text, re.MULTILINE)
    assert {f"1,000 of {task}" for task in ("truthfulness", "safety", "redteam", "helpfulness")} <= {
        f"{size} of {task}" for _, size, task in rows
    }
    for row, size, task in rows:
        report = measured["reports"][task]
        assert row == render_comparison(report, task, int(size.replace(",", "")))


def render_comparison(report: dict[str, Any], task: str, size: int) -> str:
    """The row of the page of results that compares a model with a StandardRM."""
    row, trl_seconds = report["standard"]["sizes"][str(size)], report["stock"]["cpu_seconds"]
    sparse_s, standard_s = row["sparse"]["cpu_seconds"], row["standard"]["cpu_seconds"]
    ratio = standard_s / sparse_s
    accuracies = [
        f"{result['accuracy']:{sign}.3f} [{result['ci_low']:.3f}, {result['ci_high']:.3f}]"
        for result, sign in ((row["sparse"], ""), (row["standard"], ""), (row["lead"], "+"))
    ]
    trl_ratio = ratio * trl_seconds["stock"] / trl_seconds["siblings"]
    costs = (f"{sparse_s:.0f} s", f"{ratio:.0f} times", f"{trl_ratio:.0f} times")
    return f"| {size:,} of {task} | {' | '.join([*accuracies, *costs])} |".replace("0.", ".")


def test_settings_are_documented() -> None:
    assert (DOCS / "settings.md").read_text() == render_settings()


def test_alignment_config_is_documented() -> None:
    assert f"\n{render_alignment_config()}\n" in (DOCS / "alignment.md").read_text()


def test_commands_are_documented() -> None:
    assert {"serve", "train", "evaluate", "sae train", "models pull"} <= set(all_commands())
    assert (DOCS / "cli.md").read_text() == render_cli()


def test_openapi_document_is_current() -> None:
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
def test_link_targets_exist(page: Path) -> None:
    for link in find_links(page):
        if link.startswith("https://"):
            continue
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), link
        assert not anchor or anchor in heading_anchors(target), link


def test_the_package_tree_is_current() -> None:
    assert f"\n<!-- tree -->\n{render_package_tree()}\n<!-- /tree -->\n" in CONTRIBUTING.read_text()


def test_the_package_tree_names_every_module() -> None:
    text = CONTRIBUTING.read_text()
    for file in [*(ROOT / "app").rglob("*.py"), *CLIENT.rglob("*.py")]:
        assert file.name == "__init__.py" or file.name in text, file


if __name__ == "__main__":
    os.chdir(ROOT)
    (DOCS / "settings.md").write_text(render_settings())
    (DOCS / "cli.md").write_text(render_cli())
    alignment = (DOCS / "alignment.md").read_text()
    start = alignment.index("| `prompts` |")
    end = alignment.index("\n\n", start)
    (DOCS / "alignment.md").write_text(alignment[:start] + render_alignment_config() + alignment[end:])
    before, _, rest = CONTRIBUTING.read_text().partition("<!-- tree -->\n")
    after = rest.partition("<!-- /tree -->")[2]
    CONTRIBUTING.write_text(f"{before}<!-- tree -->\n{render_package_tree()}\n<!-- /tree -->{after}")
