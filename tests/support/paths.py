"""Folders of the repository that tests read."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
CLIENT = ROOT / "client" / "src" / "sparserm_client"
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
MODELS = ROOT / "models"
EXAMPLE_PAIRS = ROOT / "docs" / "examples" / "pairs.jsonl"
GOLDEN = ROOT / "tests" / "serve" / "adapters" / "golden"
