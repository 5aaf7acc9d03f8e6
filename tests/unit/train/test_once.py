"""What one process works out for all of a run on its machine, whatever becomes of that process."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from helpers import resolved_from, story_rows, write_rows
from tunesmith import notices
from tunesmith.errors import ConfigError, DataError, DataErrors, Interrupted, StorageError, TunesmithError
from tunesmith.train import checkpoint, once, prepare
from tunesmith.train.checkpoint import Batches
from tunesmith.train.once import once_per_machine
from tunesmith.train.start import starting_point

CHILD = """
import json, sys, time
from pathlib import Path
from tunesmith.errors import DataError, TunesmithError
from tunesmith.train.once import once_per_machine

def compute():
    print("computes", flush=True)
    sys.stdin.readline()  # until the test says go on
    if sys.argv[2] == "fails":
        raise DataError("is no row", where="rows.jsonl:3", remedy="look at it")
    return sys.argv[3]

print("asks", flush=True)
try:
    print(json.dumps(once_per_machine(Path(sys.argv[1]), "data", compute)))
except TunesmithError as error:
    print(error.exit_code, error.line())
"""

Child = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(autouse=True)
def ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """``ranks(R)`` makes this process go on as rank R of a run of two that has asked for nothing yet."""
    (tmp_path / "temp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temp"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("WORLD_SIZE", "2")

    def become(rank: int) -> None:
        monkeypatch.setenv("RANK", str(rank))
        once._calls.clear()
        notices.clear()

    become(0)
    return become


@pytest.fixture
def child(tmp_path: Path) -> Iterator[Child]:
    """``child(how, value)`` is a process of the run; it ends with the test."""
    running: list[subprocess.Popen[str]] = []

    def start(how: str = "computes", value: str = "") -> subprocess.Popen[str]:
        command = [sys.executable, "-c", CHILD, str(tmp_path / "run"), how, value]
        running.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.communicate()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def waits(process: subprocess.Popen[str]) -> None:
    """Return once the kernel says that the process waits for a lock of a file."""
    assert line(process) == "asks"
    while f" {process.pid} " not in "".join(
        entry for entry in Path("/proc/locks").read_text().splitlines(keepends=True) if "->" in entry
    ):
        assert process.poll() is None


needs_locks = pytest.mark.skipif(not Path("/proc/locks").exists(), reason="shows who waits for a lock on Linux alone")


@needs_locks
@pytest.mark.parametrize("how", ["computes", "fails"])
def test_one_computes_and_the_others_wait_for_it(child: Child, how: str) -> None:
    """An error reaches them too, with its address and exit code."""
    first = child(how, "first")
    assert [line(first), line(first)] == ["asks", "computes"]
    second = child(how, "second")
    waits(second)
    answer, _ = first.communicate("\n")
    assert answer.strip() == ('"first"' if how == "computes" else "3 rows.jsonl:3: is no row; look at it")
    assert second.communicate()[0] == answer


@needs_locks
def test_the_next_one_computes_when_the_first_is_killed(child: Child) -> None:
    first = child("computes", "first")
    assert [line(first), line(first)] == ["asks", "computes"]
    second = child("computes", "second")
    waits(second)
    first.kill()
    assert line(second) == "computes"
    assert second.communicate("\n")[0].strip() == '"second"'


def test_only_processes_of_the_same_start_share(
    tmp_path: Path, ranks: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    values = iter(range(100))

    def ask(rank: int, run: Path = tmp_path / "run") -> int:
        ranks(rank)
        value: int = once_per_machine(run, "data", lambda: next(values))
        return value

    assert [ask(0), ask(1)] == [0, 0]
    assert once_per_machine(tmp_path / "run", "data", lambda: next(values)) == 1  # asked for again by one process
    assert once_per_machine(tmp_path / "run", "other", lambda: next(values)) == 2
    assert ask(0, tmp_path / "elsewhere") == 3
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert [ask(1), ask(0)] == [4, 4]
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert [ask(0), ask(0)] == [5, 6]


@pytest.mark.parametrize("content", ["", "{", '{"start": "another", "known": {"data 1": {"value": 7}}}'])
def test_a_file_of_others_is_not_believed(tmp_path: Path, content: str) -> None:
    once._meeting_place(tmp_path / "run").write_text(content)
    assert once_per_machine(tmp_path / "run", "data", lambda: 1) == 1


def test_a_link_in_the_place_of_the_file_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("{}")
    once._meeting_place(tmp_path / "run").symlink_to(tmp_path / "precious")
    assert once_per_machine(tmp_path / "run", "data", lambda: 1) == 1
    assert (tmp_path / "precious").read_text() == "{}"


def test_a_value_that_holds_no_more_is_computed_again(tmp_path: Path, ranks: Callable[[int], None]) -> None:
    for rank, expected in ((0, 1), (1, 2)):
        ranks(rank)
        assert once_per_machine(tmp_path, "data", lambda: expected, holds=lambda value: value != 1) == expected  # noqa: B023


class OwnError(StorageError):
    """A kind of another module."""


PROBLEMS: list[TunesmithError] = [
    ConfigError("wrong"),
    DataErrors([DataError("one", where="f:1"), DataError("two", where="f:2", remedy="look")]),
    OwnError("full", where="disk"),
]


@pytest.mark.parametrize("problem", PROBLEMS)
def test_errors_reach_the_others_whole(tmp_path: Path, ranks: Callable[[int], None], problem: TunesmithError) -> None:
    def fail() -> None:
        raise problem

    found = []
    for rank in (0, 1):
        ranks(rank)
        with pytest.raises(type(problem).__mro__[rank and problem is PROBLEMS[2]]) as caught:
            once_per_machine(tmp_path, "data", fail if not rank else lambda: 1)
        found.append((caught.value.exit_code, caught.value.lines()))
    assert found[0] == found[1]


def test_a_signal_is_for_one_process(tmp_path: Path, ranks: Callable[[int], None]) -> None:
    def stop() -> None:
        raise Interrupted("SIGTERM", signal_number=15)

    with pytest.raises(Interrupted):
        once_per_machine(tmp_path, "data", stop)
    ranks(1)
    assert once_per_machine(tmp_path, "data", lambda: 1) == 1


# What is shared


@pytest.mark.parametrize("settings", [{}, {"cache": False}, {"eval_data": None, "dev_split": 0.2, "cache": False}])
@pytest.mark.parametrize("json_holds_rows", [True, False])
def test_one_process_tokenises(
    tmp_path: Path,
    stories_model: Path,
    ranks: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, object],
    json_holds_rows: bool,
) -> None:
    from tunesmith.model.tokenizer import load_tokenizer

    made = []
    write = prepare._write
    monkeypatch.setattr(prepare, "_write", lambda *args: made.append(args[3].name) or write(*args))
    if not json_holds_rows:
        monkeypatch.setattr(prepare.cache, "rows_to_json", lambda rows: None)
    files = {"train_data": story_rows(20), "eval_data": story_rows(3, seed=9)}
    names = {name: write_rows(tmp_path / f"{name}.jsonl", rows) for name, rows in files.items()}
    folders = {"cache_dir": str(tmp_path / "cache"), "output_dir": str(tmp_path / "run")}
    resolved = resolved_from(model_name_or_path=str(stories_model), **(names | folders | settings))
    tokenizer = load_tokenizer(resolved.config.model)
    found, said = [], []
    for rank in (0, 1):
        ranks(rank)
        found.append(prepare.prepare_data(resolved, tokenizer))
        said.append(notices.collected())
    assert sorted(made) == ["evaluation.arrow", "train.arrow"]
    one, other = found
    assert list(one.train) == list(other.train)
    assert list(one.evaluation) == list(other.evaluation)
    assert len(one.evaluation) > 0
    assert (one.first_row, one.eval_rows) == (other.first_row, other.eval_rows)
    assert one.train_ledger.to_dict() == other.train_ledger.to_dict()
    assert one.train_fingerprint == other.train_fingerprint
    assert said[0] == said[1]
    kept = json_holds_rows and "cache" not in settings
    assert any("is kept in" in text for text in said[0]) == kept


@pytest.mark.parametrize("damaged", [False, True])
def test_hashes_of_a_checkpoint_are_read_once(
    tmp_path: Path, ranks: Callable[[int], None], monkeypatch: pytest.MonkeyPatch, damaged: bool
) -> None:
    run = tmp_path / "run"
    for step in (2, 4):
        folder = run / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        (folder / "weights").write_text("x" * step)
        checkpoint.commit(folder, Batches(2, 2, 4))
    if damaged:
        (run / "checkpoint-4" / "weights").write_text("y" * 4)
    read = []
    sha256 = checkpoint._sha256
    monkeypatch.setattr(checkpoint, "_sha256", lambda path: read.append(path.parent.name) or sha256(path))
    resolved = resolved_from(
        model_name_or_path="m", train_data="d", output_dir=str(run), resume_from_checkpoint="latest"
    )
    steps = []
    for rank in (0, 1):
        ranks(rank)
        found = starting_point(resolved)
        assert found is not None
        steps.append(found.step)
    assert steps == [2, 2] if damaged else [4, 4]
    assert read == (["checkpoint-4", "checkpoint-2"] if damaged else ["checkpoint-4"])


def test_a_checkpoint_that_is_finished_meanwhile_is_looked_at_again(
    tmp_path: Path, ranks: Callable[[int], None]
) -> None:
    folder = tmp_path / "run" / "checkpoint-2"
    folder.mkdir(parents=True)
    resolved = resolved_from(
        model_name_or_path="m", train_data="d", output_dir=str(tmp_path / "run"), resume_from_checkpoint=str(folder)
    )
    with pytest.raises(StorageError, match="was not finished"):
        starting_point(resolved)
    checkpoint.commit(folder, Batches(2, 2, 4))
    ranks(1)
    found = starting_point(resolved)
    assert found is not None
    assert json.loads((folder / checkpoint.MANIFEST).read_text())["step"] == found.step == 2


def test_the_files_of_all_runs_go_with_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_the_end: list[Callable[[], None]] = []
    monkeypatch.setattr(once, "_ours", set())
    monkeypatch.setattr(once.atexit, "unregister", lambda function: at_the_end.clear())
    monkeypatch.setattr(once.atexit, "register", lambda function, *given: at_the_end.append(partial(function, *given)))
    for run in ("one", "other", "one"):
        assert once_per_machine(tmp_path / run, "data", lambda: 1) == 1
    assert len(list((tmp_path / "temp").iterdir())) == 2
    for function in at_the_end:
        function()
    assert list((tmp_path / "temp").iterdir()) == []
