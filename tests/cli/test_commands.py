"""Commands as a user types them, on the tiny backbone."""

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from app.cli import app
from app.cli.common import EXTRAS
from app.settings import Settings
from tests.data.test_public_datasets import RAW_ROWS, write_raw
from tests.support.paths import ROOT

OPTIONAL_MODULES = {module: extra for extra, packages in EXTRAS.items() for module in packages}
RUN_WITHOUT_EXTRAS = f"""
import sys
for module in {list(OPTIONAL_MODULES)!r}:
    sys.modules[module] = None  # importing it raises ModuleNotFoundError
from app.cli import app
app()
"""
# Runs each command in a process of its own, so that nothing is imported yet when a module is hidden.
RUN_WITHOUT_ONE_MODULE = """
import json, os, sys
from typer.testing import CliRunner
from app.cli import app
for module, words in json.loads(sys.argv[1]):
    read, write = os.pipe()
    if not os.fork():
        sys.modules[module] = None
        result = CliRunner().invoke(app, words)
        os.write(write, json.dumps([result.exit_code, " ".join(result.output.split())]).encode())
        os._exit(0)
    os.close(write)
    print(os.fdopen(read).read())
"""
COMMANDS_THAT_NEED_A_PACKAGE = [
    ("scipy", "scipy", "evaluate models/none pairs.jsonl"),
    ("sklearn", "scikit-learn", "verify models/none pairs.jsonl"),
    ("scipy", "scipy", "stress models/none pairs.jsonl"),
    ("pyarrow", "pyarrow", "compare pairs.parquet out.jsonl --model none"),
    ("matplotlib", "matplotlib", "train pairs.jsonl --task none"),
    ("matplotlib", "matplotlib", "refit none pairs.jsonl pairs.jsonl"),
    ("sae_lens", "sae-lens", "sae train chats.jsonl --out sae"),
    ("trl", "trl", "align --out run"),
    ("peft", "peft", "align --out run"),
    ("sae_lens", "sae-lens", "align --out run"),
    ("ray", "ray", "serve --ray"),
    ("ray", "ray", "score pairs.jsonl out.jsonl --model none --ray"),
]


@pytest.fixture
def data_dir(training_settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder with the training data; models made in a test go elsewhere."""
    monkeypatch.setenv("SPARSERM_CACHE_DIR", str(training_settings.cache_dir))
    monkeypatch.setenv("SPARSERM_MODELS_DIR", str(tmp_path / "models"))
    return training_settings.models_dir.parent


def sparserm(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def joined_output(result: Result) -> str:
    """Return the output without the line breaks of a narrow terminal."""
    return " ".join(result.output.split())


def test_a_bad_row_stops_training_unless_bad_rows_are_skipped(
    data_dir: Path, trained_sae: Path, tmp_path: Path
) -> None:
    lines = (data_dir / "pairs.jsonl").read_text().splitlines()
    (tmp_path / "bad.jsonl").write_text("\n".join([*lines[:60], '{"prompt": "x"', *lines[60:]]))
    words = (
        "train", tmp_path / "bad.jsonl", "--task", "kept", "--sae", trained_sae, "--k", "8", "--limit", "100",
    )  # fmt: skip
    stopped = sparserm(*words)
    assert stopped.exit_code == 1
    assert "bad.jsonl:61: not JSON" in joined_output(stopped)
    assert not (tmp_path / "models" / "kept").exists()
    skipped = sparserm(*words, "--bad", "skip")
    assert skipped.exit_code == 0
    assert "skipped: bad.jsonl:61" in joined_output(skipped)
    assert (tmp_path / "models" / "kept" / "SHA256SUMS").exists()
    evaluated = sparserm("evaluate", tmp_path / "models" / "kept", data_dir / "test.jsonl", "--json")
    results = json.loads(evaluated.stdout)
    assert results["n"] == 100
    assert 0 <= results["ci_low"] <= results["accuracy"] <= results["ci_high"] <= 1
    table = sparserm("evaluate", tmp_path / "models" / "kept", data_dir / "test.jsonl")
    assert "chosen is longer" in table.stdout
    card = json.loads(sparserm("models", "show", "kept").stdout)
    assert card["data"][0]["license"] == "not stated"
    assert 0 <= card["metrics"]["limitations_facts"] <= 1
    assert "## Limitations" in (tmp_path / "models" / "kept" / "report.md").read_text()
    assert "kept" in sparserm("models", "list").stdout


def test_missing_inputs_are_reported_in_one_line(data_dir: Path, tmp_path: Path) -> None:
    no_bundle = sparserm("evaluate", tmp_path / "nothing", data_dir / "test.jsonl")
    assert (no_bundle.exit_code, "not a bundle" in joined_output(no_bundle)) == (1, True)
    no_sae = sparserm("train", data_dir / "pairs.jsonl", "--task", "x", "--sae", tmp_path)
    assert (no_sae.exit_code, "holds no SAE" in joined_output(no_sae)) == (1, True)
    no_pairs = sparserm("train", tmp_path / "none.jsonl", "--task", "x")
    assert (no_pairs.exit_code, "no file" in joined_output(no_pairs)) == (1, True)


def test_public_datasets_are_written_as_pairs(tmp_path: Path) -> None:
    result = sparserm(
        "data", "rm-bench", tmp_path / "out", "--source", write_raw(tmp_path, RAW_ROWS["rm-bench"][0])
    )
    assert result.exit_code == 0
    assert "0 train, 9 test pairs" in joined_output(result)


def test_prints_the_version() -> None:
    result = sparserm("--version")
    assert (result.exit_code, result.stdout) == (0, f"sparserm {version('sparserm')}\n")


@pytest.fixture(scope="module")
def outputs_without_a_package(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str]]:
    """Exit code and output of each command when the module it needs is missing."""
    folder = tmp_path_factory.mktemp("extras")
    (folder / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    (folder / "pairs.parquet").write_bytes(b"PAR1")
    cases = [(module, command.split()) for module, _, command in COMMANDS_THAT_NEED_A_PACKAGE]
    completed = subprocess.run(
        [sys.executable, "-c", RUN_WITHOUT_ONE_MODULE, json.dumps(cases)],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    lines = completed.stdout.splitlines()
    return {
        f"{module} {command}": tuple(json.loads(line))
        for (module, _, command), line in zip(COMMANDS_THAT_NEED_A_PACKAGE, lines, strict=True)
    }


@pytest.mark.parametrize(("module", "package", "command"), COMMANDS_THAT_NEED_A_PACKAGE)
def test_a_missing_package_is_reported_with_its_extra(
    module: str, package: str, command: str, outputs_without_a_package: dict[str, tuple[int, str]]
) -> None:
    exit_code, output = outputs_without_a_package[f"{module} {command}"]
    extra = OPTIONAL_MODULES[module]
    expected = f"needs '{package}', which is not installed: pip install 'sparserm[{extra}]'"
    assert (exit_code, expected in output) == (1, True), output


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--version",), "sparserm "),
        (("models", "list"), "reward model"),
        (("keys", "new"), "score"),
        (("score", "--model", "none", "--prompt", "a", "--response", "b"), "'none'"),
        (("serve", "--help"), "--workers"),
        (("evaluate", "models/none", "pairs.jsonl"), "sparserm[train]"),
    ],
)
def test_commands_run_without_any_extra(words: tuple[str, ...], expected: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", RUN_WITHOUT_EXTRAS, *words], capture_output=True, text=True, check=False
    )
    assert expected in result.stdout + result.stderr
    assert "Traceback" not in result.stderr
