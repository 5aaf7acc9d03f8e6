"""The hub data sets that the documents name, fetched once and kept as JSON lines, one file a split.

Class labels become their names, so that no reader has to know their numbers. This module writes no files.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tunesmith.data.hub import out_of_reach
from tunesmith.errors import DataError, did_you_mean


@dataclass(frozen=True, slots=True)
class HubData:
    """Where a data set lives on the hub."""

    repository: str
    subset: str | None = None
    revision: str | None = None
    """``refs/convert/parquet`` where the main branch holds a script, which is never run."""


DATA_SETS: dict[str, HubData] = {
    "snli": HubData("stanfordnlp/snli"),
    "esnli": HubData("esnli/esnli", revision="refs/convert/parquet"),
    "gsm8k": HubData("openai/gsm8k", "main"),
    "aqua": HubData("deepmind/aqua_rat", "raw"),
    "asqa": HubData("din0s/asqa"),
    "pubmedqa": HubData("qiaojin/PubMedQA", "pqa_labeled"),
    "hotpotqa": HubData("hotpotqa/hotpot_qa", "distractor", "refs/convert/parquet"),
    "nq_open": HubData("google-research-datasets/nq_open", "nq_open"),
}
"""Short name -> data set."""


def find(name: str) -> HubData:
    """The data set called ``name``.

    Raises:
        DataError: none has that name.
    """
    if name in DATA_SETS:
        return DATA_SETS[name]
    remedy = did_you_mean(name, DATA_SETS, f"names are {', '.join(DATA_SETS)}")
    raise DataError(f"no data set is called {name!r}", where="data download", remedy=remedy)


def splits(data: HubData) -> dict[str, Iterator[dict[str, Any]]]:
    """Split -> its rows.

    Raises:
        DataError: the hub is out of reach (said within seconds), or refuses.
    """
    reason = out_of_reach(data.repository)
    if reason is not None:
        raise DataError(f"cannot be downloaded: {reason}", where=data.repository, remedy="go online and try again")
    import datasets

    try:
        loaded = datasets.load_dataset(data.repository, data.subset, revision=data.revision)
    except Exception as error:  # the library raises many kinds; each means that the rows cannot be had
        raise DataError(
            f"cannot be downloaded ({type(error).__name__}: {error})", where=data.repository, remedy="try again later"
        ) from error
    return {str(split): named_labels(rows) for split, rows in loaded.items()}


def named_labels(rows: Any) -> Iterator[dict[str, Any]]:
    """Rows of a ``datasets.Dataset`` with class labels as names; a row without label has ``-``."""
    labels = {name: feature for name, feature in rows.features.items() if hasattr(feature, "int2str")}
    for row in rows:
        values = dict(row)
        for name, feature in labels.items():
            number = values[name]
            values[name] = feature.int2str(number) if number is not None and number >= 0 else "-"
        yield values
