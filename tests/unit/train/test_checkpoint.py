"""Checkpoints: when one is complete, which is the newest, what may go."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tunesmith import notices
from tunesmith.errors import StorageError
from tunesmith.train import checkpoint
from tunesmith.train.checkpoint import MANIFEST, Batches, Checkpoint

BATCHES = Batches(2, 3, 12)


@pytest.fixture(autouse=True)
def clean() -> None:
    notices.clear()


def written(run: Path, name: str, *, complete: bool = True) -> Path:
    """A checkpoint with a file beside the manifest and one in a folder of its own."""
    folder = run / name
    (folder / "states").mkdir(parents=True)
    (folder / "weights.bin").write_bytes(b"weights")
    (folder / "states" / "rank_0.bin").write_bytes(b"states")
    if complete:
        checkpoint.commit(folder, BATCHES)
    return folder


def names(run: Path) -> list[str]:
    return [found.path.name for found in checkpoint.list_checkpoints(run)]


def test_the_manifest_names_every_file_nested_ones_too(tmp_path: Path) -> None:
    folder = written(tmp_path, "checkpoint-7")
    checkpoint.commit(folder, BATCHES)  # again: a manifest does not name itself
    manifest = json.loads((folder / MANIFEST).read_text())
    assert sorted(manifest["files"]) == ["states/rank_0.bin", "weights.bin"]
    assert manifest["step"] == 7
    assert checkpoint.batches_of(Checkpoint(folder, 7)) == BATCHES
    assert checkpoint.problem(folder) is None


@pytest.mark.parametrize("name", ["weights.bin", "states/rank_0.bin"])
def test_a_file_that_is_gone_or_changed_is_named(tmp_path: Path, name: str) -> None:
    folder = written(tmp_path, "checkpoint-7")
    (folder / name).write_bytes(b"others")
    assert checkpoint.problem(folder) == f"{name} has changed since it was written"
    (folder / name).unlink()
    assert checkpoint.problem(folder) == f"{name} is missing"


@pytest.mark.parametrize(
    "manifest", ["{", "[]", "{}", '{"files": {}}', '{"files": {}, "batches": {"rows": 1}}', '{"batches": {}}']
)
def test_a_damaged_manifest_is_one(tmp_path: Path, manifest: str) -> None:
    folder = written(tmp_path, "checkpoint-7")
    (folder / MANIFEST).write_text(manifest)
    assert checkpoint.problem(folder) == "manifest.json is damaged"


def test_what_is_no_checkpoint_or_not_finished(tmp_path: Path) -> None:
    assert checkpoint.problem(tmp_path / "checkpoint-1") == "no such folder"
    folder = written(tmp_path, "checkpoint-7", complete=False)
    assert checkpoint.problem(folder) == "it was not finished (manifest.json is missing)"


def test_checkpoints_are_in_the_order_of_their_steps_not_of_their_letters(tmp_path: Path) -> None:
    for name in ("checkpoint-10", "checkpoint-9", "checkpoint-100", "checkpoint-2-old", "checkpoint-", "xcheckpoint-3"):
        written(tmp_path, name)
    assert names(tmp_path) == ["checkpoint-9", "checkpoint-10", "checkpoint-100"]
    assert [found.step for found in checkpoint.list_checkpoints(tmp_path)] == [9, 10, 100]
    assert checkpoint.find(tmp_path, "latest") == Checkpoint(tmp_path / "checkpoint-100", 100)
    assert checkpoint.step_of(tmp_path / "checkpoint-2-old") == checkpoint.step_of(tmp_path / "best") == 0


@pytest.mark.parametrize("asked", [None, "false", "None", "", "FALSE"])
def test_nothing_asked_is_a_fresh_start(tmp_path: Path, asked: str | None) -> None:
    written(tmp_path, "checkpoint-1")
    assert checkpoint.find(tmp_path, asked) is None
    assert notices.collected() == []


@pytest.mark.parametrize("asked", ["latest", "true", "True", "auto"])
def test_the_latest_that_can_be_trusted_is_taken(tmp_path: Path, asked: str) -> None:
    assert checkpoint.find(tmp_path, asked) is None
    written(tmp_path, "checkpoint-1", complete=False)
    assert checkpoint.find(tmp_path, asked) is None
    assert [text for text in notices.collected() if "training starts from the beginning" in text]
    good = written(tmp_path, "checkpoint-9")
    notices.clear()
    assert checkpoint.find(tmp_path, asked) == Checkpoint(good, 9)
    assert notices.collected() == []
    (written(tmp_path, "checkpoint-10") / "weights.bin").unlink()
    written(tmp_path, "checkpoint-11", complete=False)
    assert checkpoint.find(tmp_path, asked) == Checkpoint(good, 9)
    (told,) = notices.collected()
    assert "checkpoint-11: it was not finished" in told
    assert "checkpoint-10: weights.bin is missing" in told
    assert told.endswith("continuing from checkpoint-9")
    (good / "weights.bin").unlink()
    with pytest.raises(StorageError, match=r"no checkpoint can be trusted .*checkpoint-10.*checkpoint-9") as caught:
        checkpoint.find(tmp_path, asked)
    assert caught.value.where == str(tmp_path)


def test_the_step_of_a_named_folder_is_its_manifests(tmp_path: Path) -> None:
    """A checkpoint that somebody copied under another name continues at its own step."""
    folder = written(tmp_path, "checkpoint-7")
    for name in ("kept", "checkpoint-99"):
        shutil.copytree(folder, tmp_path / name)
        assert checkpoint.find(tmp_path, str(tmp_path / name)) == Checkpoint(tmp_path / name, 7)


def test_a_named_folder_that_cannot_be_trusted_is_refused(tmp_path: Path) -> None:
    written(tmp_path, "checkpoint-1")
    asked = str(tmp_path / "checkpoint-3")
    with pytest.raises(StorageError, match="cannot resume: no such folder") as caught:
        checkpoint.find(tmp_path, asked)
    assert caught.value.where == asked


def test_who_asks_decides_what_is_trusted(tmp_path: Path) -> None:
    written(tmp_path, "checkpoint-1"), written(tmp_path, "checkpoint-2")
    found = checkpoint.find(tmp_path, "latest", lambda folder: "bad" if folder.name == "checkpoint-2" else None)
    assert found == Checkpoint(tmp_path / "checkpoint-1", 1)
    with pytest.raises(StorageError, match="bad"):
        checkpoint.find(tmp_path, str(tmp_path / "checkpoint-2"), lambda folder: "bad")


@pytest.mark.parametrize(
    ("limit", "best", "left"),
    [
        (None, None, [2, 9, 10, 11]), (1, None, [11]), (2, None, [10, 11]), (2, 2, [2, 11]), (3, 2, [2, 10, 11]),
        (3, 11, [9, 10, 11]), (1, 2, [2, 11]), (9, None, [2, 9, 10, 11]),
    ],
)  # fmt: skip
def test_the_oldest_go_but_the_newest_and_the_best_stay(
    tmp_path: Path, limit: int | None, best: int | None, left: list[int]
) -> None:
    for step in (9, 10, 2, 11):
        written(tmp_path, f"checkpoint-{step}")
    checkpoint.rotate(tmp_path, limit, None if best is None else tmp_path / f"checkpoint-{best}")
    assert names(tmp_path) == [f"checkpoint-{step}" for step in left]


def test_nothing_to_rotate(tmp_path: Path) -> None:
    checkpoint.rotate(tmp_path, 1, None)
    assert names(tmp_path) == []


def test_a_removal_cut_short_leaves_nothing_that_looks_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill between two files: whichever is removed last, the manifest went first."""
    folder = written(tmp_path, "checkpoint-7")

    def killed(path: Path, *_: Any, **__: Any) -> None:
        assert path == folder
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.remove(folder)
    assert checkpoint.problem(folder) == "it was not finished (manifest.json is missing)"
    assert checkpoint.find(tmp_path, "latest") is None
    monkeypatch.undo()
    checkpoint.remove(folder)
    assert not folder.exists()
