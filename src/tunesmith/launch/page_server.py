"""A run's page over HTTP, for browsers of this machine alone: it is read and nothing else."""

from __future__ import annotations

from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

from tunesmith.launch.ports import listen

if TYPE_CHECKING:
    from tunesmith.report.live import LivePage

HOST = "127.0.0.1"
SECONDS = 5
"""After which a browser asks again, as long as the run goes on."""
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class PageServer(ThreadingHTTPServer):
    """Serves ``source``, which may be set after the port is taken, on a loopback address.

    Args:
        port: 0 for any free one.

    Raises:
        ConfigError: the port cannot be listened on.
    """

    daemon_threads = True
    source: LivePage | None = None

    def __init__(self, port: int) -> None:
        listening = listen(HOST, port)
        super().__init__(listening.getsockname(), _Handler, bind_and_activate=False)
        self.socket.close()  # the library's own, which is bound to nothing
        self.socket = listening

    @property
    def address(self) -> str:
        """What to open in a browser."""
        return f"http://{HOST}:{self.server_address[1]}/"


class _Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD of ``/`` with the page."""

    server: PageServer
    server_version = "tunesmith"
    sys_version = ""
    timeout = 30

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def _answer(self) -> None:
        # a page of elsewhere whose name was made to lead here must not read this one
        if self.headers.get("Host") not in [f"{name}:{self.server.server_address[1]}" for name in (HOST, "localhost")]:
            self._send(HTTPStatus.FORBIDDEN, b"this page is for browsers of this machine\n")
        elif self.path.partition("?")[0] != "/" or self.server.source is None:
            self._send(HTTPStatus.NOT_FOUND, b"there is one page here, /\n")
        else:
            shown = self.server.source.newest()
            again = {"Refresh": str(SECONDS)} if shown.goes_on else {}
            self._send(HTTPStatus.OK, shown.page, "text/html; charset=utf-8", **again)

    def _send(self, status: HTTPStatus, body: bytes, kind: str = "text/plain; charset=utf-8", **more: str) -> None:
        self.send_response(status)
        length = {"Content-Type": kind, "Content-Length": str(len(body))}
        for name, value in (_HEADERS | length | more).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: who reads a page is no news."""
