"""Rows of RewardBench 2 and RM-Bench in their released schema, with texts of our own."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

BEST_OF_FOUR = ("Factuality", "Precise IF", "Math", "Safety", "Focus")
DOMAINS = ("chat", "code", "math", "safety-refuse", "safety-response")


def rewardbench2_row(
    row_id: str, subset: str, prompt: str, chosen: Sequence[str], rejected: Sequence[str]
) -> dict[str, Any]:
    """Return a row with every column of the release."""
    return {
        "id": row_id, "prompt": prompt, "chosen": list(chosen), "rejected": list(rejected),
        "num_correct": len(chosen), "num_incorrect": len(rejected),
        "total_completions": len(chosen) + len(rejected), "models": ["a", "b"], "subset": subset,
        "additional_metadata": {"category": None, "method": "natural"},
    }  # fmt: skip


def rewardbench2_rows(prompts: int = 2) -> list[dict[str, Any]]:
    """Return rows of all six subsets, with `prompts` prompts each."""
    words = ("stone", "amber", "glass", "paper maple", "orbit seven violet")
    best_of_four = [
        rewardbench2_row(
            str(len(BEST_OF_FOUR) * number + index),
            subset,
            f"river {subset} {number}?",
            [f"{words[number % 2]} {subset}"],
            [f"{word} {number} lantern" for word in words[2:]],
        )
        for number in range(prompts)
        for index, subset in enumerate(BEST_OF_FOUR)
    ]
    ties = [
        rewardbench2_row(
            f"{kind}:{number}",
            "Ties",
            f"{kind} maple {number}?",
            [f"quiet {word}" for word in words[:correct]],
            ["thunder", "thunder glass", "thunder paper", "violet"],
        )
        for kind, correct in (("ref", 1), ("tied", 3))
        for number in range(prompts)
    ]
    return best_of_four + ties


def rm_bench_rows(prompts: int = 2) -> list[dict[str, Any]]:
    """Return rows of all domains, with `prompts` prompts each."""
    return [
        {
            "id": f"{domain}/{number}", "prompt": f"river {domain} {number}?", "domain": domain,
            "chosen": [f"amber {number}", f"amber stone {number}", f"- amber\n- stone {number}"],
            "rejected": [f"glass {number}", f"glass paper {number}", f"- glass\n- paper {number}"],
        }
        for number in range(prompts)
        for domain in DOMAINS
    ]  # fmt: skip


def write_rows(file: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Write rows as JSONL and return the file."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file
