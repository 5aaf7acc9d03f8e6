"""Content that spells special tokens comes back in its place, and as text."""

from __future__ import annotations

from typing import Any

from tunesmith.data.conversation import Message
from tunesmith.data.special_tokens import Guard, special_pattern


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
