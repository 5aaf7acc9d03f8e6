"""``tunesmith runs``: what is listed, compared and removed, and what never is."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from tunesmith import notices
from tunesmith.cli.main import main
from tunesmith.report.belongings import LOCK, REPLACED, set_aside
from tunesmith.train.lock import held, is_held


def make(folder: Path, status: str = "finished", *, settings: dict[str, Any] | None = None, **facts: Any) -> Path:
    """A run folder with a record and two files of the run."""
    folder.mkdir(parents=True, exist_ok=True)
    base = {"model.model_name_or_path": "tiny", "adapter.use_lora": False, "training.output_dir": str(folder)}
    record: dict[str, Any] = {
        "status": status,
        "started": "2026-01-02T03:04:05+00:00",
        "settings": base | (settings or {}),
        "settings_fingerprint": "f",
        "versions": {"torch": "2.10"},
    }
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "metrics.jsonl").write_text("")
    if status == "finished":
        record |= {"files": ["metrics.jsonl", "model.safetensors", "run.json"]}
    (folder / "run.json").write_text(json.dumps(record | facts))
    return folder


def result(**metrics: float) -> dict[str, Any]:
    return {"steps": 10, "seconds": 2.5, "metrics": metrics}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    notices.clear()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def listed(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    assert main(["runs", *arguments, "--json"]) == 0
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return found


def names(found: list[dict[str, Any]]) -> list[str]:
    return [Path(each["folder"]).name for each in found]


def test_runs_are_listed_newest_first(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(home / "old", started="2025-01-01T00:00:00+00:00", result=result(eval_loss=0.5))
    lora = {"adapter.use_lora": True, "adapter.lora_r": 8, "quantization.load_in_4bit": True}
    make(home / "sweep" / "trial-1", "failed", settings=lora, plan={"total_steps": 7})
    make(home / "sweep" / "trial-1" / "checkpoint-3")  # a copy of a record there is no run
    make(home / "old" / REPLACED)
    (home / "other").mkdir()
    (home / "other" / "run.json").write_text('{"status": "finished"}')
    (home / "link").symlink_to(home / "old")
    found = listed(capsys)
    assert names(found) == ["trial-1", "old"]
    assert (found[0]["status"], found[0]["method"], found[0]["steps"]) == ("failed", "QLoRA 4-bit r=8", 7)
    assert (found[1]["method"], found[1]["steps"], found[1]["metrics"]) == ("full", 10, {"eval_loss": 0.5})
    assert names(listed(capsys, ".", "--status", "finished")) == ["old"]
    assert main(["runs"]) == 0
    assert "eval_loss 0.5" in capsys.readouterr().out
    assert main(["runs", "sweep/trial-1"]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("trial-1  failed")


def test_best_first(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, loss, score in (("a", 0.3, 0.2), ("b", 0.1, 0.9), ("c", 0.2, 0.5)):
        make(home / name, result=result(eval_loss=loss, eval_f1=score))
    make(home / "lacking")
    make(home / "nan", result=result(eval_loss=float("nan"), eval_f1=0.1))
    assert names(listed(capsys, "--sort", "eval_loss"))[:3] == ["b", "c", "a"]
    assert names(listed(capsys, "--sort", "eval_f1")) == ["b", "c", "a", "nan", "lacking"]
    assert main(["runs", "--sort", "eval_los"]) == 2
    assert "did you mean 'eval_loss'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong", [{"result": None}, {"best": 3}, {"best": {"metric": "x"}}, {"started": 5}, {"plan": None}]
)
def test_records_as_anybody_left_them(home: Path, wrong: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    make(home / "run", **wrong)
    assert main(["runs"]) == 0
    assert "run " in capsys.readouterr().out
    assert names(listed(capsys)) == ["run"]


def test_no_folder_and_no_run(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs"]) == 0
    assert capsys.readouterr().err == "no run at or below .\n"
    assert main(["runs", "absent"]) == 6
    assert main(["runs", "--status", "done"]) == 2


def test_a_run_that_runs_and_one_that_was_killed(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(home / "run", "running")
    assert listed(capsys)[0]["status"] == "killed"
    with held(home / "run"):
        before = (home / "run" / LOCK).read_text()
        assert listed(capsys)[0]["status"] == "running"
        assert main(["runs", "remove", "run", "--yes"]) == 6
        assert "running" in capsys.readouterr().err
        assert (home / "run" / LOCK).read_text() == before
    gone = {
        "pid": 2**22 + 1,
        "host": socket.gethostname(),
        "started": "",
        "born": "1",
        "space": json.loads(before)["space"],
    }
    (home / "run" / LOCK).write_text(json.dumps(gone))
    assert listed(capsys)[0]["status"] == "killed"
    (home / "run" / LOCK).write_text("somebody's own words")
    assert not is_held(home / "run")


def test_what_differs(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(home / "a", settings={"training.seed": 1}, result=result(eval_loss=0.5), data={"train_rows": 3})
    make(home / "b", settings={"training.seed": 2}, result=result(eval_loss=0.25), data={"train_rows": 3})
    assert main(["runs", "compare", "a", "b", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == {
        "runs": ["a", "b"],
        "settings": {"training.seed": [1, 2]},
        "data": {},
        "versions": {},
        "metrics": {"eval_loss": [0.5, 0.25]},
    }
    assert main(["runs", "compare", "a", "b"]) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["a", "b"], ["[settings]"], ["training.seed", "1", "2"], ["[metrics]"], ["eval_loss", "0.5", "0.25"],
    ]  # fmt: skip
    assert main(["runs", "compare", "a", "a"]) == 0
    assert capsys.readouterr().out == "no difference\n"
    assert main(["runs", "compare", "a"]) == 2
    assert main(["runs", "compare", "a", "absent"]) == 6


def test_only_what_a_run_wrote_goes(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make(home / "run")
    (folder / "notes.txt").write_text("mine")
    (folder / "config.json").write_text("mine: it came after the end")
    (folder / "logs").mkdir()
    (folder / "logs" / "rank-0.log").write_text("--- rank 0\n")
    assert main(["runs", "remove", "run", "--yes"]) == 0
    shown = capsys.readouterr()
    assert shown.out == "removed 4 files of run\n"
    assert "config.json, notes.txt" in shown.err
    assert sorted(os.listdir(folder)) == ["config.json", "notes.txt"]
    make(home / "whole")
    assert main(["runs", "remove", "whole", "--yes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"folder": "whole", "files": 3, "left": []}
    assert not (home / "whole").exists()


def test_the_run_that_waits_comes_back(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make(home / "run")
    set_aside(folder)
    make(folder, "running", settings={"training.seed": 9})
    assert main(["runs", "remove", "run", "--yes"]) == 0
    assert "is in run again" in capsys.readouterr().err
    assert listed(capsys)[0]["status"] == "finished"
    assert not (folder / REPLACED).exists()


@pytest.mark.parametrize("text", [None, "{}", "not JSON", '{"settings": {"a": 1}}'])
def test_what_is_no_run_stays(home: Path, text: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "mine").mkdir()
    (home / "mine" / "model.safetensors").write_text("mine")
    if text is not None:
        (home / "mine" / "run.json").write_text(text)
    before = sorted(os.listdir(home / "mine"))
    assert main(["runs", "remove", "mine", "--yes"]) == 6
    assert sorted(os.listdir(home / "mine")) == before


def test_it_asks_first(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make(home / "run")
    monkeypatch.setattr("sys.stdin", open(os.devnull))  # noqa: SIM115 - no terminal, and nobody to ask
    assert main(["runs", "remove", "run"]) == 2
    for answer, stays in ((b"n\n", True), (b"\n", True), (b"yes\n", False)):
        ours, theirs = os.openpty()
        os.write(ours, answer)
        with open(theirs) as terminal:
            monkeypatch.setattr("sys.stdin", terminal)
            assert main(["runs", "remove", "run"]) == 0
        os.close(ours)
        assert folder.exists() == stays
    assert "remove the finished run in run: 3 files" in capsys.readouterr().err
