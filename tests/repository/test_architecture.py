"""The structure of the code base: import contracts, light modules, sizes, names, and mirrored tests."""

import ast
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.settings import Settings
from tests.repository.unmirrored import UNMIRRORED
from tests.support.paths import ROOT

CLIENT = ROOT / "client" / "src" / "sparserm_client"
SOURCES = sorted([*(ROOT / "app").rglob("*.py"), *CLIENT.rglob("*.py")])
SERVER_FOLDERS = ("backbone", "data", "reward", "serve", "web")
SERVER_SOURCES = [file for file in SOURCES if file.parts[len(ROOT.parts) + 1] in SERVER_FOLDERS]
MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 40
MAX_MEDIAN_FUNCTION_LINES = 10
MAX_P90_FUNCTION_LINES = 20
MAX_MODULES_IN_A_FOLDER = 12
LIGHT_MODULES = (
    "types", "errors", "settings", "data.pairs", "serve.batching.batcher", "serve.metrics", "offline.run",
    "cli",
)  # fmt: skip
# Libraries of training, evaluation and Ray, which the server must not import: they cost memory and start-up
# time. transformers imports scipy if it is installed, so what transformers loads does not count.
NOT_IMPORTED_BY_THE_SERVER = (
    "sae_lens", "scipy", "sklearn", "matplotlib", "datasets", "pyarrow", "trl", "ray",
)  # fmt: skip
# Words of an older vocabulary that engineers of the field would not understand.
RETIRED_WORDS = frozenset({
    "house", "floor", "room", "door", "gate", "lane", "lanes", "team", "teams", "shelf", "foundry", "studio",
    "drill", "drills", "duel", "coach", "vigil", "chronicle", "voice", "stranger", "veil", "sight", "recall",
    "heap", "pace", "gauge", "climb", "judge", "foreign", "bodies", "asking", "front", "sums", "ledger",
    "sheets", "stages", "resident", "bench", "nursery", "chorus", "workshop", "gallery", "rehearsal",
})  # fmt: skip
# Retired as names of modules only.
RETIRED_MODULES = frozenset({"answers", "backlog"})
# Names that contain a retired word in the sense that the field gives it.
ALLOWED_NAMES = {
    "gate_up_proj": "transformers' name of the fused gate and up projections",
    "recall": "precision and recall of an imported SAE's firing decisions",
    "RM_BENCH_STYLES": "the data set RM-Bench",
    "rm_bench": "the benchmark RM-Bench",
    "RewardBenchPipeline": "the pipeline that the package rewardbench calls",
    "STAGES": "the values of the label `stage` of sparserm_stage_seconds",
}


def relative(path: Path) -> str:
    """A path as it is written in this file."""
    return path.relative_to(ROOT).as_posix()


def mirror_of(file: Path) -> Path:
    """app/serve/drift.py → tests/serve/test_drift.py, _client.py → tests/client/test_client.py."""
    if file.is_relative_to(CLIENT):
        folder, inner = ROOT / "tests" / "client", file.relative_to(CLIENT)
    else:
        folder, inner = ROOT / "tests", file.relative_to(ROOT / "app")
    return folder / inner.parent / f"test_{inner.stem.removeprefix('_')}.py"


def imported_packages(tree: ast.Module) -> Iterator[str]:
    """The packages that a module imports when it is loaded; imports inside functions do not count."""
    for node in tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]


def functions_in(tree: ast.AST) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    """All functions and methods, nested ones too."""
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def length_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """The lines of a function, without its decorators."""
    return (function.end_lineno or function.lineno) - function.lineno + 1


