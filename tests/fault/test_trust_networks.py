"""Trust rows F24 to F28: trackers and the hub are away, silent, refuse, or die; training does not depend on them."""

from __future__ import annotations

import http.server
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from helpers import logged, run_training, story_rows
from tunesmith import notices
from tunesmith.errors import Interrupted, ModelError
from tunesmith.model import source
from tunesmith.train import tracker_runs, trackers
from tunesmith.train.trainer import Trainer

KEY = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """W&B with a key that nobody knows; its process is gone afterwards."""
    import wandb

    for name in ("WANDB_MODE", "WANDB_PROJECT", "WANDB_DIR", "WANDB_NAME", "WANDB_RUN_ID", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    yield wandb
    with suppress(ConnectionError):  # a test may have killed it
        wandb.teardown()


@pytest.fixture
def train(stories_model: Path, tmp_path: Path) -> Callable[..., Any]:
    def call(**settings: Any) -> Any:
        defaults = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "report_to": ["wandb"]}
        return run_training(tmp_path, stories_model, story_rows(8), **(defaults | settings))

    return call


@pytest.fixture
def silent() -> Iterator[str]:
    """An address that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def answering() -> Iterator[Callable[[int, Any], str]]:
    """``answering(status, body)`` starts a server that answers every question so; its address."""
    servers = []

    def start(status: int, body: Any) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.send_response(status)
                self.end_headers()
                self.wfile.write(json.dumps(body).encode())

            def log_message(self, *_: Any) -> None: ...

        servers.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_F24_wandb_out_of_reach_is_decided_within_3_seconds(silent: str) -> None:
    for address, said in (("http://127.0.0.1:9", "out of reach"), (silent, "")):
        started = time.monotonic()
        reason = tracker_runs._refusal(address, KEY)
        assert reason is not None
        assert said in reason
        assert time.monotonic() - started < tracker_runs.PROBE_SECONDS + 1


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (200, {"data": {"viewer": {"id": "me"}}}, None),
        (200, {"data": {"viewer": None}}, "W&B does not know the key"),
        (401, {}, "W&B refuses the key (401)"),
    ],
)
def test_F25_a_key_is_asked_about(status: int, body: Any, reason: str | None, answering: Any) -> None:
    assert tracker_runs._refusal(answering(status, body), KEY) == reason


def test_F24_training_without_wandb_is_the_same_training(
    wandb: Any, train: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    train()
    assert any("W&B is out of reach" in text and "wandb sync" in text for text in notices.collected())
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*"))
    losses = logged(tmp_path / "run", "step", "loss")
    train(report_to=[], output_dir=str(tmp_path / "other"))
    assert logged(tmp_path / "other", "step", "loss") == losses


def test_F26_a_tracker_whose_process_dies_ends_nothing(
    wandb: Any, train: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    function, calls = Trainer.training_step, []

    def stand_in(trainer: Trainer, *args: Any, **keywords: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            killed = [child for child in psutil.Process().children(recursive=True) if "wandb" in child.name()]
            assert killed
            for child in killed:
                child.kill()
            psutil.wait_procs(killed, timeout=10)
        return function(trainer, *args, **keywords)

    monkeypatch.setattr(Trainer, "training_step", stand_in)
    assert train().steps == 4
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "finished"
    assert any("W" in text and ("failed" in text or "could not finish" in text) for text in notices.collected())


def test_F26_a_tracker_that_raises_is_counted_and_given_up(capsys: pytest.CaptureFixture[str]) -> None:
    from transformers.integrations import TensorBoardCallback

    class Full(TensorBoardCallback):
        asked = 0

        def on_log(self, *args: Any, **keywords: Any) -> None:
            Full.asked += 1
            raise OSError(28, "No space left on device")

    notices.clear()
    guarded = trackers.Guarded(Full(), "tensorboard", "a run")
    for _ in range(5):
        guarded.on_log(None, None, None, logs={})
    trackers.tell_losses([guarded])
    assert Full.asked == trackers.FAILURES
    first, last = notices.collected()
    assert "No space left on device" in first
    assert "lost 5 reports" in last


def test_f12_the_environment_of_wandb_counts_and_a_resumed_run_is_the_same_run(
    wandb: Any, train: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[dict[str, Any]] = []
    init = wandb.init

    def seen(**keywords: Any) -> Any:
        run = init(**keywords)
        begun.append({"project": run.project, "name": run.name, "id": run.id})
        return run

    monkeypatch.setattr(wandb, "init", seen)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "elsewhere"))
    with pytest.raises(Interrupted):
        _interrupted(train, monkeypatch)
    train(resume_from_checkpoint="latest")
    one, other = begun
    assert one["id"] == other["id"] == json.loads((tmp_path / "run" / "run.json").read_text())["trackers"]["wandb"]
    assert one["project"] == other["project"] == "mine"
    assert one["name"].startswith("hf-")
    assert list((tmp_path / "elsewhere" / "wandb").glob("offline-run-*"))
    assert not (tmp_path / "run" / "wandb").exists()


def _interrupted(train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    function = Trainer.training_step

    def stand_in(trainer: Trainer, *args: Any, **keywords: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return function(trainer, *args, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "training_step", stand_in)
        train()


def test_F27_a_hub_that_says_nothing_is_given_up_in_time(silent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: False)
    monkeypatch.setattr(constants, "ENDPOINT", silent)
    started = time.monotonic()
    with pytest.raises(ModelError, match=r"nobody/no-such-model: .*the hub is out of reach") as stopped:
        source.locate("nobody/no-such-model", None)
    assert stopped.value.exit_code == 4
    assert "HF_HUB_OFFLINE" in stopped.value.line()
    assert time.monotonic() - started < 10
