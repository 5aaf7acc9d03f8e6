"""Data behind URLs, with a folder of this machine standing in for an object store."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow
import pyarrow.parquet
import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.registry import _registry

from row_files import GOOD, refusal, write
from tunesmith.config.resolve import from_values
from tunesmith.config.rules import find_problems
from tunesmith.data import remote
from tunesmith.data.rows import read_rows
from tunesmith.errors import DataError


@pytest.fixture
def bucket(tmp_path: Path) -> Iterator[Path]:
    """A folder that ``s3://bucket`` stands for."""
    home = tmp_path / "store"
    (home / "bucket").mkdir(parents=True)

    class Store(LocalFileSystem):
        protocol = ("s3", "s3a")
        cachable = False

        @classmethod
        def _strip_protocol(cls, path: str) -> str:
            return str(home / path.partition("://")[2]).rstrip("/") if "://" in path else path

        def unstrip_protocol(self, name: str) -> str:
            return "s3://" + Path(name).relative_to(home).as_posix()

        def open(self, path: str, *args: Any, **kwargs: Any) -> Any:
            if "secret" in path:
                raise PermissionError("Access Denied")
            return super().open(path, *args, **kwargs)

    before = dict(_registry)
    fsspec.register_implementation("s3", Store, clobber=True)
    yield home / "bucket"
    _registry.clear()
    _registry.update(before)


def test_files_folders_and_patterns_behind_a_url(bucket: Path) -> None:
    (bucket / "d" / "test").mkdir(parents=True)
    write(bucket, GOOD, "one.jsonl")
    write(bucket / "d", GOOD, "train-0.jsonl")
    write(bucket / "d" / "test", GOOD, "0.jsonl")
    pyarrow.parquet.write_table(pyarrow.table({"a": ["x"]}), bucket / "t.parquet")
    assert [row.where for row in read_rows("s3://bucket/one.jsonl")] == [f"s3://bucket/one.jsonl:{n}" for n in (1, 2)]
    assert read_rows("s3://bucket/t.parquet")[0].values == {"a": "x"}
    assert {row.source for row in read_rows("s3://bucket/d", split="train")} == {"s3://bucket/d/train-0.jsonl"}
    assert {row.source for row in read_rows("s3://bucket/d/", split="test")} == {"s3://bucket/d/test/0.jsonl"}
    assert len(read_rows("s3://bucket/**/*.jsonl")) == 6
    with pytest.raises(DataError, match="named after the split test"):
        read_rows("s3://bucket/d/**/*.jsonl", split="train")


def test_what_cannot_be_had_is_named(bucket: Path) -> None:
    assert "s3://bucket/no.jsonl: no such file" in refusal("s3://bucket/no.jsonl")
    assert "no file matches" in refusal("s3://bucket/*.csv")
    write(bucket, GOOD, "secret.jsonl")
    assert "Access Denied" in refusal("s3://bucket/secret.jsonl")
    assert ":3: not valid JSON" in refusal("s3://bucket/" + Path(write(bucket, GOOD + b"{oops\n", "b.jsonl")).name)
    assert "needs the package gcsfs; pip install 'tunesmith[gs]'" in refusal("gs://bucket/x.jsonl")
    assert "cannot be a URL of the kind simplecache" in refusal("simplecache::s3://bucket/x.jsonl")


def test_every_driver_has_an_extra() -> None:
    """Those that no other dependency brings can be installed by the name that the error gives."""
    known = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    extras = known["optional-dependencies"]
    needed = set(remote.PACKAGES.values())
    assert needed - set(remote.EXTRAS) == {"huggingface-hub"}
    assert all(extras[extra][0].startswith(package) for package, extra in remote.EXTRAS.items())


@pytest.mark.parametrize(
    "url", ["s3://me:TOPSECRET@bucket/x.jsonl", "az://c/x.jsonl?sv=1&sig=TOPSECRET"], ids=["s3", "az"]
)
def test_credentials_in_a_name_are_refused_and_never_shown(url: str) -> None:
    said = refusal(url)
    assert "may hold no credentials" in said
    assert "TOPSECRET" not in said
    problems = list(find_problems(from_values({"model.model_name_or_path": "x", "data.train_data": [url]})))
    assert any("may hold no credentials" in str(problem) for problem in problems)
    assert "TOPSECRET" not in str(problems)
