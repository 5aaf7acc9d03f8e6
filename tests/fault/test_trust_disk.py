"""A full disk, what is lasting after a save, and folders that cannot be written, numbered as in the list of trust."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fault_helpers import SAVES, Attempt, content, then, weights
from tunesmith.report import record
from tunesmith.train import checkpoint, space
from tunesmith.train.checkpoint import MANIFEST


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
    monkeypatch.setattr("tunesmith.train.folder.record.begin", then(record.begin, lambda: free.__setitem__(0, 10)))
    code, said = attempt(**SAVES)
    assert code == 6
    assert "checkpoint-1 needs" in said
    assert json.loads((tmp_path / "run/run.json").read_text())["status"] == "failed"
    assert not list((tmp_path / "run").glob("checkpoint-*"))


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
