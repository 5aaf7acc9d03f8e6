"""``serve``: a real server answers over HTTP as ``predict`` does, and goes away clean; vLLM's command is built."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers import run_training
from tunesmith.cli.main import main
from tunesmith.data.row import Row
from tunesmith.errors import ModelError
from tunesmith.evaluate.answering import Answerer
from tunesmith.evaluate.subject import find_subject
from tunesmith.launch import serving

MESSAGES = [{"role": "user", "content": "Where is the dog?"}]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of a chat with a system message and a template of its own."""
    rows = [{"messages": [*MESSAGES, {"role": "assistant", "content": "In the park."}]}] * 2
    result = run_training(
        tmp_path_factory.mktemp("serve"),
        "nano-mistral",
        rows,
        max_steps=2,
        learning_rate=5e-3,
        template="chatml",
        instruction="Answer kindly.",
        max_new_tokens=12,
        max_duplicates=1.0,
    )
    return Path(result.folder)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def server(run: Path, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The verb in a process of its own, and its address, once it answers."""
    port = _free_port()
    arguments = ["serve", str(run), "--port", str(port), "--engine", "transformers"]
    log = (tmp_path / "log.txt").open("w+")
    process = subprocess.Popen(
        [sys.executable, "-m", "tunesmith", *arguments],
        stdout=log,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )
    address = f"http://127.0.0.1:{port}"
    try:
        while True:
            assert process.poll() is None, (tmp_path / "log.txt").read_text()
            try:
                urllib.request.urlopen(f"{address}/health", timeout=5)
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        yield process, address
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        log.close()


def _ask(address: str, **body: Any) -> dict[str, Any]:
    request = urllib.request.Request(
        f"{address}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as response:
        return dict(json.load(response))


def test_a_real_server_answers_as_predict_does_and_ends_on_sigterm(
    run: Path, server: tuple[subprocess.Popen[str], str], tmp_path: Path
) -> None:
    process, address = server
    other = [{"role": "system", "content": "No."}, *MESSAGES]
    rows = [Row({"messages": messages}, "test", 1) for messages in (MESSAGES, other)]
    expected = [answer.text for answer in Answerer(find_subject(run)).answer(rows)]
    served = [
        _ask(address, model="run", messages=messages, temperature=0, max_tokens=12) for messages in (MESSAGES, other)
    ]
    assert [answer["choices"][0]["message"]["content"] for answer in served] == expected
    assert expected[0]
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143
    assert not list(tmp_path.glob("tunesmith-serve-*"))


def test_the_folder_of_an_adapter_is_whole_and_decodes_as_the_contract_says(run: Path) -> None:
    subject = find_subject(run)
    with serving.prepared(subject, "name") as served:
        home = served.folder.parent
        defaults = json.loads((served.folder / "generation_config.json").read_text())
        assert defaults["max_new_tokens"] == 12
        assert defaults["do_sample"] is False
        assert defaults["eos_token_id"] == [2]
        assert "Answer kindly." in (served.folder / "chat_template.jinja").read_text()
        assert list(served.folder.glob("*.safetensors"))
        assert not (served.folder / "adapter_config.json").exists()
        assert any("special token" in loss for loss in served.losses)
        vllm = serving.command("vllm", served, "127.0.0.1", 8000)
        assert vllm[:3] == ["vllm", "serve", str(served.folder)]
        assert " ".join(vllm[3:]) == "--served-model-name name --host 127.0.0.1 --port 8000 --dtype float32"
    assert not home.exists()


def test_an_engine_that_is_not_there_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(serving, "_installed", lambda name: name not in ("vllm", "uvicorn"))
    with pytest.raises(ModelError, match=r"uvicorn.*tunesmith\[serve\]"):
        serving.choose_engine("auto")
    assert main(["serve", "nano-mistral", "--engine", "vllm"]) == 4
    assert "tunesmith[vllm]" in capsys.readouterr().err
    monkeypatch.setattr(serving, "_installed", lambda name: True)
    assert serving.choose_engine("auto") == "vllm"


@pytest.mark.parametrize(
    ("name", "request_name"), [("mistralai/Mistral-7B@main", "mistralai-Mistral-7B-main"), ("..", None), ("/", "model")]
)
def test_names_in_requests_are_safe(name: str, request_name: str | None) -> None:
    made = serving.request_name(name)
    assert made == request_name or request_name is None
    assert "/" not in made
    assert "@" not in made
