"""What a report's pictures say: n, intervals, names beside their lines, colours everybody can tell apart."""

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
SIGHTS = {
    "protan": (0.152286, 1.052583, -0.204868, 0.114503, 0.786281, 0.099216, -0.003882, -0.048116, 1.051998),
    "deutan": (0.367322, 0.860646, -0.227968, 0.280085, 0.672501, 0.047413, -0.011820, 0.042940, 0.968881),
    "tritan": (1.255528, -0.076749, -0.178779, -0.078411, 0.930809, 0.147602, 0.004733, 0.691367, 0.303900),
    "usual": tuple(np.eye(3).flatten()),
}


@pytest.fixture(autouse=True)
def _text_stays_text() -> Iterator[None]:
    with mpl.rc_context({"svg.fonttype": "none"}):
        yield


@pytest.fixture
def judged() -> ScoredPairs:
    """400 pairs of 100 prompts: long responses get more, and margins say how likely people agree."""
    generator = torch.Generator().manual_seed(0)
    tokens = (2 ** (1 + 6 * torch.rand(400, 2, generator=generator))).long()
    rewards = tokens.double().log2() + torch.randn(400, 2, generator=generator).double()
    swapped = torch.rand(400, generator=generator) > torch.sigmoid((rewards[:, 0] - rewards[:, 1]).abs())
    order = torch.argsort(rewards, dim=1, descending=True)
    order[swapped] = order[swapped].flip(1)
    return ScoredPairs(rewards.gather(1, order), tokens.gather(1, order), [str(i // 4) for i in range(400)])


def test_sureness_and_agreement_are_told_bin_by_bin(judged: ScoredPairs) -> None:
    bins = reliability_curve(judged, 1.0)
    assert sum(row["n"] for row in bins) == 400
    assert [row["said"] for row in bins] == sorted(row["said"] for row in bins)
    assert all(row["said"] >= 0.5 for row in bins)
    assert all(row["ci_low"] <= row["came"] <= row["ci_high"] for row in bins)
    assert np.mean([abs(row["came"] - row["said"]) for row in bins]) < 0.08
    assert bins[-1]["came"] - bins[0]["came"] > 0.3


def test_rewards_are_told_by_length(judged: ScoredPairs) -> None:
    sides = reward_by_length(judged)
    assert sum(row["n"] for rows in sides.values() for row in rows) == 800
    for rows in sides.values():
        assert [row["tokens"] for row in rows] == sorted({row["tokens"] for row in rows})
        assert rows[-1]["reward"] - rows[0]["reward"] > 3
        assert all(row["ci_low"] <= row["reward"] <= row["ci_high"] for row in rows)


def test_responses_of_one_length_are_one_point() -> None:
    alike = ScoredPairs(torch.randn(20, 2), torch.full((20, 2), 7), [str(i) for i in range(20)])
    assert {side: [row["n"] for row in rows] for side, rows in reward_by_length(alike).items()} == {
        "preferred": [20], "rejected": [20],
    }  # fmt: skip


def said(file: Path) -> str:
    """The words of a picture, one a line; its colours must be the palette's."""
    text = file.read_text()
    used = {colour.lower() for colour in re.findall(r"#[0-9a-fA-F]{6}\b", text)}
    assert used <= {colour.lower() for colour in figures.COLOURS} | GREYS
    assert 'id="legend' not in text
    return "\n".join(re.findall(r"<text[^>]*>([^<]*)</text>", text))


def test_pictures_of_a_test_say_n_and_intervals(judged: ScoredPairs, tmp_path: Path) -> None:
    test = {
        "n": 1400, "ece": 0.0312, "length": {"spearman": 0.5},
        "reliability": reliability_curve(judged, 1.0), "by_length": reward_by_length(judged),
    }  # fmt: skip
    figures.draw_calibration(tmp_path / "calibration.svg", test)
    figures.draw_length(tmp_path / "length.svg", test)
    calibration, length = said(tmp_path / "calibration.svg"), said(tmp_path / "length.svg")
    for words in (calibration, length):
        assert "n = 1,400 test pairs, bars: 95 % intervals" in words
    assert {"exactly as said", "how often they did (%)"} <= set(calibration.splitlines())
    assert "calibration error 0.031" in calibration
    assert {"preferred", "rejected", "tokens of the response (log scale)"} <= set(length.splitlines())
    assert "rank correlation within a prompt +0.50" in length


def test_lines_are_named_where_they_end_and_names_do_not_collide(tmp_path: Path) -> None:
    row = {"ci_low": 0.6, "ci_high": 0.8}
    lines = {
        name: {"100": {**row, "accuracy": 0.62}, "1000": {**row, "accuracy": last}}
        for name, last in (("selected", 0.7), ("random", 0.701), ("dense", 0.699))
    }
    figures.draw_curves(tmp_path / "data.svg", lines, "training pairs", "How much?", "n = 9, 95 % intervals")
    words = said(tmp_path / "data.svg").splitlines()
    assert {"100", "1000", "training pairs (log scale)", "How much?", "n = 9, 95 % intervals"} <= set(words)
    text = (tmp_path / "data.svg").read_text()
    heights = [height(text, name) for name in lines]
    assert min(abs(a - b) for a, b in itertools.combinations(heights, 2)) > 8


def test_bars_name_every_way_and_its_share(tmp_path: Path) -> None:
    found = {"ours": 0.8, "theirs": 0.7}
    rows = [(name, {"accuracy": at, "ci_low": at - 0.03, "ci_high": at + 0.03}) for name, at in found.items()]
    figures.draw_bars(tmp_path / "bars.svg", rows, "Which?", "n = 7 test pairs, bars: 95 % intervals")
    expected = {"ours", "theirs", "80.0%", "70.0%", "test pairs ranked as people did (%)", "Which?"}
    assert expected <= set(said(tmp_path / "bars.svg").splitlines())


@pytest.mark.parametrize("sight", SIGHTS)
def test_colours_differ_for_every_eye(sight: str) -> None:
    seen = [lab(np.reshape(SIGHTS[sight], (3, 3)) @ linear(colour)) for colour in figures.COLOURS]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > 12


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_reports_say_what_was_measured_and_describe_their_pictures(name: str, tmp_path: Path) -> None:
    folder = MODELS / name
    (tmp_path / "report.json").write_text((folder / "report.json").read_text())
    report.update(tmp_path, bundle.load_bundle(folder).card, {})
    assert (tmp_path / "report.md").read_text() == (folder / "report.md").read_text()
    pictures = re.findall(r"!\[(.*)\]\((.*)\)", (folder / "report.md").read_text())
    assert {file for _, file in pictures} >= {"accuracy.png", "calibration.png", "length.png"}
    for words, file in pictures:
        assert len(words) > 40, file
        assert (folder / file).exists()
        assert (tmp_path / file).exists()


def test_shipped_pictures_are_of_the_pairs_of_the_test() -> None:
    for name in SHIPPED:
        test = json.loads((MODELS / name / "report.json").read_text())["test"]
        assert sum(row["n"] for row in test["reliability"]) == test["n"]
        right = sum(row["came"] * row["n"] for row in test["reliability"]) / test["n"]
        assert right == pytest.approx(test["accuracy"])


def height(picture: str, name: str) -> float:
    """How far from the top of an SVG a text stands."""
    placed = rf'<text[^>]*(?:translate\([-\d.]+ | y=")([-\d.]+)[^>]*>{name}<'
    found = re.search(placed, picture)
    assert found, name
    return float(found[1])


def linear(colour: str) -> Float64Array:
    """Linear RGB of a colour written as sRGB."""
    value = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def lab(rgb: Float64Array) -> Float64Array:
    """CIE Lab of linear RGB, in which distances are about as large as they look."""
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt((to_xyz @ rgb.clip(0, 1)) / (0.9505, 1.0, 1.089))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])
