"""Signals become an error with their exit code, and the handlers of before come back."""

from __future__ import annotations

import signal

import pytest

from tunesmith.errors import Interrupted
from tunesmith.launch.interruption import interruptible


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_becomes_an_error(number, code):
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match="the sweep was interrupted; go on") as caught:  # noqa: SIM117
        with interruptible("the sweep", remedy="go on"):
            signal.raise_signal(number)
    assert caught.value.exit_code == code
    assert signal.getsignal(number) is before
