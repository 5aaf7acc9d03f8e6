"""``tunesmith watch``: the page follows the run, is for this machine's browsers alone, and Ctrl-C ends it."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tunesmith.cli.main import main
from tunesmith.config.resolve import schema_defaults
from tunesmith.launch.page_server import PageServer
from tunesmith.report.folder import append_jsonl, write_json
from tunesmith.report.live import LivePage
from tunesmith.report.told import recorded_status

NASTY = "</p><script>alert(1)</script>"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run under way."""
    run = tmp_path / "run"
    record = {
        "status": "running",
        "settings": schema_defaults(),
        "command": "tunesmith train x.yaml",
        "notices": [NASTY],
    }
    write_json(run / "run.json", record)
    append_jsonl(run / "metrics.jsonl", {"step": 1, "loss": 2.5})
    return run


@pytest.fixture
def server(folder: Path) -> Iterator[PageServer]:
    with PageServer(0) as opened:
        opened.source = LivePage(folder, recorded_status)
        thread = threading.Thread(target=opened.serve_forever, args=(0.01,))
        thread.start()
        yield opened
        opened.shutdown()
        thread.join()


def ask(server: PageServer, method: str = "GET", path: str = "/", host: str | None = None) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=20)
    connection.request(method, path, headers={"Host": host} if host else {})
    return connection.getresponse()


def test_the_page_follows_the_run(server: PageServer, folder: Path) -> None:
    first = ask(server)
    page = first.read().decode()
    assert first.status == 200
    assert first.getheader("Refresh") == "5"
    assert first.getheader("Content-Security-Policy", "").startswith("default-src 'none'")
    assert 'class="state running"' in page
    assert NASTY not in page
    assert "&lt;/p&gt;&lt;script&gt;" in page
    assert ask(server).read().decode() == page  # nothing is new, so nothing is made anew, not even its time
    append_jsonl(folder / "metrics.jsonl", {"step": 2, "loss": 1.25, "eval_loss": 1.5})
    assert "evaluation" in ask(server).read().decode()
    write_json(folder / "run.json", json.loads((folder / "run.json").read_text()) | {"status": "finished"})
    last = ask(server)
    assert last.getheader("Refresh") is None
    assert 'class="state finished"' in last.read().decode()
    (folder / "run.json").unlink()  # another run replaces it: the last page stays
    assert 'class="state finished"' in ask(server).read().decode()
    assert sorted(path.name for path in folder.iterdir()) == ["metrics.jsonl"]


@pytest.mark.parametrize(
    ("method", "path", "host", "status"),
    [
        ("HEAD", "/?x", None, 200),
        ("GET", "/run.json", None, 404),
        ("GET", "/../../etc/passwd", None, 404),
        ("POST", "/", None, 501),
        ("GET", "/", "evil.example", 403),
        ("GET", "/", "evil.example:7007", 403),
    ],
)
def test_it_is_read_by_this_machine_alone(
    server: PageServer, method: str, path: str, host: str | None, status: int
) -> None:
    assert server.server_address[0] == "127.0.0.1"
    answer = ask(server, method, path, host)
    assert answer.status == status
    assert (b"tunesmith report" in answer.read()) == (status == 200 and method == "GET")


def test_ctrl_c_ends_it(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: PageServer) -> None:
        assert self.source is not None
        raise KeyboardInterrupt

    monkeypatch.setattr(PageServer, "serve_forever", interrupted)
    assert main(["watch", str(folder), "--port", "0"]) == 130
    said = capsys.readouterr()
    assert said.out.startswith("http://127.0.0.1:")
    assert said.out.endswith("/\n")
    assert said.err == "Ctrl-C ends it; the run goes on without it\ninterrupted\n"


def test_what_cannot_be_watched(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with PageServer(0) as other:
        assert main(["watch", str(folder), "--port", str(other.server_address[1])]) == 2
        assert f"cannot listen at 127.0.0.1:{other.server_address[1]} (Address already" in capsys.readouterr().err
    assert main(["watch", str(folder), "--port", "70000"]) == 2
    assert "--port 70000 is no port" in capsys.readouterr().err
    assert main(["watch", str(tmp_path)]) == 6
    assert "this is no run folder" in capsys.readouterr().err
