"""A hub on this machine: one data set behind HTTP, for the hub's own file system to read."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

REPOSITORY = "me/rows"
COMMIT = "a" * 40


@dataclass
class Hub:
    """The files of the data set, the token that reads it (None: anybody), and who asked with which."""

    files: dict[str, bytes]
    token: str | None = None
    endpoint: str = ""
    tokens_seen: list[str | None] = field(default_factory=list)

    def answer(self, path: str, given: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of an answer."""
        said = given.get("authorization")
        self.tokens_seen.append(said)
        if self.token is not None and said != f"Bearer {self.token}":
            return _json({"error": "Invalid credentials"}, 401)
        if "/resolve/" in path:
            return self._file(path.partition("/resolve/")[2].partition("/")[2], given.get("range"))
        if "/tree/" in path:
            return _json(self._listed(path.partition("/tree/")[2].partition("/")[2]))
        return _json({"id": REPOSITORY, "sha": COMMIT, "private": False, "siblings": []})

    def _listed(self, folder: str) -> list[dict[str, Any]]:
        prefix = f"{folder}/" if folder else ""
        below = [name.removeprefix(prefix) for name in self.files if name.startswith(prefix)]
        folders = sorted({name.partition("/")[0] for name in below if "/" in name})
        return [{"type": "directory", "path": prefix + name, "oid": "0" * 40} for name in folders] + [
            {"type": "file", "path": prefix + name, "size": len(self.files[prefix + name]), "oid": "0" * 40}
            for name in below
            if "/" not in name
        ]

    def _file(self, name: str, wanted: str | None) -> tuple[int, dict[str, str], bytes]:
        content = self.files[name]
        headers = {"ETag": '"x"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if wanted is None:
            return 200, headers, content
        first, last = (int(part) for part in wanted.removeprefix("bytes=").split("-"))
        last = min(last, len(content) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        return 206, headers, content[first : last + 1]


@contextmanager
def served(hub: Hub) -> Iterator[Hub]:
    """The hub behind an address of this machine."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            given = {name.lower(): value for name, value in self.headers.items()}
            status, headers, body = hub.answer(self.path.partition("?")[0], given)
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(len(body))}).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_POST = do_HEAD = do_GET  # noqa: N815 (names of http.server)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _json(value: Any, status: int = 200) -> tuple[int, dict[str, str], bytes]:
    return status, {"Content-Type": "application/json"}, json.dumps(value).encode()
