"""The summary of a training run names the worst attack, subset and file, and fits on one screen."""

from typing import Any

from rich.console import Console

from app.evaluate.training_summary import LENGTH_ADVICE, find_weaknesses, render_summary


def make_row(accuracy: float, n: int = 100) -> dict[str, Any]:
    """Return an accuracy with its interval."""
    return {"accuracy": accuracy, "ci_low": accuracy - 0.03, "ci_high": accuracy + 0.03, "n": n}


def make_results() -> dict[str, Any]:
    """Return the sections of a report that the summary reads."""
    return {
        "test": {
            **make_row(0.72),
            "slices": {"support>=2": make_row(0.86), "rare": make_row(0.1, n=5)},
            "length": {"chosen_longer": make_row(0.9), "chosen_shorter": make_row(0.42)},
        },
        "baselines": {"TF-IDF of the response": {**make_row(0.65), "lead": make_row(0.07)}},
        "attack_sample": {"n": 14, "attacks": {"padding": 0.07, "refusal boilerplate": 0.5}},
        "limitations": {"facts": make_row(0.55), "short_against_long": make_row(0.7), "own": make_row(0.9)},
    }


def test_names_the_worst_of_each_kind_with_the_worst_first() -> None:
    weaknesses = find_weaknesses(make_results())
    assert [round(weakness.wrong, 2) for weakness in weaknesses] == [0.58, 0.5, 0.45]
    shorter, attack, facts = weaknesses
    assert shorter.advice == LENGTH_ADVICE
    assert "refusal boilerplate" in attack.description
    assert "verify facts" in facts.advice


def test_fits_on_one_screen_and_shows_intervals_and_leads() -> None:
    console = Console(width=100, record=True, quiet=False)
    with console.capture() as capture:
        console.print(render_summary("safety", make_results()))
    text = capture.get()
    assert len(text.splitlines()) <= 24
    for expected in ("0.720 [0.690, 0.750]", "TF-IDF", "+0.070", "58%", "--length-debiasing 1"):
        assert expected in text


def test_without_test_pairs_and_weaknesses_there_is_nothing_to_say() -> None:
    assert find_weaknesses({}) == []
    perfect = {"limitations": {"own": make_row(1.0)}}
    assert find_weaknesses(perfect) == []
    with Console(width=80).capture() as capture:
        Console(width=80).print(render_summary("x", {}))
    assert capture.get() == ""
