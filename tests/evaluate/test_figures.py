"""Figures of reports: n and intervals, labels beside the curves, colours for colour-blind readers."""

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import torch

from app.evaluate import figures, report
from app.evaluate.accuracy import Float64Array, ScoredPairs, reliability_curve, reward_by_length
from app.reward import bundle
from tests.support.paths import MODELS

SHIPPED = bundle.list_bundles(MODELS)
GREYS = {"#555555", "#000000", "#ffffff", "#b0b0b0"}
# Linear RGB as seen without one of the three kinds of cones (Machado et al. 2009, severity 1).
COLOUR_VISION = {
    "protan": (0.152286, 1.052583, -0.204868, 0.114503, 0.786281, 0.099216, -0.003882, -0.048116, 1.051998),
    "deutan": (0.367322, 0.860646, -0.227968, 0.280085, 0.672501, 0.047413, -0.011820, 0.042940, 0.968881),
    "tritan": (1.255528, -0.076749, -0.178779, -0.078411, 0.930809, 0.147602, 0.004733, 0.691367, 0.303900),
    "normal": tuple(np.eye(3).flatten()),
}


@pytest.fixture(autouse=True)
def _keep_text_in_svg() -> Iterator[None]:
    with mpl.rc_context({"svg.fonttype": "none"}):
        yield


