"""Whose files are whose, who holds the folder of a run, and which one it may be, numbered as in the list of trust."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from fault_helpers import ROWS, SAVES, Attempt, Killed, content, then, weights
from helpers import write_rows
from tunesmith.cli.main import main
from tunesmith.errors import StorageError
from tunesmith.report import belongings, record
from tunesmith.train import lock
from tunesmith.train.checkpoint import MANIFEST

HOLDER = """
import sys, time
from pathlib import Path
from tunesmith.train.lock import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_F13_two_processes_in_one_folder(attempt: Attempt, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(run)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        code, said = attempt()
        assert code == 6
        assert f"process {holder.pid} on {socket.gethostname()} trains there since 2" in said
        assert [path.name for path in run.iterdir()] == [belongings.LOCK]
    finally:
        holder.kill()
        holder.wait()
    code, said = attempt(max_steps=1)  # the lock of a dead process is taken over
    assert code == 0
    assert f"process {holder.pid} on" in said
    assert not (run / belongings.LOCK).exists()


def test_F13_a_child_that_outlives_the_holder_holds_nothing(tmp_path: Path) -> None:
    """Workers share the lock of their parent; once that is dead the folder is free."""
    import fcntl

    number = os.open(tmp_path / belongings.LOCK, os.O_RDWR | os.O_CREAT)
    fcntl.flock(number, fcntl.LOCK_EX)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    os.pwrite(number, json.dumps(lock._myself() | {"pid": gone.pid}).encode(), 0)
    with lock.held(tmp_path):
        pass
    os.pwrite(number, b"{}", 0)
    os.close(number)


def test_F13_storage_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There the name in the file decides: of another machine nothing is known, so it holds the folder."""
    monkeypatch.setattr(lock, "fcntl", None)
    other = lock._myself() | {"host": "elsewhere"}
    (tmp_path / belongings.LOCK).write_text(json.dumps(other))
    with pytest.raises(StorageError, match="on elsewhere trains there"), lock.held(tmp_path):
        pass
    (tmp_path / belongings.LOCK).write_text(json.dumps(lock._myself() | {"born": "another process of this number"}))
    with lock.held(tmp_path):
        assert json.loads((tmp_path / belongings.LOCK).read_text())["pid"] == os.getpid()
    assert not (tmp_path / belongings.LOCK).exists()


FOREIGN = (
    "run.json", "metrics.jsonl", "ledger.json", "evaluation/metrics.json", "evaluation/mine.txt", "gen_results/a.json",
    "curves.png", "report.html", "inference.json", "proof.json", "README.md", "lora_weights/adapter_config.json",
    "checkpoint-1/x",
    "checkpoint-2/manifest.json", "abandoned-1/x", "adapter_model.safetensors", "model.safetensors", "tokenizer.json",
    "model-00001-of-00002.safetensors", "model.safetensors.index.json", "config.json", "generation_config.json",
    "adapter_config.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "chat_template.jinja", ".saving/x", ".merged/x", ".replaced/run.json", ".removing/x",
    ".run.lock", "logs/rank-0.log", ".run.json.part", "pytorch_model.bin", "notes.txt",
)  # fmt: skip


def test_F14_files_of_somebody_else_survive_every_verb(attempt: Attempt, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for name in FOREIGN:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(f"mine: {name}")
    before = content(run)
    assert len(before) >= 30
    for settings in ({}, {"overwrite_output_dir": True}, {"resume": "auto"}, {"resume": "auto", "max_restarts": 1}):
        assert attempt(**settings)[0] in (2, 6)
        assert content(run) == before
    rows = str(tmp_path / "rows" / "rows.jsonl")
    for verb in (
        ["evaluate", str(run), f"--eval_data={rows}"], ["predict", str(run), rows, str(run / "README.md")],
        ["predict", "nano-mistral", rows, str(run / "metrics.jsonl")], ["push", str(run), "a/b"],
        ["merge", str(run), str(run)], ["merge", str(run), str(tmp_path / "merged")],
        ["check", f"--train_data={rows}", "--model_name_or_path=nano-mistral", f"--output_dir={run}"],
    ):  # fmt: skip
        assert main(verb) not in (0, 1), verb
        assert content(run) == before, verb
    for name in before:  # each alone is enough
        shutil.rmtree(run)
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("mine")
        if name != "notes.txt":
            assert attempt(overwrite_output_dir=True)[0] == 2, name
        assert content(run) == {name: b"mine"}


def test_F14_a_run_that_is_replaced_leaves_nothing(attempt: Attempt, tmp_path: Path) -> None:
    """LoRA, then LoRA and merged, then full: what is in the folder is the last run's alone (and somebody's notes)."""
    run = tmp_path / "run"
    assert attempt(**SAVES)[0] == 0
    (run / "notes.txt").write_text("mine")
    assert attempt(overwrite_output_dir=True, save_merged_model=True, max_steps=1)[0] == 0
    assert not (run / "adapter_model.safetensors").exists()
    assert (run / "lora_weights" / "adapter_model.safetensors").is_file()
    assert not list(run.glob("checkpoint-*"))
    assert attempt(overwrite_output_dir=True, use_lora=False, max_steps=1)[0] == 0
    assert attempt(output_dir=tmp_path / "new", use_lora=False, max_steps=1)[0] == 0
    assert sorted(content(run)) == sorted([*content(tmp_path / "new"), "notes.txt"])
    assert weights(run) == weights(tmp_path / "new")
    files = json.loads((run / "run.json").read_text())["files"]
    assert sorted(files) == sorted(content(tmp_path / "new"))
    (run / "evaluation").mkdir()
    (run / "evaluation" / "mine.txt").write_text("mine")
    code, said = attempt(overwrite_output_dir=True)
    assert code == 2
    assert "evaluation/mine.txt" in said


@pytest.mark.parametrize("point", ["before the first step", "in a step"])
def test_F14_a_second_run_that_fails_leaves_the_first_whole(
    attempt: Attempt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    assert attempt(**SAVES)[0] == 0
    before = content(tmp_path / "run")
    if point == "in a step":
        code, said = attempt(
            overwrite_output_dir=True, learning_rate=1e38, optim="sgd", max_grad_norm=0, max_steps=8, use_lora=False
        )
        assert code == 5
        assert "the earlier run is in its place again" in said
    else:
        with monkeypatch.context() as failing:
            failing.setattr("tunesmith.train.folder.record.begin", then(lambda *_: None, _fail))
            assert attempt(overwrite_output_dir=True)[0] == 6
    assert content(tmp_path / "run") == before


def _fail() -> None:
    raise StorageError("no more")


@pytest.mark.parametrize("moves", [1, 5, 12])
def test_F14_a_kill_while_a_run_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moves: int) -> None:
    """However many files were moved, the next start has the first run whole again."""
    from helpers import resolved_from

    record.begin(tmp_path, resolved_from(model_name_or_path="m", train_data="d"), ["test"], {})
    for name in ("README.md", "metrics.jsonl", "ledger.json", "evaluation/step-1/metrics.json", "config.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    for step in (1, 2):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "w").write_text("w")
        (tmp_path / f"checkpoint-{step}" / MANIFEST).write_text("{}")
    record.close(tmp_path, "finished", {belongings.FILES: belongings.written(tmp_path)})
    before = content(tmp_path)
    replace, calls = Path.replace, [0]

    def counted(self: Path, target: Path) -> Path:
        calls[0] += 1
        if calls[0] > moves:
            raise Killed
        return replace(self, target)

    with monkeypatch.context() as killing:
        killing.setattr(Path, "replace", counted)
        try:
            belongings.set_aside(tmp_path)
        except Killed:
            assert calls[0] == moves + 1
    belongings.heal(tmp_path)
    assert content(tmp_path) == before
    belongings.set_aside(tmp_path)
    assert not (tmp_path / "run.json").exists()
    assert belongings.put_back(tmp_path)
    assert content(tmp_path) == before


def test_home_and_variables_mean_the_same_in_every_source(
    attempt: Attempt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ROWS", str(tmp_path / "rows"))
    monkeypatch.chdir(tmp_path / "rows")
    (tmp_path / "home").mkdir()
    (tmp_path / "c.yaml").write_text(
        f"model:\n  path: {whole}/model\ndataset:\n  name: ${{ROWS}}/rows.jsonl\n"
        "training:\n  output_dir: ~/runs/a\n  max_steps: 1\n  save_steps: 1\n"
    )
    write_rows(tmp_path / "rows" / "rows.jsonl", ROWS)
    assert main(["train", str(tmp_path / "c.yaml"), "--max_length=64"]) == 0
    assert (tmp_path / "home/runs/a/run.json").is_file()
    assert (tmp_path / "home/runs/a/checkpoint-1").is_dir()
    assert attempt(output_dir="$HOME/runs/b", train_data="$ROWS/rows.jsonl", max_steps=1)[0] == 0
    assert (tmp_path / "home/runs/b/run.json").is_file()
    assert attempt(output_dir="~/runs/b", resume_from_checkpoint="latest", max_steps=1)[0] == 0
    assert not (Path.cwd() / "~").exists()
    code, said = attempt(output_dir="$NOBODY_SET_THIS/b")
    assert code == 2
    assert "NOBODY_SET_THIS, which is not set" in said


def test_folders_that_no_run_may_have(attempt: Attempt, tmp_path: Path, whole: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "link").symlink_to(tmp_path / "rows")
    for place in (
        tmp_path, tmp_path / "rows", tmp_path / "link", whole,
        whole / "model", tmp_path / "loop" / "x",
        "a\nb", "a\0b", "/", "/etc", "/etc/run", "/usr/bin/run", "/tmp", "~", "/home/somebody",
    ):  # fmt: skip
        code, said = attempt(output_dir=place)
        assert code == 2, place
        assert "output_dir" in said
    assert list((tmp_path / "rows").iterdir()) == [tmp_path / "rows" / "rows.jsonl"]
