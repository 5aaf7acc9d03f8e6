"""Faults of a run and its folder, numbered as in the list of trust: whose files are whose, who holds the folder, what
a kill, a full disk or a loss of power leave behind."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers import logged, tensors, write_rows
from tunesmith import notices
from tunesmith.cli.main import main
from tunesmith.errors import StorageError
from tunesmith.report import belongings, record
from tunesmith.train import checkpoint, lock, space
from tunesmith.train.checkpoint import MANIFEST

ROWS = [{"prompt": f"what is {number} ", "completion": f"it is {number}"} for number in range(8)]
EVAL = [{"prompt": f"who is {number} ", "completion": f"he is {number}"} for number in range(2)]
SAVES = {"save_strategy": "steps", "save_steps": 1, "max_steps": 3}

Attempt = Callable[..., tuple[int, str]]


class Killed(BaseException):
    """Ends a run at a point as a kill would: nothing of ours may catch it and clean up."""


@pytest.fixture
def attempt(tmp_path: Path, whole: Path, capsys: pytest.CaptureFixture[str]) -> Attempt:
    """Train in ``tmp_path / "run"``; returns the exit code and all that was said."""

    def run(**settings: Any) -> tuple[int, str]:
        notices.clear()
        defaults = {
            "model_name_or_path": whole / "model",
            "train_data": write_rows(tmp_path / "rows" / "rows.jsonl", ROWS),
            "output_dir": tmp_path / "run", "max_steps": 2, "save_strategy": "no", "max_length": 64, "logging_steps": 1,
            "per_device_train_batch_size": 2, "learning_rate": 1e-2, "lora_dropout": 0.1,
        }  # fmt: skip
        code = main(["train", *(f"--{name}={value}" for name, value in (defaults | settings).items())])
        return code, capsys.readouterr().err

    (tmp_path / "rows").mkdir()
    return run


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its name."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def weights(run: Path) -> dict[str, str]:
    """The tensors of a run's final model, as hashes."""
    return {name: hashlib.sha256(value.numpy().tobytes()).hexdigest() for name, value in tensors(run).items()}


