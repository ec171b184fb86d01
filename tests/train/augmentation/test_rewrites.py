"""Rewrites: each changes the response, follows the random generator and varies."""

from random import Random

import pytest

from app.train.augmentation.rewrites import REWRITES, ResponseRewrite


@pytest.mark.parametrize("rewrite", REWRITES)
def test_rewrites_change_the_response(rewrite: ResponseRewrite) -> None:
    texts = [rewrite("why?", "so {it} is.", ("a", "b"), Random(seed)) for seed in range(30)]
    assert texts == [rewrite("why?", "so {it} is.", ("a", "b"), Random(seed)) for seed in range(30)]
    assert "so {it} is." not in texts
    assert all(texts)
    assert len(set(texts)) > 1
