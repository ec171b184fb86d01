"""Documentation that cannot lie. `python -m tests.test_docs` rewrites the generated pages."""

import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from prometheus_client import CollectorRegistry
from typer.testing import CliRunner

from app import cli
from app.align.plan import Plan
from app.model import home
from app.model.bundle import save
from app.serve import openapi
from app.serve.metrics import Metrics
from app.settings import Settings
from app.types import ReadOut
from tests import tiny
from tests.serving import listening

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]


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
        parts.append(f"## sparserm {command}".rstrip() + f"\n\n```\n{text}\n```\n")
    return "# Command line\n\n" + "\n".join(parts)


def render_choices() -> str:
    """Every choice of an alignment plan, as a table's rows."""
    rows = []
    for name, field in Plan.model_fields.items():
        default = "required" if field.is_required() else f"`{json.dumps(field.default)}`"
        rows.append(f"| `{name}` | {default} | {field.description} |")
    return "\n".join(rows)


def shell_blocks() -> list[str]:
    return [
        block
        for page in (ROOT / "README.md", DOCS / "api.md")
        for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL)
    ]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A tiny model that bears the shipped one's name."""
    settings = tiny.settings(tmp_path_factory.mktemp("docs"))
    backbone, text = home.resident(
        str(tiny.backbone_folder(settings.models_dir.parent / "backbone")), None, settings, lambda *_: None
    )
    model = tiny.reward_model("truthfulness", backbone, text, layer=4, readout=ReadOut.MEAN, seed=0)
    save(model, settings.models_dir / "truthfulness")
    return settings


@pytest.fixture(scope="module")
def address(shop: Settings) -> Iterator[str]:
    """A tiny server whose model bears the shipped one's name."""
    with listening(home.engine(shop, lambda *_: None), shop) as found:
        yield found


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed here")
@pytest.mark.parametrize("block", shell_blocks())
def test_every_curl_in_the_docs_works(block: str, address: str) -> None:
    script = block.replace("http://127.0.0.1:8000", address)
    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "error" not in json.loads(result.stdout)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed here")
def test_the_readme_s_first_curl_answers_a_reward_with_five_features(address: str) -> None:
    script = shell_blocks()[0].replace("http://127.0.0.1:8000", address)
    answer = json.loads(subprocess.run(["bash", "-c", script], capture_output=True, check=True).stdout)
    assert len(answer["data"][0]["features"]) == 5


def bulk_commands() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", (DOCS / "bulk.md").read_text(), re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


@pytest.mark.parametrize("line", bulk_commands())
def test_every_command_on_data_sets_works(
    line: str, shop: Settings, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARSERM_MODELS_DIR", str(shop.models_dir))
    monkeypatch.setenv("SPARSERM_CACHE_DIR", str(shop.cache_dir))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").symlink_to(DOCS)
    program, *words = shlex.split(line.replace("http://127.0.0.1:8000", address))
    done = CliRunner().invoke(cli.app, words)
    assert (program, done.exit_code) == ("sparserm", 0), done.output
    if "--prompt" not in words:
        assert (tmp_path / words[2]).exists()


def test_settings_are_documented() -> None:
    assert (DOCS / "settings.md").read_text() == render_settings()


def test_every_choice_of_a_plan_is_documented() -> None:
    assert f"\n{render_choices()}\n" in (DOCS / "alignment.md").read_text()


def test_commands_are_documented() -> None:
    assert {"serve", "train", "evaluate", "sae train", "models pull"} <= set(commands())
    assert (DOCS / "cli.md").read_text() == render_cli()


def test_the_api_description_is_current() -> None:
    assert (DOCS / "openapi.json").read_text() == openapi.render()


def test_every_route_is_documented() -> None:
    text = (DOCS / "api.md").read_text()
    for path in json.loads(openapi.render())["paths"]:
        assert path in text, path


def test_every_metric_is_documented() -> None:
    registry = CollectorRegistry()
    Metrics(registry)
    text = (DOCS / "operations.md").read_text()
    for family in registry.collect():
        assert f"| `{family.name}` | {family.type} |" in text, family.name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert link.startswith("https://") or (page.parent / link).exists(), link


def test_the_readme_s_tree_is_true() -> None:
    text = (ROOT / "README.md").read_text()
    for file in (ROOT / "app").rglob("*.py"):
        assert file.name == "__init__.py" or file.name in text, file


if __name__ == "__main__":
    os.chdir(ROOT)
    (DOCS / "settings.md").write_text(render_settings())
    (DOCS / "cli.md").write_text(render_cli())
