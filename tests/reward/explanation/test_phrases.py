"""Words and phrases of a response, found from its tokens."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.reward.explanation.phrases import MAX_PHRASE_CHARACTERS, find_phrase, quote, split_words

TEXTS = ["I", " can", "'t", " help", " with", " that", ".", "\n\n", "Ask", " a", " doctor"]


def test_words_start_at_white_space_and_keep_what_follows_them() -> None:
    words = ["".join(TEXTS[slice(*word)]) for word in split_words(TEXTS)]
    assert words == ["I", " can't", " help", " with", " that.\n\n", "Ask", " a", " doctor"]
    assert split_words([]) == []
    assert [tuple(word) for word in split_words([" ", "\n"])] == [(0, 2)]
    assert len(split_words(["没", "有", "。"])) == 3


def test_the_phrase_is_where_the_credit_is() -> None:
    shares = np.zeros(len(TEXTS))
    shares[[1, 2, 3]] = (0.4, 0.5, 0.6)
    phrase = find_phrase(split_words(TEXTS), shares)
    assert phrase is not None
    assert quote(TEXTS, phrase) == "can't help"
    shares[[9, 10]] = (1.0, 3.0)
    phrase = find_phrase(split_words(TEXTS), shares, max_words=1)
    assert phrase is not None
    assert quote(TEXTS, phrase) == "doctor"
    assert find_phrase([], np.zeros(0)) is None


def test_the_only_word_is_the_phrase() -> None:
    assert find_phrase(split_words(["Yes", "."]), np.array([0.3, 0.1])) == (0, 2)


def test_quotes_are_one_line_and_short() -> None:
    texts = ["one\n", " two\t", " three" * 40]
    (phrase,) = [find_phrase(split_words(texts), np.array([0.0, 0.0, 1.0]), max_words=3)]
    assert phrase is not None
    text = quote(texts, phrase)
    assert "\n" not in text
    assert len(text) <= MAX_PHRASE_CHARACTERS
    assert text.endswith("…")


@given(
    st.lists(st.tuples(st.text(max_size=4), st.floats(-5, 5)), min_size=1, max_size=30),
    st.integers(1, 6),
)
def test_no_other_run_of_words_has_more_credit(tokens: list[tuple[str, float]], max_words: int) -> None:
    texts, shares = [text for text, _ in tokens], np.array([share for _, share in tokens])
    words = split_words(texts)
    assert "".join("".join(texts[slice(*word)]) for word in words) == "".join(texts)
    excess = shares - shares.mean()
    runs = [
        float(excess[words[i].start : words[j - 1].end].sum())
        for i in range(len(words))
        for j in range(i + 1, min(i + max_words, len(words)) + 1)
    ]
    phrase = find_phrase(words, shares, max_words=max_words)
    assert phrase is not None
    assert float(excess[slice(*phrase)].sum()) == pytest.approx(max(runs), abs=1e-9)