def kill_at(monkeypatch: pytest.MonkeyPatch, place: Any, name: str, *, call: int = 1) -> None:
    """Replace a function by one that ends everything at its n-th call; the record of the end is not written either."""
    calls, function = [0], getattr(place, name)

    def killing(*args: Any, **keywords: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            monkeypatch.setattr("tunesmith.train.run.record_end", lambda *_: None)
            monkeypatch.setattr("tunesmith.train.space.shutil.rmtree", lambda *_, **__: None)
            raise Killed
        return function(*args, **keywords)

    monkeypatch.setattr(place, name, killing)


# ---- kills and damaged checkpoints


@pytest.mark.parametrize(
    ("place", "name", "call"),
    [
        ("transformers.Trainer", "_save_optimizer_and_scheduler", 2),
        ("transformers.Trainer", "_save_rng_state", 2),
        ("tunesmith.export.inference", "write", 2),
        ("tunesmith.train.checkpoint", "commit", 1),
        ("tunesmith.train.checkpoint", "commit", 2),
        ("tunesmith.train.checkpoint", "rotate", 2),
        ("tunesmith.train.checkpoint.shutil", "rmtree", 1),
        ("tunesmith.train.run", "save_models", 1),
        ("tunesmith.train.run", "write_cards", 1),
    ],
)
def test_F2_a_kill_at_each_point_of_a_save_changes_nothing(
    attempt: Attempt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, name: str, call: int
) -> None:
    import importlib

    settings = SAVES | {"save_total_limit": 1}
    whole = tmp_path / "whole"
    assert attempt(output_dir=whole, **settings)[0] == 0
    target: Any = importlib.import_module(place.partition(".")[0])
    for part in place.split(".")[1:]:
        target = getattr(target, part)
    with monkeypatch.context() as killing:
        kill_at(killing, target, name, call=call)
        with pytest.raises(Killed):
            attempt(**settings)
    code, said = attempt(resume_from_checkpoint="auto", **settings)
    assert code == 0, said
    run = tmp_path / "run"
    assert weights(run) == weights(whole)
    assert logged(run, "step", "loss", "grad_norm", "learning_rate") == logged(
        whole, "step", "loss", "grad_norm", "learning_rate"
    )
    assert [path.name for path in run.glob("checkpoint-*")] == ["checkpoint-3"]
    assert content(run / "checkpoint-3").keys() == content(whole / "checkpoint-3").keys()
    for state in ("optimizer.pt", "scheduler.pt"):
        assert (run / "checkpoint-3" / state).read_bytes() == (whole / "checkpoint-3" / state).read_bytes()


def test_F3_F4_F5_each_file_of_the_newest_checkpoint(attempt: Attempt, tmp_path: Path) -> None:
    """Cut short, emptied, removed or with one bit flipped: the one before is taken, and the file is named."""
    assert attempt(**SAVES)[0] == 0
    run = tmp_path / "run"
    newest = run / "checkpoint-3"
    for path in sorted(newest.rglob("*")):
        raw = path.read_bytes()
        damages = [raw[:-1], b"", None, raw[:-1] + bytes([raw[-1] ^ 1])]
        for damage in damages:
            path.unlink() if damage is None else path.write_bytes(damage)
            notices.clear()
            found = checkpoint.find(run, "latest")
            assert found is not None
            if path.name == MANIFEST and damage == raw[:-1]:
                continue  # the last byte is a line end
            assert found.step == 2, (path, damage)
            assert path.name in notices.collected()[-1] or MANIFEST in notices.collected()[-1]
            path.write_bytes(raw)
    before = content(run)
    for path in run.glob("checkpoint-*/optimizer.pt"):
        path.write_bytes(b"")
    for asked in ("latest", str(newest)):
        code, said = attempt(**SAVES | {"max_steps": 4, "resume_from_checkpoint": asked})
        assert code == 6
        assert "optimizer.pt has changed" in said
    assert content(run).keys() == before.keys()


def test_F6_nothing_to_resume(attempt: Attempt, tmp_path: Path) -> None:
    code, said = attempt(resume_from_checkpoint=tmp_path / "none" / "checkpoint-3")
    assert code == 6
    assert "no such folder" in said
    code, said = attempt(resume="auto", max_steps=1)
    assert code == 0
    assert "starts from the beginning" in said


# ---- a full disk, and what is lasting


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """``small_disk(bytes)``: a disk of that size at ``tmp_path / "disk"``; only where this user may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted: list[Path] = []

    def mount(size: int) -> Path:
        options = "size=" + str(size)
        how = ["mount", "-t", "tmpfs", "-o", options, "none", str(place)]
        if mounted:
            how[4] = f"remount,{options}"
        if subprocess.run(how, capture_output=True, check=False).returncode:
            pytest.skip("this user cannot mount a small disk")
        mounted.append(place)
        return place

    yield mount
    if mounted:
        subprocess.run(["umount", "-l", str(place)], check=False)


def test_F11_a_disk_that_is_full(
    attempt: Attempt, tmp_path: Path, small_disk: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At ten sizes: exit 6 with what is needed, no half of anything, and with more room the run ends as it would."""
    whole = tmp_path / "whole"
    assert attempt(output_dir=whole, **SAVES)[0] == 0
    monkeypatch.setattr(space, "check_before_training", lambda *_: None)
    monkeypatch.setattr("tunesmith.train.run.check_before_training", lambda *_: None)
    monkeypatch.setattr(space, "check", lambda *_: None)  # the room vanishes after it was looked at
    one = sum(len(raw) for raw in content(whole / "checkpoint-3").values())
    seen = set()
    for part in range(1, 11):
        run = small_disk(part * one * 4 // 10) / "run"
        code, said = attempt(output_dir=run, **SAVES | {"resume": "auto"})
        assert code in (0, 6), said
        seen.add(code)
        if code == 6:
            assert said.count("error:") == 1
            assert "no space left" in said.lower()
        assert not [path for path in run.glob("checkpoint-*") if checkpoint.problem(path)]
        assert not [path for path in run.rglob("*") if path.name in (".saving", ".merged")]
        if code == 6 and (run / "run.json").is_file():
            assert json.loads((run / "run.json").read_text())["status"] != "finished"
    run = small_disk(one * 40) / "run"
    assert attempt(output_dir=run, **SAVES | {"resume": "auto"})[0] == 0
    assert seen == {6} or seen == {0, 6}
    assert weights(run) == weights(whole)


def test_F11_room_is_looked_at_before_the_first_step_and_each_save(
    attempt: Attempt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage, free = shutil.disk_usage(tmp_path), [10_000]
    monkeypatch.setattr(space.shutil, "disk_usage", lambda _: usage._replace(free=free[0]))
    code, said = attempt(**SAVES)
    assert code == 6
    assert "3 checkpoints and the finished model needs" in said
    assert not (tmp_path / "run" / "run.json").exists()
    free[0] = 10**12
    monkeypatch.setattr("tunesmith.train.folder.record.begin", _then(record.begin, lambda: free.__setitem__(0, 10)))
    code, said = attempt(**SAVES)
    assert code == 6
    assert "checkpoint-1 needs" in said
    assert json.loads((tmp_path / "run/run.json").read_text())["status"] == "failed"
    assert not list((tmp_path / "run").glob("checkpoint-*"))


def _then(function: Callable[..., Any], action: Callable[[], Any]) -> Callable[..., Any]:
    def both(*args: Any, **keywords: Any) -> Any:
        value = function(*args, **keywords)
        action()
        return value

    return both


def test_F11_a_full_temporary_folder_is_no_bug_of_ours(capsys: pytest.CaptureFixture[str]) -> None:
    from tunesmith.cli.main import guarded

    def write() -> int:
        with open("/dev/full", "w") as stream:
            stream.write("x")
        return 0

    assert guarded(write) == 6
    assert "no space left" in capsys.readouterr().err.lower()


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_F2_every_file_is_lasting_before_the_manifest_names_it(tmp_path: Path) -> None:
    """The order of the system's calls: each file, its folder, then the manifest, its name, and its folder again."""
    folder = tmp_path / "checkpoint-1"
    (folder / "inner").mkdir(parents=True)
    for name in ("model.safetensors", "optimizer.pt", "inner/rng.pth"):
        (folder / name).write_bytes(b"x" * 100)
    code = (
        "from pathlib import Path; from tunesmith.train.checkpoint import Batches, commit; "
        f"commit(Path({str(folder)!r}), Batches(1, 1, 1))"
    )
    trace = tmp_path / "trace"
    subprocess.run(
        ["strace", "-y", "-f", "-e", "trace=fsync,fdatasync,rename,renameat,renameat2", "-o", str(trace),
         sys.executable, "-c", code],
        check=True, capture_output=True,
    )  # fmt: skip
    calls = [line for line in trace.read_text().splitlines() if str(folder.parent) in line]

    def place(*texts: str) -> int:
        (found,) = [number for number, line in enumerate(calls) if all(text in line for text in texts)][:1]
        return found

    renamed = place("rename", MANIFEST)
    for name in ("model.safetensors", "optimizer.pt", "inner/rng.pth", "inner", ".manifest.json.part"):
        assert place("fsync(", f"<{folder}/{name}>") < renamed
    assert place("fsync(", f"<{folder}>") < renamed
    assert [line for line in calls[renamed + 1 :] if f"<{folder}>" in line]


def test_F12_a_folder_that_cannot_be_written(attempt: Attempt, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file", "/proc/tunesmith-run", "/dev/null"):
        code, said = attempt(output_dir=place)
        assert code == 6, said
        assert "Loading" not in said
    assert (tmp_path / "file").read_text() == "mine"


# ---- two processes


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


# ---- whose files are whose


FOREIGN = (
    "run.json", "metrics.jsonl", "ledger.json", "evaluation/metrics.json", "evaluation/mine.txt", "gen_results/a.json",
    "curves.png", "inference.json", "proof.json", "README.md", "lora_weights/adapter_config.json", "checkpoint-1/x",
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
            failing.setattr("tunesmith.train.folder.record.begin", _then(lambda *_: None, _fail))
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
    record.close(tmp_path, "finished", {})
    belongings.record_files(tmp_path)
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


# ---- finished, going back, other folders


def test_F22_steps_decide_and_clocks_do_not(tmp_path: Path) -> None:
    for step in (9, 10, 11):
        (tmp_path / f"checkpoint-{step}").mkdir()
        checkpoint.commit(tmp_path / f"checkpoint-{step}", checkpoint.Batches(1, 1, 1))
        os.utime(tmp_path / f"checkpoint-{step}", (10**9 - step, 10**9 - step))
    found = checkpoint.find(tmp_path, "latest")
    assert found is not None
    assert found.step == 11
    checkpoint.rotate(tmp_path, 2, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-11"]


def test_F23_best_and_last_survive_a_kill(attempt: Attempt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = SAVES | {
        "eval_data": write_rows(tmp_path / "rows" / "eval.jsonl", EVAL), "eval_steps": 1, "save_total_limit": 1,
        "load_best_model_at_end": True, "learning_rate": 0.5, "optim": "sgd", "max_grad_norm": 0,
        "lr_scheduler_type": "constant",
    }  # fmt: skip
    assert attempt(output_dir=tmp_path / "whole", **settings)[0] == 0
    with monkeypatch.context() as killing:
        kill_at(killing, checkpoint, "commit", call=3)
        with pytest.raises(Killed):
            attempt(**settings)
    shutil.move(tmp_path / "run", tmp_path / "moved")  # the best one is found in the folder that was moved
    code, said = attempt(output_dir=tmp_path / "moved", resume="auto", **settings)
    assert code == 0, said
    assert weights(tmp_path / "moved") == weights(tmp_path / "whole")
    records = [json.loads((tmp_path / name / "run.json").read_text()) for name in ("moved", "whole")]
    assert records[0]["best"] == records[1]["best"]
    assert (tmp_path / "moved" / records[0]["best_checkpoint"] / MANIFEST).is_file()


@pytest.mark.parametrize("stop", ["at its last step", "early", "without a checkpoint"])
def test_a_finished_run_that_is_resumed_does_nothing(attempt: Attempt, tmp_path: Path, stop: str) -> None:
    settings: dict[str, Any] = SAVES | {"lr_scheduler_type": "constant", "resume": "auto"}
    if stop == "early":
        settings |= {"early_stopping_patience": 1, "early_stopping_threshold": 10, "eval_steps": 1, "max_steps": 9}
        settings |= {"eval_data": write_rows(tmp_path / "rows" / "eval.jsonl", EVAL)}
    elif stop.startswith("without"):
        settings |= {"save_strategy": "no"}
    assert attempt(**settings)[0] == 0
    run = tmp_path / "run"
    before = content(run)
    for _ in range(2):
        code, said = attempt(**settings)
        assert code == 0
        assert "complete" in said
        assert content(run) == before
    if stop.startswith("without"):
        return
    final = weights(run)
    record.close(run, "running", {})  # killed between the last checkpoint and the end
    (run / "adapter_model.safetensors").unlink()
    code, said = attempt(**settings)
    assert code == 0, said
    assert weights(run) == final
    assert json.loads((run / "run.json").read_text())["result"]["steps"] == (2 if stop == "early" else 3)


def test_going_back_leaves_the_old_branch_aside(attempt: Attempt, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = SAVES | {"max_steps": 4, "save_total_limit": 3}
    assert attempt(**settings)[0] == 0
    final, metrics = weights(run), (run / "metrics.jsonl").read_text()
    code, said = attempt(resume_from_checkpoint=run / "checkpoint-2", **settings)
    assert code == 0
    assert "abandoned-1" in said
    assert sorted(path.name for path in run.glob("abandoned-1/*")) == ["checkpoint-3", "checkpoint-4"]
    assert sorted(path.name for path in run.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-3", "checkpoint-4"]
    assert weights(run) == final
    assert [json.loads(line)["step"] for line in metrics.splitlines()] == [step for (step,) in logged(run, "step")]


def test_another_runs_checkpoint_replaces_nothing_without_a_word(attempt: Attempt, tmp_path: Path) -> None:
    assert attempt(**SAVES)[0] == 0
    assert attempt(output_dir=tmp_path / "other", **SAVES)[0] == 0
    before = content(tmp_path / "other")
    settings = SAVES | {"output_dir": tmp_path / "other", "resume_from_checkpoint": tmp_path / "run" / "checkpoint-2"}
    code, said = attempt(**settings)
    assert code == 2
    assert "holds a run already" in said
    assert content(tmp_path / "other") == before
    assert attempt(overwrite_output_dir=True, **settings)[0] == 0
    assert sorted(path.name for path in (tmp_path / "other").glob("checkpoint-*")) == ["checkpoint-3"]
    assert weights(tmp_path / "other") == weights(tmp_path / "run")


def test_records_that_a_loss_of_power_has_torn(attempt: Attempt, tmp_path: Path) -> None:
    settings = SAVES | {"max_steps": 2}
    run = tmp_path / "run"
    assert attempt(**SAVES)[0] == 0
    whole = logged(run, "step", "loss")
    shutil.rmtree(run / "checkpoint-3")
    with (run / "metrics.jsonl").open("ab") as stream:
        stream.write(b'{"step": 4, "lo\0\0\0\0\0\0')
    (run / "run.json").write_bytes(b"\0" * 300)
    code, said = attempt(**settings | {"max_steps": 3, "resume": "auto"})
    assert code == 0, said
    assert "metrics.jsonl was torn" in said
    assert "run.json cannot be read" in said
    assert logged(run, "step", "loss") == whole


# ---- paths


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
