"""The report's section about names counts what was kept and shows failures, too."""

from app.evaluate.report_names import render_muting, render_names

SPEARMAN = {"a": 0.9, "b": 1.0, "c": 0.98}


def row(key: str, accuracy: float, *, kept: bool) -> dict[str, object]:
    return {
        "key": key,
        "name": f"name {key}",
        "accuracy": accuracy,
        "lower_bound": 0.5,
        "items": 20,
        "passed": kept,
        "round": 0,
    }


def test_all_scores_are_in_the_table() -> None:
    named = {"min_accuracy": 0.75, "min_items": 20, "min_lower_bound": 0.6, "names": [
        row("1", 1.0, kept=True), row("2", 0.95, kept=True), row("3", 0.3, kept=False),
        row("declines", 0.9, kept=True), row("insults", 0.55, kept=False),
    ]}  # fmt: skip
    text = "\n".join(render_names(named))
    assert "3 names of 3 features were tested; 2 features have one that passed." in text
    assert "2 names of 2 concepts were tested; 1 concepts have one that passed." in text
    assert "| 1 | 1 | 0 |\n| 0.9 to 1.0 | 1 | 1 |\n| 0.5 to 0.6 | 0 | 1 |\n| 0.3 to 0.4 | 1 | 0 |" in text
    assert "| name insults | 0.55 | no |" in text


def test_muting_is_summarised_by_its_worst_and_its_median() -> None:
    muting = {name: {"spearman": value, "others": 1 - value} for name, value in SPEARMAN.items()}
    [text] = render_muting(muting)
    assert "at least 0.900, median 0.980 over 3 concepts" in text
    assert "at most 0.100 standard deviations" in text
