"""Notes for the user: each is said once, and what every row would say is looked through for secrets once."""

from __future__ import annotations

import pytest

from tunesmith import notices


def test_what_every_row_says_is_looked_through_once(monkeypatch: pytest.MonkeyPatch, clean_notices: None) -> None:
    looked: list[str] = []
    monkeypatch.setattr(notices, "redacted", lambda text: looked.append(text) or text)
    for _ in range(3):
        notices.notify("some rows do")
        notices.notify("an empty prompt", kind="empty")
        notices.notify("another empty prompt", kind="empty")
    assert looked == notices.collected() == ["some rows do", "an empty prompt"]
    notices.clear()
    notices.notify("some rows do")
    assert notices.collected() == ["some rows do"]
