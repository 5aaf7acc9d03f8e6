"""``hf://``: the hub's own file system, over HTTP, with a hub on this machine."""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pyarrow
import pyarrow.parquet
import pytest
from huggingface_hub import HfFileSystem, constants, file_download

from hub_stand_in import Hub, served
from row_files import GOOD, refusal
from tunesmith.data.rows import read_rows
from tunesmith.errors import DataError

Serve = Callable[..., Hub]
URL = "hf://datasets/me/rows"


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Put a hub in the place of the real one."""
    with ExitStack() as stack:

        def begin(token: str | None = None, **files: bytes) -> Hub:
            hub = stack.enter_context(
                served(Hub({name.replace("__", "/").replace("_", "."): body for name, body in files.items()}, token))
            )
            template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
            monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
            monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
            monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
            if hasattr(file_download, "HUGGINGFACE_CO_URL_TEMPLATE"):
                monkeypatch.setattr(file_download, "HUGGINGFACE_CO_URL_TEMPLATE", template)
            HfFileSystem.clear_instance_cache()
            return hub

        yield begin
        HfFileSystem.clear_instance_cache()


def test_files_patterns_and_folders_of_a_data_set(serve: Serve) -> None:
    table = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": ["p"]}), table)
    serve(data__train_jsonl=GOOD, data__test_jsonl=GOOD, more_jsonl_gz=gzip.compress(GOOD), t_parquet=table.getvalue())
    named = read_rows(f"{URL}/data/train.jsonl")
    assert [row.where for row in named] == [f"{URL}/data/train.jsonl:{line}" for line in (1, 2)]
    assert [row.values for row in named] == [{"text": "a"}, {"text": "b"}]
    assert {row.source for row in read_rows(f"{URL}/data", split="test")} == {f"{URL}/data/test.jsonl"}
    assert len(read_rows(f"{URL}/**/*.jsonl")) == 4
    assert len(read_rows(f"{URL}/more.jsonl.gz")) == 2
    assert read_rows(f"{URL}/t.parquet")[0].values == {"text": "p"}
    with pytest.raises(DataError, match="named after the split test"):
        read_rows(f"{URL}/data/*.jsonl", split="train")
    assert "no such file" in refusal(f"{URL}/none.jsonl")


def test_a_broken_line_far_into_a_file_has_its_number(serve: Serve) -> None:
    rows = b"".join(b'{"text": "%06d"}\n' % number for number in range(30_000))
    serve(rows_jsonl=rows + b"{oops\n")
    assert f"{URL}/rows.jsonl:30001: not valid JSON" in refusal(f"{URL}/rows.jsonl")


def test_the_token_comes_from_the_environment_alone(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = serve(token="hf_right", rows_jsonl=GOOD)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    said = refusal(f"{URL}/rows.jsonl")
    assert "credentials in the environment" in said
    assert "hf_wrong" not in said
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    HfFileSystem.clear_instance_cache()
    assert len(read_rows(f"{URL}/rows.jsonl")) == 2
    assert {"Bearer hf_wrong", "Bearer hf_right"} == set(hub.tokens_seen) - {None}
    assert "may hold no credentials" in refusal("hf://user:hf_right@datasets/me/rows/rows.jsonl")