@pytest.fixture
def scored_pairs() -> ScoredPairs:
    """400 pairs of 100 prompts: rewards rise with length, and margins are calibrated."""
    generator = torch.Generator().manual_seed(0)
    tokens = (2 ** (1 + 6 * torch.rand(400, 2, generator=generator))).long()
    rewards = tokens.double().log2() + torch.randn(400, 2, generator=generator).double()
    swapped = torch.rand(400, generator=generator) > torch.sigmoid((rewards[:, 0] - rewards[:, 1]).abs())
    order = torch.argsort(rewards, dim=1, descending=True)
    order[swapped] = order[swapped].flip(1)
    return ScoredPairs(rewards.gather(1, order), tokens.gather(1, order), [str(i // 4) for i in range(400)])


def test_reliability_curve_reports_predicted_and_observed_agreement(scored_pairs: ScoredPairs) -> None:
    bins = reliability_curve(scored_pairs, 1.0)
    assert sum(row["n"] for row in bins) == 400
    assert [row["said"] for row in bins] == sorted(row["said"] for row in bins)
    assert all(row["said"] >= 0.5 for row in bins)
    assert all(row["ci_low"] <= row["came"] <= row["ci_high"] for row in bins)
    assert np.mean([abs(row["came"] - row["said"]) for row in bins]) < 0.08
    assert bins[-1]["came"] - bins[0]["came"] > 0.3


def test_reward_by_length_rises_with_length(scored_pairs: ScoredPairs) -> None:
    sides = reward_by_length(scored_pairs)
    assert sum(row["n"] for rows in sides.values() for row in rows) == 800
    for rows in sides.values():
        assert [row["tokens"] for row in rows] == sorted({row["tokens"] for row in rows})
        assert rows[-1]["reward"] - rows[0]["reward"] > 3
        assert all(row["ci_low"] <= row["reward"] <= row["ci_high"] for row in rows)


def test_responses_of_equal_length_give_one_point() -> None:
    equal_lengths = ScoredPairs(torch.randn(20, 2), torch.full((20, 2), 7), [str(i) for i in range(20)])
    assert {side: [row["n"] for row in rows] for side, rows in reward_by_length(equal_lengths).items()} == {
        "preferred": [20], "rejected": [20],
    }  # fmt: skip


def read_texts(file: Path) -> str:
    """Return the texts of a figure, one per line, after checking that its colours are in the palette."""
    text = file.read_text()
    used_colours = {colour.lower() for colour in re.findall(r"#[0-9a-fA-F]{6}\b", text)}
    assert used_colours <= {colour.lower() for colour in figures.COLOURS} | GREYS
    assert 'id="legend' not in text
    return "\n".join(re.findall(r"<text[^>]*>([^<]*)</text>", text))


def test_figures_of_a_test_state_n_and_intervals(scored_pairs: ScoredPairs, tmp_path: Path) -> None:
    test = {
        "n": 1400, "ece": 0.0312, "length": {"spearman": 0.5},
        "reliability": reliability_curve(scored_pairs, 1.0), "by_length": reward_by_length(scored_pairs),
    }  # fmt: skip
    figures.draw_calibration(tmp_path / "calibration.svg", test)
    figures.draw_length(tmp_path / "length.svg", test)
    calibration, length = (read_texts(tmp_path / name) for name in ("calibration.svg", "length.svg"))
    for texts in (calibration, length):
        assert "n = 1,400 test pairs, bars: 95 % intervals" in texts
    assert {"perfect calibration", "pairs in which people agree (%)"} <= set(calibration.splitlines())
    assert "calibration error 0.031" in calibration
    assert {"preferred", "rejected", "tokens of the response (log scale)"} <= set(length.splitlines())
    assert "rank correlation within a prompt +0.50" in length


def test_curves_are_labelled_at_their_ends_without_overlap(tmp_path: Path) -> None:
    row = {"ci_low": 0.6, "ci_high": 0.8}
    curves = {
        name: {"100": {**row, "accuracy": 0.62}, "1000": {**row, "accuracy": last}}
        for name, last in (("selected", 0.7), ("random", 0.701), ("dense", 0.699))
    }
    figures.draw_curves(tmp_path / "data.svg", curves, "training pairs", "How much?", "n = 9, 95 % intervals")
    texts = read_texts(tmp_path / "data.svg").splitlines()
    assert {"100", "1000", "training pairs (log scale)", "How much?", "n = 9, 95 % intervals"} <= set(texts)
    svg = (tmp_path / "data.svg").read_text()
    heights = [find_text_height(svg, name) for name in curves]
    assert min(abs(a - b) for a, b in itertools.combinations(heights, 2)) > 8


def test_bars_are_labelled_with_name_and_accuracy(tmp_path: Path) -> None:
    accuracies = {"ours": 0.8, "theirs": 0.7}
    rows = [
        (name, {"accuracy": value, "ci_low": value - 0.03, "ci_high": value + 0.03})
        for name, value in accuracies.items()
    ]
    figures.draw_bars(tmp_path / "bars.svg", rows, "Which?", "n = 7 test pairs, bars: 95 % intervals")
    expected = {"ours", "theirs", "80.0%", "70.0%", "test pairs ranked as people did (%)", "Which?"}
    assert expected <= set(read_texts(tmp_path / "bars.svg").splitlines())


@pytest.mark.parametrize("vision", COLOUR_VISION)
def test_colours_differ_with_every_colour_vision(vision: str) -> None:
    matrix = np.reshape(COLOUR_VISION[vision], (3, 3))
    colours = [to_lab(matrix @ to_linear_rgb(colour)) for colour in figures.COLOURS]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(colours, 2)) > 12


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_reports_match_their_json_and_describe_their_figures(name: str, tmp_path: Path) -> None:
    folder = MODELS / name
    (tmp_path / "report.json").write_text((folder / "report.json").read_text())
    report.update(tmp_path, bundle.load_bundle(folder).card, {})
    assert (tmp_path / "report.md").read_text() == (folder / "report.md").read_text()
    figure_links = re.findall(r"!\[(.*)\]\((.*)\)", (folder / "report.md").read_text())
    assert {file for _, file in figure_links} >= {"accuracy.png", "calibration.png", "length.png"}
    for description, file in figure_links:
        assert len(description) > 40, file
        assert (folder / file).exists()
        assert (tmp_path / file).exists()


def test_shipped_figures_cover_all_test_pairs() -> None:
    for name in SHIPPED:
        test = json.loads((MODELS / name / "report.json").read_text())["test"]
        assert sum(row["n"] for row in test["reliability"]) == test["n"]
        accuracy = sum(row["came"] * row["n"] for row in test["reliability"]) / test["n"]
        assert accuracy == pytest.approx(test["accuracy"])


def find_text_height(svg: str, text: str) -> float:
    """Return the distance of a text from the top of an SVG."""
    pattern = rf'<text[^>]*(?:translate\([-\d.]+ | y=")([-\d.]+)[^>]*>{text}<'
    match = re.search(pattern, svg)
    assert match, text
    return float(match[1])


def to_linear_rgb(colour: str) -> Float64Array:
    """Convert a hexadecimal sRGB colour to linear RGB."""
    value = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def to_lab(rgb: Float64Array) -> Float64Array:
    """Convert linear RGB to CIE Lab, in which distances correspond to perceived differences."""
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt((to_xyz @ rgb.clip(0, 1)) / (0.9505, 1.0, 1.089))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])
