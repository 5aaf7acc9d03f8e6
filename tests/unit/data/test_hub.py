from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest
from huggingface_hub import constants

from tunesmith.data import hub
from tunesmith.data.rows import read_rows
from tunesmith.errors import DataError


@pytest.fixture
def silent_server() -> Iterator[str]:
    """An address that accepts connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        held: list[socket.socket] = []

        def accept() -> None:
            while True:
                try:
                    held.append(server.accept()[0])
                except OSError:
                    return

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        for connection in held:
            connection.close()


def refused_after(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> tuple[str, float]:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    start = time.monotonic()
    with pytest.raises(DataError) as caught:
        read_rows("nobody/no-such-data", subset="main")
    assert caught.value.exit_code == 3
    return str(caught.value), time.monotonic() - start


def test_a_hub_that_refuses_connections_is_said_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets  # noqa: F401  its import is not what is timed

    said, seconds = refused_after(monkeypatch, "http://127.0.0.1:9")
    assert said.startswith("nobody/no-such-data: ")
    assert "out of reach" in said
    assert "HF_HUB_OFFLINE" in said
    assert seconds < 10
    assert not constants.HF_HUB_OFFLINE


def test_a_hub_that_never_answers_is_given_up_within_ten_seconds(
    monkeypatch: pytest.MonkeyPatch, silent_server: str
) -> None:
    import datasets  # noqa: F401

    said, seconds = refused_after(monkeypatch, silent_server)
    assert "out of reach" in said
    assert hub.PROBE_SECONDS <= seconds < 10