def names_in(tree: ast.Module) -> Iterator[str]:
    """The names of classes, functions, methods, module constants and class fields."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name
        if isinstance(node, ast.Module | ast.ClassDef):
            for statement in node.body:
                yield from assigned_names(statement)


def assigned_names(statement: ast.stmt) -> Iterator[str]:
    """The names that an assignment statement binds."""
    if isinstance(statement, ast.Assign):
        targets: list[ast.expr] = statement.targets
    elif isinstance(statement, ast.AnnAssign):
        targets = [statement.target]
    else:
        return
    for target in targets:
        for node in ast.walk(target):
            if isinstance(node, ast.Name):
                yield node.id


def words_in(name: str) -> set[str]:
    """The words of a name, split at underscores, digits and camel case."""
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)}


def test_import_contracts_hold() -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("module", LIGHT_MODULES)
def test_light_modules_never_load_torch(module: str) -> None:
    code = f"import sys, app.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_serving_imports_no_library_of_training_or_ray() -> None:
    code = (
        "import sys; from transformers import AutoTokenizer, PreTrainedModel; before = set(sys.modules); "
        "import app.serve.application, app.reward.loading; "
        f"print(*({set(NOT_IMPORTED_BY_THE_SERVER)} & (set(sys.modules) - before)))"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


@pytest.mark.parametrize("file", SERVER_SOURCES, ids=relative)
def test_server_modules_import_no_library_of_training(file: Path) -> None:
    imported = set(imported_packages(ast.parse(file.read_text())))
    allowed = {"ray"} if file.is_relative_to(ROOT / "app" / "serve" / "ray") else set()
    assert imported & set(NOT_IMPORTED_BY_THE_SERVER) <= allowed


@pytest.mark.parametrize("file", SOURCES, ids=relative)
def test_files_and_functions_are_short(file: Path) -> None:
    text = file.read_text()
    assert len(text.splitlines()) <= MAX_FILE_LINES
    too_long = {
        function.name: length_of(function)
        for function in functions_in(ast.parse(text))
        if length_of(function) > MAX_FUNCTION_LINES
    }
    assert too_long == {}


def test_most_functions_are_very_short() -> None:
    lengths = sorted(
        length_of(function) for file in SOURCES for function in functions_in(ast.parse(file.read_text()))
    )
    assert lengths[len(lengths) // 2] <= MAX_MEDIAN_FUNCTION_LINES
    assert lengths[len(lengths) * 9 // 10] <= MAX_P90_FUNCTION_LINES


def test_folders_are_small() -> None:
    modules: dict[str, list[str]] = defaultdict(list)
    for file in SOURCES:
        if file.name != "__init__.py":
            modules[relative(file.parent)].append(file.name)
    assert {
        folder: len(names) for folder, names in modules.items() if len(names) > MAX_MODULES_IN_A_FOLDER
    } == {}


def test_no_two_classes_share_a_name() -> None:
    files: dict[str, list[str]] = defaultdict(list)
    for file in SOURCES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ClassDef):
                files[node.name].append(relative(file))
    assert {name: places for name, places in files.items() if len(places) > 1} == {}


@pytest.mark.parametrize("file", SOURCES, ids=relative)
def test_names_contain_no_retired_word(file: Path) -> None:
    names = {file.stem, *file.relative_to(ROOT).parent.parts, *names_in(ast.parse(file.read_text()))}
    retired = {name for name in names - ALLOWED_NAMES.keys() if words_in(name) & RETIRED_WORDS}
    assert retired | ({file.stem} & RETIRED_MODULES) == set()


def test_settings_contain_no_retired_word() -> None:
    assert {name for name in Settings.model_fields if words_in(name) & RETIRED_WORDS} == set()


@pytest.mark.parametrize("file", [file for file in SOURCES if file.name != "__init__.py"], ids=relative)
def test_every_module_has_a_test_at_the_mirrored_path(file: Path) -> None:
    has_mirror = mirror_of(file).exists()
    assert has_mirror != (relative(file) in UNMIRRORED), relative(mirror_of(file))


def test_unmirrored_modules_name_an_existing_test() -> None:
    for path, reason in UNMIRRORED.items():
        assert (ROOT / path).exists(), path
        tests = re.findall(r"tests/[\w/]+\.py", reason)
        assert tests, f"{path}: the reason must name the test that covers it"
        assert all((ROOT / test).exists() for test in tests), f"{path}: {reason}"
