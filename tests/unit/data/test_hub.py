from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest
from huggingface_hub import constants

from tunesmith.data import hub
from tunesmith.data.rows import read_rows
from tunesmith.errors import DataError


@pytest.fixture
def silent_server() -> Iterator[socket.socket]:
    """A server whose connections come about (the kernel sees to that) and are never answered."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server


def num_waiting(server: socket.socket) -> int:
    """Connections that nobody has answered; they are taken away."""
    server.setblocking(False)
    num = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            server.accept()[0].close()
            num += 1
    return num


def refused(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> str:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    with pytest.raises(DataError) as caught:
        read_rows("nobody/no-such-data", subset="main")
    assert caught.value.exit_code == 3
    return str(caught.value)


def test_a_hub_that_refuses_connections_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    said = refused(monkeypatch, "http://127.0.0.1:9")
    assert said.startswith("nobody/no-such-data: ")
    assert "out of reach" in said
    assert "HF_HUB_OFFLINE" in said
    assert not constants.HF_HUB_OFFLINE


def test_a_hub_that_never_answers_is_asked_once_and_given_up(
    monkeypatch: pytest.MonkeyPatch, silent_server: socket.socket
) -> None:
    assert hub.PROBE_SECONDS < 10
    monkeypatch.setattr(hub, "PROBE_SECONDS", 0.3)
    said = refused(monkeypatch, f"http://127.0.0.1:{silent_server.getsockname()[1]}")
    assert "out of reach (ReadTimeout)" in said
    assert num_waiting(silent_server) == 1
