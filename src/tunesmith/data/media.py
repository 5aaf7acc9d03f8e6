"""Rows for models that read more than text: what they come with, and the refusal."""

from __future__ import annotations

from collections.abc import Iterable

from tunesmith.data.row import Row
from tunesmith.errors import DataError

MEDIA = frozenset(["image", "images", "video", "videos", "audio", "audios", "pixel_values"])
"""Columns of rows for models that read more than text, by the names that data sets give them."""


def refuse_media(row: Row, unread: Iterable[str]) -> None:
    """Refuse a row that comes with something to see or hear, since an answer to it cannot be learnt from text.

    Raises:
        DataError: it names the column.
    """
    for name in sorted(MEDIA.intersection(unread)):
        if row.values.get(name) not in (None, "", [], {}):
            raise DataError(
                f"the row has {name}, and only text is trained",
                where=row.where,
                remedy=f"remove such rows, or the column {name} where the text stands by itself",
            )
