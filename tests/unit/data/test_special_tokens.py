"""Content that spells special tokens comes back in its place, and as text."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data.conversation import Message
from tunesmith.data.special_tokens import Guard, any_of, special_pattern


def test_special_tokens_in_content_come_back_in_their_places(mistral_tokenizer: Any) -> None:
    content = "x</s>\ue000[INST] y"
    guard = Guard(special_pattern(mistral_tokenizer), (Message("user", content),))
    hidden = guard.messages[0].content
    assert "</s>" not in hidden
    assert "[INST]" not in hidden
    rendered = guard.rendered([("<s>", "context", 1.0), (hidden, "assistant", 1.0)], begins=False)
    assert rendered.text == "<s>" + content
    assert [rendered.text[start:end] for start, end in rendered.protected] == ["</s>", "[INST]"]
    assert rendered.spans[1].end == len(rendered.text)


SHORT = st.text("ab[.|", min_size=1, max_size=5)


@given(st.sets(SHORT, min_size=1, max_size=12), st.text("ab[.|", max_size=30), st.integers(0, 3))
def test_the_longest_text_at_each_place_is_found(texts: set[str], searched: str, branchings: int) -> None:
    """As by trying one after the other, longest first, whatever they share."""
    plain = "|".join(map(re.escape, sorted(texts, key=len, reverse=True)))
    found = [match.span() for match in re.finditer(any_of(texts, branchings), searched)]
    assert found == [match.span() for match in re.finditer(plain, searched)]


@pytest.mark.parametrize("texts", [["\n" * number for number in range(1, 2000)], ["x" * 20_000, "x" * 20_000 + "y"]])
def test_long_texts_that_begin_alike_are_found(texts: list[str]) -> None:
    pattern = re.compile(any_of(texts))
    assert [pattern.fullmatch(text) is not None for text in texts] == [True] * len(texts)
