"""Whatever stands in the files of a run folder or an adapter, only errors of ours come out (see ``test_fuzz.py``)."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from tunesmith import notices
from tunesmith.config.names import leaf_paths
from tunesmith.config.resolve import schema_defaults
from tunesmith.errors import TunesmithError
from tunesmith.evaluate.journal import JOURNAL, Journal
from tunesmith.export.inference import settings_of
from tunesmith.model.adapter_config import read_lora_config
from tunesmith.model.source import ADAPTER_CONFIG
from tunesmith.report import belongings
from tunesmith.report.record import read_record
from tunesmith.train import checkpoint
from tunesmith.train.callbacks import keep_metrics_until
from tunesmith.train.contract import CONTRACT, changes, written_terms
from tunesmith.train.state_files import PROGRESS, STATE, check_states

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "15"))
fuzzed = hypothesis.settings(max_examples=EXAMPLES, deadline=None)

KEYS = [
    *leaf_paths(), "settings", "origins", "settings_fingerprint", "status", "files", "tracker_folders", "data",
    "result", "best", "best_checkpoint", "adapter", "folder", "checksum", "started_in", "step", "batches", "sha256",
    "facts", "versions", "accepted", "global_step", "log_history", "stateful_callbacks", "losses", "last_logged_step",
    "epoch", "total_steps", "r", "lora_alpha", "target_modules", "peft_type", "base_model_name_or_path", "index",
    "fingerprint", "rank_pattern", "modules_to_save", "layers_to_transform", "token_ids", "stopped", "template", "../x",
]  # fmt: skip
ODD = ["\0", "\ud800", "../x", "/etc/passwd", "~", "${x}", "running", "finished", "(a+)+$", "\x1b[2J", "*", "LORA"]
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 9),
    st.just(10**400),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(ODD),
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4)
)
objects = st.dictionaries(st.sampled_from(KEYS), values, max_size=6)
RECORD = {
    "settings": schema_defaults() | {"model.model_name_or_path": "m"},
    "settings_fingerprint": "x",
    "status": "running",
}

WHOLE = {"global_step": 2, "max_steps": 3, "log_history": [], "losses": [1.0], "last_logged_step": 1}


def texts(whole: dict[str, Any]) -> st.SearchStrategy[bytes]:
    """Files: any bytes, any JSON, and what a run writes with parts of it changed or its end cut off."""
    changed = objects.map(lambda found: json.dumps(whole | found).encode())
    return st.one_of(
        st.binary(max_size=40),
        values.map(lambda value: json.dumps(value).encode()),
        changed,
        st.tuples(changed, st.integers(0, 80)).map(lambda cut: cut[0][: max(0, len(cut[0]) - cut[1])]),
        st.just(b"[" * 200_000),
    )


@contextlib.contextmanager
def only_our_errors() -> Iterator[None]:
    notices.clear()
    with contextlib.suppress(TunesmithError):
        yield


@fuzzed
@hypothesis.given(text=texts(RECORD))
def test_records(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_bytes(text)
    for use in (read_record, belongings.is_record, belongings.belonging, belongings.foreign, belongings.check_finished,
                belongings.check_links, belongings.tracked_folders, belongings.heal):  # fmt: skip
        with only_our_errors():
            use(tmp_path)


@fuzzed
@hypothesis.given(text=texts({"step": 2, "batches": {}, "files": {}}))
def test_manifests(text: bytes, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-2"
    folder.mkdir(exist_ok=True)
    (folder / checkpoint.MANIFEST).write_bytes(text)
    with only_our_errors():
        assert checkpoint.problem(folder)
    with only_our_errors():
        belongings.has_checkpoint(tmp_path)


@pytest.mark.parametrize("name", [STATE, PROGRESS])
@fuzzed
@hypothesis.given(text=texts(WHOLE))
def test_states(name: str, text: bytes, tmp_path: Path) -> None:
    for other in (STATE, PROGRESS):
        (tmp_path / other).write_bytes(text if other == name else b"{}")
    with only_our_errors():
        check_states(tmp_path)


@fuzzed
@hypothesis.given(text=texts({"settings": {}, "facts": {"total_steps": 2}, "versions": {}}))
def test_terms(text: bytes, tmp_path: Path) -> None:
    (tmp_path / CONTRACT).write_bytes(text)
    with only_our_errors():
        changes(written_terms(tmp_path), {"settings": {}, "facts": {"total_steps": 4}, "versions": {}})


@fuzzed
@hypothesis.given(lines=st.lists(texts({"step": 1, "loss": 0.5, "fingerprint": "x", "index": 0}), max_size=4))
def test_logs(lines: list[bytes], tmp_path: Path) -> None:
    for name in ("metrics.jsonl", JOURNAL):
        (tmp_path / name).write_bytes(b"\n".join(lines))
    with only_our_errors():
        keep_metrics_until(tmp_path, 3)
    with only_our_errors():
        Journal(tmp_path / JOURNAL).open({"a": 1})


@fuzzed
@hypothesis.given(text=texts({"peft_type": "LORA", "r": 2, "base_model_name_or_path": "m"}))
def test_adapters_and_what_lies_beside_them(text: bytes, tmp_path: Path) -> None:
    for name in (ADAPTER_CONFIG, "inference.json"):
        (tmp_path / name).write_bytes(text)
    with only_our_errors():
        read_lora_config(tmp_path)
    with only_our_errors():
        settings_of(tmp_path)
