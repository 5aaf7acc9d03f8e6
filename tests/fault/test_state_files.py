"""Checkpoints whose files are whole and hold something else than a run writes; links and pipes in a run folder.

The manifest of such a checkpoint is right: somebody else wrote it, or another library. Nothing is trained here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers import resolved_from
from tunesmith.config.resolve import schema_defaults
from tunesmith.errors import ConfigError, StorageError, UnsafeError
from tunesmith.evaluate.journal import Journal
from tunesmith.evaluate.subject import find_subject
from tunesmith.report import belongings
from tunesmith.report.folder import append_jsonl, read_json, read_jsonl, repair_jsonl, write_json, write_text
from tunesmith.train import checkpoint
from tunesmith.train.callbacks import keep_metrics_until
from tunesmith.train.contract import changes, written_terms
from tunesmith.train.start import nothing_left
from tunesmith.train.state_files import PROGRESS, STATE, check_states, usable

HOLDS = {
    STATE: {
        "global_step": 2, "max_steps": 4, "epoch": 0.5, "num_train_epochs": 1, "train_batch_size": 2,
        "log_history": [{"step": 1, "loss": 1.0}], "best_global_step": None, "best_metric": None,
        "best_model_checkpoint": None, "stateful_callbacks": {},
    },
    PROGRESS: {"losses": [0.5], "last_logged_step": 1},
}  # fmt: skip
ODD = {
    STATE: {
        "global_step": ["x", -5, 10**30, None, True, 3], "max_steps": [None, "4"], "epoch": ["z"],
        "log_history": [{}, [5], [{"loss": 1.0}], None], "best_metric": ["x"], "best_model_checkpoint": [5],
        "stateful_callbacks": [[], None],
    },
    PROGRESS: {"losses": ["x", [], ["a"], None], "last_logged_step": [None, "1", -1]},
}  # fmt: skip


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    """Makes a checkpoint folder whose state files are whole but for what is given."""

    def write(name: str = STATE, content: Any = None, **changed: Any) -> Path:
        folder = tmp_path / "checkpoint-2"
        for file, values in HOLDS.items():
            write_json(folder / file, values | changed if file == name else values)
        if content is not None:
            (folder / name).write_text(content)
        return folder

    return write


def test_states_that_a_run_writes(written: Callable[..., Path]) -> None:
    check_states(written())


@pytest.mark.parametrize("file", ODD)
def test_states_that_no_run_writes(file: str, written: Callable[..., Path]) -> None:
    for name, values in ODD[file].items():
        for value in values:
            with pytest.raises(StorageError, match=file):
                check_states(written(file, **{name: value}))
    for content in ("[]", "{}", "null", '"x"', '{"a": NaN}', "[" * 100_000, "", "9" * 5000, "\ud800"):
        folder = written(file)
        (folder / file).write_bytes(content.encode("utf-8", "surrogatepass"))
        with pytest.raises(StorageError, match=file):
            check_states(folder)


def test_what_a_library_raises_over_a_checkpoint_is_one_error(tmp_path: Path) -> None:
    for error in (KeyError("x"), TypeError("x"), RuntimeError("x"), EOFError()):
        with pytest.raises(StorageError, match="its weights cannot be used"), usable(tmp_path, "weights"):
            raise error
    no_memory: list[Exception] = [RuntimeError("CUDA out of memory"), MemoryError()]
    for folder, error in ((None, KeyError("x")), *((tmp_path, one) for one in no_memory)):
        with pytest.raises(type(error)), usable(folder, "weights"):
            raise error


def test_terms_that_no_run_writes(tmp_path: Path) -> None:
    terms = {"settings": {}, "facts": {"total_steps": 4}, "versions": {}}
    for odd in ({"accepted": 5}, {"facts": []}, {"versions": None}):
        write_json(tmp_path / "contract.json", terms | odd)
        with pytest.raises(StorageError, match="damaged"):
            written_terms(tmp_path)
    assert changes(terms | {"facts": {"total_steps": "x"}}, terms)


def test_names_that_are_not_utf_8_can_be_recorded(tmp_path: Path) -> None:
    """As a working directory may have them."""
    write_json(tmp_path / "run.json", {"started_in": "/home/\udcff", "other": "é"})
    append_jsonl(tmp_path / "metrics.jsonl", {"a": "\ud800"})
    write_text(tmp_path / "README.md", "\udcff")
    assert read_json(tmp_path / "run.json") == {"started_in": "/home/\udcff", "other": "é"}
    assert list(read_jsonl(tmp_path / "metrics.jsonl")) == [{"a": "\ud800"}]


# links and pipes ------------------------------------------------------------------------------------------------------


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine"
    path.write_text("mine")
    return path


def test_nothing_is_written_through_a_link_or_into_a_pipe(tmp_path: Path, mine: Path) -> None:
    (tmp_path / ".run.json.part").symlink_to(mine)
    write_text(tmp_path / "run.json", "ours")
    (tmp_path / "link").symlink_to(mine)
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe"):
        with pytest.raises(StorageError, match=name):
            append_jsonl(tmp_path / name, {"a": 1})
    assert (mine.read_text(), (tmp_path / "run.json").read_text()) == ("mine", "ours")


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "run.json")
    (tmp_path / "endless").symlink_to("/dev/zero")
    for read in (read_json, repair_jsonl, lambda path: Journal(path).open({})):
        for name in ("run.json", "endless"):
            with pytest.raises(StorageError, match="pipe or a device"):
                read(tmp_path / name)
    assert not belongings.is_record(tmp_path / "run.json")


def test_every_whole_line_of_a_torn_log_stays(tmp_path: Path) -> None:
    path, notice = tmp_path / "metrics.jsonl", "\u2028"
    good = [{"step": 1, "text": notice}, {"step": 2}, {"step": "x"}, {"step": 9}]
    lines = [json.dumps(one, ensure_ascii=False).encode() + b"\n" for one in good]
    path.write_bytes(lines[0] + b"\0" * 30 + b"\n" + lines[1] + b"5\n[1]\n" + lines[2] + b"[" * 90_000 + b"\n"
                     + lines[3] + b'{"step": 10, "lo')  # fmt: skip
    keep_metrics_until(tmp_path, 3)
    assert list(read_jsonl(path)) == good[:3]


def a_run(folder: Path, **facts: Any) -> None:
    settings = schema_defaults() | {"model.model_name_or_path": "m"}
    write_json(folder / "run.json", {"settings": settings, "settings_fingerprint": "x", "status": "running"} | facts)


def test_a_run_folder_with_links_is_neither_continued_nor_its_own(tmp_path: Path, mine: Path) -> None:
    run = tmp_path / "run"
    a_run(run)
    (run / "checkpoint-2").symlink_to(tmp_path)
    belongings.check_links(run)
    (run / "evaluation").mkdir()
    (run / "evaluation" / "metrics.json").symlink_to(mine)
    assert belongings.foreign(run) == ["checkpoint-2", "evaluation/metrics.json"]
    with pytest.raises(UnsafeError, match=r"evaluation/metrics\.json: is a link"):
        belongings.check_links(run)
    belongings.remove(run)
    assert mine.read_text() == "mine"


def test_no_evaluation_is_written_through_a_link(tmp_path: Path) -> None:
    a_run(tmp_path / "run", status="finished")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run" / "evaluation").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UnsafeError, match="is a link"):
        find_subject(tmp_path / "run")


def test_of_a_linked_checkpoint_the_link_alone_is_removed(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    write_json(theirs / checkpoint.MANIFEST, {})
    (tmp_path / "run").mkdir()
    for step in (1, 2):
        (tmp_path / "run" / f"checkpoint-{step}").symlink_to(theirs)
    checkpoint.rotate(tmp_path / "run", 1, None)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["checkpoint-2"]
    assert (theirs / checkpoint.MANIFEST).is_file()


def test_a_folder_upwards_is_not_removed_after_a_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("a/../b/c")
    with nothing_left(folder):
        folder.mkdir(parents=True)
    assert tmp_path.is_dir()
    assert list(tmp_path.iterdir()) == []


def test_no_run_lies_in_what_another_run_removes(tmp_path: Path) -> None:
    a_run(tmp_path / "run")
    for inside in ("checkpoint-3", "checkpoint-3/mine", "evaluation/mine", ".replaced"):
        with pytest.raises(ConfigError, match="another run writes"):
            resolved_from(model_name_or_path="m", output_dir=str(tmp_path / "run" / inside))
    for beside in ("run/mine", "checkpoint-3", "run/checkpoints/mine"):
        resolved_from(model_name_or_path="m", output_dir=str(tmp_path / beside))
