"""Data files in object stores and on the hub, by fsspec; credentials come from the environment, never from a name."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

from tunesmith.config.urls import has_credentials, without_credentials
from tunesmith.errors import DataError

PACKAGES = {
    "hf": "huggingface-hub",
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
}
"""Kinds of URL that are read, and the package that each needs."""
EXTRAS = {"s3fs": "s3", "gcsfs": "gs", "adlfs": "az"}
"""The extra of tunesmith that brings a package, where it is not there anyway."""


BUFFER_BYTES = 2**18
PRIVATE = "check the name; what is private needs credentials in the environment, and stores hide it without them"


def is_url(name: str) -> bool:
    """Whether a name of data is a URL and not a path or a hub data set."""
    return "://" in name


def is_folder(url: str) -> bool:
    """Whether something lies below ``url``.

    Raises:
        DataError: the store cannot be asked.
    """
    with _named(url):
        system, path = _system(url)
        return bool(system.isdir(path))


def matching(url: str) -> list[str]:
    """The URLs of the files that a pattern matches, sorted; of a URL without a pattern, itself.

    Raises:
        DataError: there is none, or the store cannot be asked.
    """
    with _named(url):
        system, path = _system(url)
        found = sorted(system.glob(path)) if any(sign in path for sign in "*?[") else [path]
        files = [name for name in found if system.isfile(name)]
        if not files:
            what = "no such file" if found == [path] else "no file matches this pattern"
            raise DataError(what, where=url, remedy=PRIVATE)
        return [str(system.unstrip_protocol(name)) for name in files]


def below(url: str) -> list[str]:
    """The URLs of all files below a folder, sorted.

    Raises:
        DataError: the store cannot be asked.
    """
    with _named(url):
        system, path = _system(url)
        return [str(system.unstrip_protocol(name)) for name in sorted(system.find(path))]


def open_file(url: str) -> BinaryIO:
    """The file behind ``url``, to read.

    Raises:
        DataError: it cannot be opened.
    """
    with _named(url):
        system, path = _system(url)
        # files of fsspec have no readline with a limit, without which a line could fill memory
        return io.BufferedReader(system.open(path, "rb"), BUFFER_BYTES)


def _system(url: str) -> tuple[Any, str]:
    import fsspec

    scheme = url.partition("://")[0].lower()
    if has_credentials(url):
        raise DataError(
            "a URL may hold no credentials",
            where=without_credentials(url),
            remedy="give them in environment variables, as the store's own tools read them",
        )
    if scheme not in PACKAGES or "::" in url:
        raise DataError(
            f"data cannot be a URL of the kind {scheme}",
            where=url,
            remedy=f"download the file and name it here; URLs that are read begin with {', '.join(PACKAGES)}",
        )
    try:
        return cast(tuple[Any, str], fsspec.core.url_to_fs(url))
    except ImportError as error:
        raise DataError(
            f"reading {scheme}:// needs the package {PACKAGES[scheme]}",
            where=url,
            remedy=f"pip install 'tunesmith[{EXTRAS[PACKAGES[scheme]]}]', or {PACKAGES[scheme]} alone",
        ) from error


@contextmanager
def _named(url: str) -> Iterator[None]:
    """Whatever a store's library raises, as an error of ours: each has kinds of its own."""
    try:
        yield
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError("no such file", where=url, remedy=PRIVATE) from error
    except Exception as error:
        raise unreadable(url, error) from error


def unreadable(url: str, error: Exception) -> DataError:
    """What a store's library raised while ``url`` was read."""
    return DataError(
        f"cannot be read ({type(error).__name__}: {error})",
        where=url,
        remedy="check the name, the network and the credentials in the environment",
    )
