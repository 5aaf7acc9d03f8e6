"""A data file as a stream of bytes, wherever it lies and however it is compressed; what they mean is the readers'."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO

from tunesmith.config.files import open_regular
from tunesmith.data import remote
from tunesmith.errors import DataError

MAX_DECOMPRESSED_BYTES = 8 * 2**30
MAX_EXPANSION = 200
"""How many times its size a compressed file may become: rows shrink 3 to 50 times, a file made to harm 1000 times."""
FREE_BYTES = 64 * 2**20
"""What a compressed file may become however small it is."""


def _zstd(file: Any) -> Any:
    import pyarrow

    return pyarrow.CompressedInputStream(pyarrow.PythonFile(file, mode="r"), "zstd")


COMPRESSIONS: dict[str, Callable[[Any], Any]] = {".gz": gzip.open, ".zst": _zstd, ".bz2": bz2.open, ".xz": lzma.open}
"""What takes the compression away, by the ending of a file's name."""


def open_data(name: str, compression: str = "") -> BinaryIO:
    """The file as bytes, decompressed.

    Args:
        name: a local path or a URL.
        compression: ending that says how it is compressed; empty where it is not.

    Raises:
        OSError: it cannot be opened.
        DataError: a URL cannot be opened; or, while reading, what is compressed is not whole, or larger than
            ``MAX_DECOMPRESSED_BYTES``.
    """
    file = remote.open_file(name) if remote.is_url(name) else open(open_regular(name), "rb")  # noqa: SIM115 (the caller closes it)
    if not compression:
        return file
    return io.BufferedReader(_Decompressed(file, compression, name), 2**18)


def refuse_wide(file: BinaryIO, name: str) -> None:
    """Refuse a text in UTF-16, which programs of Windows like to save: every line of it would be wrong.

    Args:
        file: the text from its start; nothing of it is read.
        name: its address.

    Raises:
        DataError: it begins as such texts do.
    """
    start = file.peek(2)[:2] if isinstance(file, io.BufferedReader) else b""
    if start in (b"\xff\xfe", b"\xfe\xff") or (len(start) == 2 and start.count(0) == 1):
        raise DataError("is a text in UTF-16", where=name, remedy="save the file as UTF-8")


class _Decompressed(io.RawIOBase):
    """The decompressed bytes of ``file``, counted against the limit and with one kind of error for what is broken."""

    def __init__(self, file: BinaryIO, compression: str, name: str) -> None:
        self._file = file
        self._compression = compression
        self._name = name
        self._size = 0
        self._inner: BinaryIO | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        try:
            if self._inner is None:
                self._inner = COMPRESSIONS[self._compression](self._file)
            found = self._inner.read(len(buffer))
        except (OSError, EOFError, ValueError, lzma.LZMAError, zlib.error) as error:
            raise self._broken(error) from error
        self._size += len(found)
        if self._size > MAX_DECOMPRESSED_BYTES:
            raise DataError(f"holds more than {MAX_DECOMPRESSED_BYTES} bytes when decompressed", where=self._name)
        if self._size > FREE_BYTES and self._size > MAX_EXPANSION * self._read_so_far():
            raise DataError(
                f"becomes more than {MAX_EXPANSION} times its size when decompressed, as a file made to fill memory",
                where=self._name,
                remedy="decompress it yourself if it is what you want",
            )
        buffer[: len(found)] = found
        return len(found)

    def _read_so_far(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self._file.close()
        super().close()

    def _broken(self, error: Exception) -> DataError:
        kind = {".gz": "gzip", ".zst": "zstd", ".bz2": "bzip2", ".xz": "xz"}[self._compression]
        return DataError(f"is not a whole {kind} file ({error})", where=self._name)
