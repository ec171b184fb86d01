"""The table about length shows both settings beside the baseline that only looks at length."""

from app.evaluate.report_length import get_length_settings, render_length_settings


def make_row(accuracy: float, longer: float, shorter: float) -> dict[str, object]:
    """Return measurements as a report stores them."""
    parts = {
        name: {"accuracy": value, "ci_low": value - 0.01, "ci_high": value + 0.01}
        for name, value in (("all", accuracy), ("chosen_longer", longer), ("chosen_shorter", shorter))
    }
    return {**parts.pop("all"), "length": {**parts, "spearman": 0.4}}


def test_shows_both_settings_and_the_longer_response() -> None:
    test = {**make_row(0.7, 0.9, 0.4), "length_controlled": make_row(0.68, 0.75, 0.55)}
    rows = get_length_settings(test, {"accuracy": 0.64, "ci_low": 0.6, "ci_high": 0.68})
    lines = list(render_length_settings(rows))
    assert lines[2].startswith("| off | 0.700 [0.690, 0.710] | 0.900 [0.890, 0.910] | 0.400")
    assert lines[3].startswith("| on | 0.680")
    assert lines[4].startswith("| longer response wins | 0.640 [0.600, 0.680] | 1.000")
    assert "| 0.000 [0.000, 0.000] | +1.00 |" in lines[4]


def test_an_empty_side_and_a_missing_setting_are_left_out() -> None:
    row = make_row(0.7, 0.9, 0.4)
    one_sided = {**row, "length": {"chosen_longer": None, "chosen_shorter": None, "spearman": 0.0}}
    assert list(get_length_settings(one_sided, None)) == ["off"]
    assert list(render_length_settings({"off": one_sided}))[-1].endswith("|  |  | +0.00 |")
