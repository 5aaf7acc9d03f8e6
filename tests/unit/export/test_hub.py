"""Uploads, against a server on this machine that answers what the hub's client asks."""

from __future__ import annotations

import base64
import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from safetensors.torch import load

from helpers import run_training, story_rows
from tunesmith.cli.main import main
from tunesmith.errors import ModelError, StorageError, UnsafeError
from tunesmith.export import hub

TOKEN = "stand-in-token-0123456789"
REPOSITORY = "me/my-model"


class Hub(ThreadingHTTPServer):
    """The part of the hub that an upload meets; what was committed lies in ``files``."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.files: dict[str, bytes] = {}
        self.large: dict[str, bytes] = {}
        self.created: list[dict[str, Any]] = []
        self.tokens: set[str | None] = set()
        self.private = True
        self.broken_path: str | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answers(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *arguments: Any) -> None:
        pass

    def reply(self, content: Any, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def handle_any(self) -> None:
        content = self.body()
        hub, path = self.server, self.path.partition("?")[0]
        if not path.startswith("/large/"):
            hub.tokens.add(self.headers.get("Authorization"))
        if hub.broken_path is not None and path.startswith(hub.broken_path):
            return self.reply({"error": "out of order"}, 500)
        match (self.command, path):
            case ("GET", "/api/whoami-v2"):
                return self.reply({"name": "me", "type": "user"})
            case ("POST", "/api/repos/create"):
                hub.created.append(json.loads(content))
                return self.reply({"url": f"{hub.address}/{REPOSITORY}"})
            case ("GET", "/api/models/me/my-model"):
                return self.reply({"id": REPOSITORY, "private": hub.private, "siblings": [], "sha": "0" * 40})
            case ("POST", "/api/validate-yaml"):
                return self.reply({"errors": [], "warnings": []})
            case ("POST", "/api/models/me/my-model/preupload/main"):
                names = [file["path"] for file in json.loads(content)["files"]]
                modes = {name: "lfs" if name.endswith(".safetensors") else "regular" for name in names}
                files = [{"path": name, "uploadMode": modes[name], "shouldIgnore": False} for name in names]
                return self.reply({"files": files})
            case ("POST", "/me/my-model.git/info/lfs/objects/batch"):
                objects = [
                    item | {"actions": {"upload": {"href": f"{hub.address}/large/{item['oid']}"}}}
                    for item in json.loads(content)["objects"]
                ]
                return self.reply({"transfer": "basic", "objects": objects})
            case ("PUT", _) if path.startswith("/large/"):
                hub.large[path.removeprefix("/large/")] = content
                return self.reply({})
            case ("POST", "/api/models/me/my-model/commit/main"):
                for line in map(json.loads, content.splitlines()):
                    value = line["value"]
                    if line["key"] == "file":
                        hub.files[value["path"]] = base64.b64decode(value["content"])
                    elif line["key"] == "lfsFile":
                        hub.files[value["path"]] = hub.large[value["oid"]]
                return self.reply(
                    {"commitUrl": f"{hub.address}/{REPOSITORY}/commit/1", "commitOid": "1" * 40, "success": True}
                )
        return self.reply({"error": f"what is {self.command} {path}?"}, 404)

    do_GET = do_POST = do_PUT = do_HEAD = handle_any  # noqa: N815 - the library's names


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that the client talks to, with a token in the environment."""
    with Hub() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # large files go by LFS, which the stand-in speaks
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def trained(stories_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with everything in it that must stay here."""
    home = tmp_path_factory.mktemp("hub")
    run = run_training(home, stories_model, story_rows(8), max_steps=2, save_strategy="steps", save_steps=1).folder
    (run / ".env").write_text(f"HF_TOKEN={TOKEN}")
    (run / "optimizer.pt").write_bytes(b"state")
    (run / "notes.txt").write_text("mine")
    (run / "evaluation").mkdir()
    (run / "evaluation" / "predictions.jsonl").write_text("{}")
    metrics = {"task": "exact", "num_examples": 8, "accuracy": 0.5, "model": str(run)}
    (run / "evaluation" / "metrics.json").write_text(json.dumps(metrics))
    return run


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_is_on_the_list_goes_up_and_nothing_else(trained: Path, server: Hub, capsys) -> None:
    before = snapshot(trained)
    assert main(["push", str(trained), REPOSITORY, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["address"] == f"{server.address}/{REPOSITORY}"
    assert snapshot(trained) == before
    assert {"checkpoint-1/trainer_state.json", ".env", "metrics.jsonl", "run.json"} <= set(before)
    assert set(server.files) == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "evaluation/metrics.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    } | ({"inference.json"} & set(before))
    assert [file["path"] for file in told["files"]] == sorted(server.files)
    assert server.created[0]["name"] == "my-model"
    assert server.created[0].get("private", server.created[0].get("visibility")) in (True, "private")
    assert server.tokens == {f"Bearer {TOKEN}"}
    assert server.files["adapter_model.safetensors"] == before["adapter_model.safetensors"]
    assert load(server.files["adapter_model.safetensors"])
    everything = b"".join(server.files.values())
    assert TOKEN.encode() not in everything
    for folder in (str(trained), str(trained.parent)):
        assert folder.encode() not in everything
    assert json.loads(server.files["adapter_config.json"])["base_model_name_or_path"] == "hf"
    assert b"accuracy | 0.5000" in server.files["README.md"]  # the card in the folder is older than the evaluation


def test_dry_run_sends_nothing(trained: Path, server: Hub, capsys) -> None:
    assert main(["push", str(trained), REPOSITORY, "--dry_run"]) == 0
    shown = capsys.readouterr()
    assert "nothing was sent" in shown.out
    assert "adapter_model.safetensors" in shown.err
    assert not server.tokens


@pytest.mark.parametrize("broken", ["/api/whoami-v2", "/api/repos/create", "/api/models/me/my-model/commit"])
def test_F28_server_out_of_order_leaves_everything_in_place(broken: str, trained: Path, server: Hub, capsys) -> None:
    server.broken_path = broken
    before = snapshot(trained)
    assert main(["push", str(trained), REPOSITORY]) == 6
    said = capsys.readouterr().err
    assert f"try again with `tunesmith push {trained} {REPOSITORY}`" in said
    assert TOKEN not in said
    assert snapshot(trained) == before
    assert not server.files


def test_no_token_no_server_no_answer(trained: Path, server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    files = hub.uploads(trained)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(StorageError, match="HF_TOKEN is not set"):
        hub.push(trained, REPOSITORY, files)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(StorageError, match="refused"):
        hub.push(trained, REPOSITORY, files)
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    monkeypatch.setattr(hub, "DEADLINE", 0.5)
    monkeypatch.setattr(Answers, "do_GET", lambda self: threading.Event().wait(3))
    with pytest.raises(StorageError, match=r"does not answer within 0\.5 s"):
        hub.push(trained, REPOSITORY, files)


def test_public_repository_is_used_only_when_that_is_meant(trained: Path, server: Hub) -> None:
    server.private = False
    files = hub.uploads(trained)
    with pytest.raises(UnsafeError, match="--public"):
        hub.push(trained, REPOSITORY, files)
    assert not server.files
    hub.push(trained, REPOSITORY, files, private=False)
    assert "adapter_model.safetensors" in server.files


@pytest.mark.parametrize("secret", [f'"{TOKEN}"', '"hf_' + "a1" * 17 + '"', '"-----BEGIN RSA PRIVATE KEY-----"'])
def test_secret_in_a_text_is_not_sent(secret: str, trained: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    assert len(hub.uploads(tmp_path)) == 2
    (tmp_path / "inference.json").write_text(f'{{"system": {secret}}}')
    with pytest.raises(UnsafeError, match=r"inference\.json: holds what looks like a secret") as caught:
        hub.uploads(tmp_path)
    assert caught.value.exit_code == 7


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("adapter_config.json", b"[]", ModelError), ("adapter_config.json", b"\xff", StorageError),
        ("tokenizer_config.json", b"\xff\xfe{", StorageError), ("evaluation/metrics.json", None, UnsafeError),
    ],
)  # fmt: skip
def test_files_that_are_none(name: str, content: bytes | None, kind: type, trained: Path, tmp_path: Path) -> None:
    """A link in the place of the figures would send whatever file of this machine it leads to."""
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    shutil.rmtree(run / "evaluation", ignore_errors=True)
    (run / name).parent.mkdir(exist_ok=True)
    if content is None:
        (tmp_path / "mine.json").write_text("{}")
        (run / name).symlink_to(tmp_path / "mine.json")
    else:
        (run / name).write_bytes(content)
    with pytest.raises(kind, match=Path(name).name):
        hub.uploads(run)


def test_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no finished model"):
        hub.uploads(tmp_path)


def test_F28_training_uploads_at_its_end_and_is_finished_when_that_fails(
    stories_model: Path, server: Hub, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"max_steps": 1, "push_to_hub": True, "hub_model_id": REPOSITORY}
    run = run_training(tmp_path / "one", stories_model, story_rows(4), **settings).folder
    assert server.files["adapter_model.safetensors"] == (run / "adapter_model.safetensors").read_bytes()
    server.broken_path = "/api"
    with pytest.raises(StorageError, match="tunesmith push"):
        run_training(tmp_path / "two", stories_model, story_rows(4), **settings)
    run = tmp_path / "two" / "run"
    assert json.loads((run / "run.json").read_text())["status"] == "finished"
    assert (run / "adapter_model.safetensors").is_file()
    assert (run / "README.md").is_file()
    server.broken_path = None
    server.files.clear()
    for sent in (True, False):  # the same command sends what was not sent, once
        run_training(tmp_path / "two", stories_model, story_rows(4), **settings, resume_from_checkpoint="auto")
        assert bool(server.files) == sent
        server.files.clear()
