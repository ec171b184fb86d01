"""Folders of the repository that tests read."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "models"
EXAMPLE_PAIRS = ROOT / "docs" / "examples" / "pairs.jsonl"
GOLDEN = ROOT / "tests" / "serve" / "adapters" / "golden"
