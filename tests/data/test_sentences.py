"""Sentences: they are found in prose, lists and other scripts, and no character is lost."""

import pytest

from app.data.sentences import split_sentences


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("", []),
        ("One sentence.", ["One sentence."]),
        ("First. Second!  Third?", ["First. ", "Second!  ", "Third?"]),
        ("Steps:\n- one\n\n- two\n", ["Steps:\n", "- one\n\n", "- two\n"]),
        ("It costs 3.50 euros. Really.", ["It costs 3.50 euros. ", "Really."]),
        ("对不起。我不能回答！", ["对不起。", "我不能回答！"]),
        ("\n", ["\n"]),
    ],
)
def test_joined_sentences_are_the_text(text: str, sentences: list[str]) -> None:
    assert split_sentences(text) == sentences
    assert "".join(sentences) == text
