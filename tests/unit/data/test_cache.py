"""Kept tokenised data: found again only when everything that decides it is the same, and only when it is whole."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from helpers import resolved_from, story_rows, write_rows
from tunesmith import notices
from tunesmith.config.schema import DataSection
from tunesmith.data import cache
from tunesmith.data.batching import BatchRows
from tunesmith.data.masking import IGNORE_INDEX, Example
from tunesmith.data.row import Row
from tunesmith.data.store import ARROW_TYPES, CHUNK, SCHEMA, ExampleStore, ExampleWriter
from tunesmith.errors import DataError, StorageError
from tunesmith.train.prepare import PreparedData, prepare_data


def example(index: int, weights: list[float] | None = None) -> Example:
    ids = list(range(index, index + 1 + index % 7))
    return Example(ids, [IGNORE_INDEX, *ids[1:]], f"f.jsonl:{index + 1}", 1, 1, len(ids), None, weights)


# The store


@pytest.mark.parametrize("number", [0, 1, CHUNK, 2 * CHUNK + 17])
def test_examples_come_back_as_they_were(tmp_path: Path, number: int) -> None:
    made = [example(index) for index in range(number)]
    if number > 1:
        made[1] = dataclasses.replace(made[1], weights=[0.5, 2.0], cut="truncate_prompt")
    with ExampleWriter(tmp_path / "e.arrow") as writer:
        for item in made:
            writer.write(item)
    store = ExampleStore(tmp_path / "e.arrow")
    assert list(store) == made
    assert store.lengths().tolist() == [len(item.input_ids) for item in made]
    assert store.weighted == (number > 1)
    if number:
        assert store[-1] == made[-1]
        assert store[:3] == made[:3]
        assert list(BatchRows(store, "packed", 32)) == list(BatchRows(made, "packed", 32))
    with pytest.raises(IndexError):
        store[number]


def test_every_field_of_an_example_is_stored() -> None:
    assert SCHEMA.names == [field.name for field in dataclasses.fields(Example)]
    assert len(SCHEMA.names) >= 7
    assert set(map(str, (field.type for field in dataclasses.fields(Example)))) <= ARROW_TYPES.keys()


def test_the_fingerprint_depends_on_tokens_labels_and_weights_alone(tmp_path: Path) -> None:
    def fingerprint(*made: Example) -> str:
        with ExampleWriter(tmp_path / "e.arrow") as writer:
            for item in made:
                writer.write(item)
        return writer.fingerprint

    base = fingerprint(example(3), example(4))
    assert base == fingerprint(dataclasses.replace(example(3), origin="elsewhere:9"), example(4))
    moved = [dataclasses.replace(example(3), input_ids=[3, 4, 5], labels=[IGNORE_INDEX, 4, 5]), example(4)]
    others = [
        fingerprint(example(4), example(3)),
        fingerprint(example(3)),
        fingerprint(dataclasses.replace(example(3), labels=[IGNORE_INDEX] * 2 + example(3).labels[2:]), example(4)),
        fingerprint(example(3, [1.0, 1.0, 0.5, 1.0]), example(4)),
        fingerprint(*moved),
    ]
    assert len({base, *others}) == 6


def test_a_file_that_is_no_store_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "e.arrow"
    with pytest.raises(StorageError, match="cannot be read"):
        ExampleStore(path)
    path.write_bytes(b"not arrow at all")
    with pytest.raises(StorageError, match="cannot be read"):
        ExampleStore(path)


# Keys


@pytest.fixture
def section(tmp_path: Path) -> DataSection:
    train = write_rows(tmp_path / "train.jsonl", story_rows(20))
    held = write_rows(tmp_path / "eval.jsonl", story_rows(3, seed=9))
    (tmp_path / "template.txt").write_text("Q: {query} A: {output}")
    return DataSection(train_data=train, eval_data=held, template=str(tmp_path / "template.txt"))


OTHER: dict[str, Any] = {
    "train_data": ["{folder}/train.jsonl", "{folder}/eval.jsonl"], "eval_data": None, "subset": "x", "train_split": "y",
    "eval_split": "z", "dev_split": 0.5, "format": "text", "columns": {"prompt": "q"}, "mix_weights": [1.0],
    "roles": {"bot": "assistant"}, "turn_order": "merge", "template_date": "2020-01-02", "unwritten": "report",
    "train_thoughts": False,
    "mix_stop": "all_exhausted", "template": None, "instruction": "Be brief.", "instruction_in_prompt": True,
    "completion_start": "A:", "loss_on": "all", "special_in_content": "error", "add_bos": False, "max_length": 7,
    "row_weights": False, "new_tokens": ["<a>"], "new_special_tokens": ["<b>"], "shuffle_buffer": 3,
    "dev_group_by": "a", "dev_stratify_by": "a",
    "too_long": "drop", "empty_completion": "drop", "limit": 3, "eval_limit": 1, "shuffle_seed": 1,
    "duplicates": "drop", "min_trained_share": 0.5, "max_dropped": 0.5, "max_cut": 0.5, "max_duplicates": 0.25,
    "allow_leak": True, "streaming": True, "chat_template_kwargs": {"enable_thinking": True},
}  # fmt: skip


def test_every_setting_that_matters_changes_the_key(tmp_path, section, stories_tokenizer) -> None:
    names = set(DataSection.model_fields) - cache.MECHANICS
    assert names <= OTHER.keys(), "a new setting of data needs a value here"
    keys = {cache.key_of(section, stories_tokenizer)}
    for name in names:
        value = OTHER[name]
        value = [text.format(folder=tmp_path) for text in value] if name == "train_data" else value
        keys.add(cache.key_of(section.model_copy(update={name: value}), stories_tokenizer))
    assert None not in keys
    assert len(keys) == len(names) + 1 > 30
    same = section.model_copy(update={"cache_dir": "elsewhere", "num_proc": 4, "cache": False})
    assert cache.key_of(same, stories_tokenizer) == cache.key_of(section, stories_tokenizer)


def test_contents_of_files_tokenizer_and_version_change_the_key(
    tmp_path: Path, section: DataSection, stories_model: Path, mistral_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoTokenizer

    def key(tokenizer: Any) -> str | None:
        return cache.key_of(section, tokenizer)

    tokenizer = AutoTokenizer.from_pretrained(stories_model)
    keys = [key(tokenizer)]
    assert key(AutoTokenizer.from_pretrained(stories_model)) == keys[0]
    for name in ("train.jsonl", "eval.jsonl", "template.txt"):
        path = tmp_path / name
        before = path.read_text()
        stat = path.stat()
        path.write_text(before.replace("u", "v", 1))
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # time and size stay, contents do not
        keys.append(key(tokenizer))
        path.write_text(before)
    assert key(tokenizer) == keys[0]
    keys.append(key(mistral_tokenizer))
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    keys.append(key(tokenizer))
    tokenizer.add_tokens(["<new>"])
    keys.append(key(tokenizer))
    monkeypatch.setattr(cache, "__version__", "another")
    keys.append(key(tokenizer))
    assert None not in keys
    assert len(set(keys)) == len(keys) == 8


def test_a_hub_data_set_has_no_key(stories_tokenizer: Any) -> None:
    assert cache.key_of(DataSection(train_data="somebody/rows"), stories_tokenizer) is None


# Preparing


def prepare(tmp_path: Path, model: Path, **settings: Any) -> tuple[PreparedData, list[str]]:
    """Prepare under settings; what was said comes along."""
    from tunesmith.model.tokenizer import load_tokenizer

    notices.clear()
    defaults = {
        "model_name_or_path": str(model),
        "train_data": str(tmp_path / "train.jsonl"),
        "eval_data": str(tmp_path / "eval.jsonl"),
        "cache_dir": str(tmp_path / "cache"),
        "max_length": 64,
        "too_long": "truncate_completion",
    }
    resolved = resolved_from(**(defaults | settings))
    data = prepare_data(resolved, load_tokenizer(resolved.config.model))
    return data, notices.collected()


@pytest.fixture
def files(tmp_path: Path) -> Path:
    write_rows(tmp_path / "train.jsonl", story_rows(40))
    write_rows(tmp_path / "eval.jsonl", story_rows(5, seed=9))
    return tmp_path


def taken(said: list[str]) -> bool:
    return any("is taken from" in text for text in said)


def same(one: PreparedData, other: PreparedData) -> bool:
    names = ("eval_rows", "first_row", "train_fingerprint", "eval_fingerprint")
    ledgers = [(data.train_ledger.to_dict(), data.eval_ledger.to_dict()) for data in (one, other)]
    return (
        list(one.train) == list(other.train)
        and list(one.evaluation) == list(other.evaluation)
        and all(getattr(one, name) == getattr(other, name) for name in names)
        and ledgers[0] == ledgers[1]
    )


@pytest.mark.parametrize(
    "settings", [{}, {"eval_data": None, "dev_split": 0.2, "shuffle_seed": 3}, {"eval_data": None}, {"limit": 7}]
)
def test_the_second_time_everything_comes_from_disk_and_is_the_same(files, stories_model, settings) -> None:
    first, said_first = prepare(files, stories_model, **settings)
    second, said_second = prepare(files, stories_model, **settings)
    uncached, said_third = prepare(files, stories_model, cache=False, **settings)
    assert (taken(said_first), taken(said_second), taken(said_third)) == (False, True, False)
    assert len(first.train) > 0
    assert same(first, second)
    assert same(first, uncached)
    assert {text for text in said_first if "rows are read" in text} <= set(said_second)
    assert second.builder.format_of(second.first_row) == "prompt_completion"
    assert len(cache.entries(files / "cache")) == 1


def test_a_changed_file_is_never_served_stale(files, stories_model) -> None:
    first, _ = prepare(files, stories_model)
    write_rows(files / "train.jsonl", [*story_rows(39), {"prompt": "New", "completion": " row."}])
    second, said = prepare(files, stories_model)
    assert not taken(said)
    assert not same(first, second)
    assert second.train[39].origin.endswith("train.jsonl:40")


def _rewrite(path: Path, content: bytes) -> None:
    path.unlink()  # the file that is still open elsewhere stays as it was
    path.write_bytes(content)


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    _rewrite(path, bytes(content))


DAMAGE = {
    "flipped bit": lambda place: _flip(place / "train.arrow"),
    "cut file": lambda place: _rewrite(place / "train.arrow", (place / "train.arrow").read_bytes()[:-64]),
    "lost file": lambda place: (place / "evaluation.arrow").unlink(),
    "cut account": lambda place: _rewrite(place / "about.json", (place / "about.json").read_bytes()[:-9]),
    "no account": lambda place: (place / "about.json").unlink(),
    "account of another": lambda place: _rewrite(place / "about.json", b'{"key": "x", "files": {}}'),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_data_is_not_used(files, stories_model, damage) -> None:
    first, _ = prepare(files, stories_model)
    (entry,) = cache.entries(files / "cache")
    DAMAGE[damage](entry.folder)
    second, said = prepare(files, stories_model)
    assert not taken(said)
    assert any("damaged" in text for text in said)
    assert same(first, second)
    third, said = prepare(files, stories_model)
    assert taken(said)
    assert same(first, third)


def test_a_run_with_errors_keeps_nothing(files, stories_model) -> None:
    with pytest.raises(DataError):
        prepare(files, stories_model, too_long="error", max_length=8)
    assert list((files / "cache").iterdir()) == []


def test_what_a_killed_process_left_is_not_found_and_can_be_cleared(files, stories_model) -> None:
    stage = cache.new_stage(files / "cache")
    (stage / "train.arrow").write_bytes(b"half")
    assert cache.entries(files / "cache") == []
    old = cache.new_stage(files / "cache")
    os.utime(old, (0, 0))
    prepare(files, stories_model)
    assert (stage.exists(), old.exists()) == (True, False)
    (files / "cache" / "mine.txt").write_text("not ours")
    number, num_bytes = cache.clear(files / "cache")
    assert number == 2
    assert num_bytes > 1000
    assert [path.name for path in (files / "cache").iterdir()] == ["mine.txt"]


def test_a_folder_that_cannot_be_written(files, stories_model, monkeypatch) -> None:
    (files / "file").write_text("")
    with pytest.raises(StorageError, match="cache_dir"):
        prepare(files, stories_model, cache_dir=str(files / "file"))
    monkeypatch.setenv("TUNESMITH_CACHE", str(files / "file"))
    data, said = prepare(files, stories_model, cache_dir=None)
    assert len(data.train) == 40
    assert any("is not kept" in text for text in said)


def test_rows_that_json_cannot_hold_are_not_kept() -> None:
    row = Row({"text": "a", "when": datetime.date(2024, 1, 1)}, "f.parquet", 1)
    assert cache.rows_to_json([row]) is None
    assert cache.rows_to_json([Row({"n": float("nan")}, "f", 1)]) is None
    assert cache.rows_to_json([Row({1: "number as key"}, "f", 1)]) is None
    good = [Row({"text": "é\u2028\U0001f600", "n": None, "l": [1, 2.5, {"x": True}]}, "f.jsonl", 7)]
    plain = cache.rows_to_json(good)
    assert plain is not None
    assert cache.rows_from_json(json.loads(json.dumps(plain))) == good


def test_two_processes_that_finish_together_leave_one_whole_copy(files, stories_model) -> None:
    first, _ = prepare(files, stories_model)
    (entry,) = cache.entries(files / "cache")
    stage = cache.new_stage(files / "cache")
    (stage / "train.arrow").write_bytes(b"another process was faster")
    assert cache.keep(files / "cache", entry.about["key"], stage, {}) == entry.folder
    assert not stage.exists()
    second, said = prepare(files, stories_model)
    assert taken(said)
    assert same(first, second)


def test_threads_change_nothing(files, stories_model) -> None:
    one, _ = prepare(files, stories_model, cache=False)
    many, _ = prepare(files, stories_model, cache=False, num_proc=2)
    assert same(one, many)
    assert os.environ["TOKENIZERS_PARALLELISM"] == "false"


def test_the_backend_gives_the_ids_that_the_tokenizer_gives(tokenizer: Any) -> None:
    from tunesmith.data.encoding import Encoder

    encoder = Encoder(tokenizer)
    texts = ["", " ", "Hello world", "\n\n a", f"x{tokenizer.eos_token}y", "é\u2028\U0001f600 中文", "a" * 3000]
    for split in (False, True):
        expected = tokenizer(texts, add_special_tokens=False, split_special_tokens=split)["input_ids"]
        assert encoder._call(texts, split) == expected


# Memory

CHILD = """
import sys, torch
from pathlib import Path
from helpers import resolved_from
from tunesmith.model.memory.peak import peak_memory
from tunesmith.model.tokenizer import load_tokenizer
from tunesmith.train.prepare import prepare_data
model, rows, cache = sys.argv[1:]
resolved = resolved_from(model_name_or_path=model, train_data=rows, cache_dir=cache)
data = prepare_data(resolved, load_tokenizer(resolved.config.model))
print(len(data.train), peak_memory(torch.device("cpu")))
"""


def _peak(folder: Path, model: Path, number: int) -> float:
    """Peak resident memory of a process that prepares ``number`` rows, in MiB."""
    rows = folder / f"{number}.jsonl"
    with rows.open("w") as file:
        for index in range(number):
            file.write(json.dumps({"prompt": f"Row {index} of many:", "completion": f" it is {index}."}) + "\n")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    command = [sys.executable, "-c", CHILD, str(model), str(rows), str(folder / "cache")]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    kept, peak = map(int, result.stdout.split()[-2:])
    assert kept == number
    return peak / 2**20


@pytest.mark.slow
def test_memory_hardly_grows_with_the_number_of_rows(tmp_path: Path, stories_model: Path) -> None:
    """At most about 1 KiB a row: its digest, for the search for duplicates, and the pages of the file lately used."""
    small, large = _peak(tmp_path, stories_model, 2_000), _peak(tmp_path, stories_model, 32_000)
    assert large - small <= 30
    assert large <= 1024
