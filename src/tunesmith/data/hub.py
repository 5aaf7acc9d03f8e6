"""Rows of hub data sets, with an answer within seconds when the hub is out of reach. Local files are ``files.py``'s."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tunesmith.data.row import Row
from tunesmith.data.tables import without_struct_nulls
from tunesmith.errors import DataError

PROBE_SECONDS = 6.0


def hub_rows(name: str, *, subset: str | None = None, split: str = "train") -> Iterator[Row]:
    """Rows of one split of a hub data set; a row's line is its number in the split, counted from 1.

    Raises:
        DataError: no such data set, subset or split, or the hub is out of reach and the data set is not in the cache.
    """
    rows = _load(name, subset, split)
    source = f"{name}{f'/{subset}' if subset else ''}[{split}]"
    for number, values in enumerate(rows, start=1):
        yield Row(without_struct_nulls(dict(values)), source, number)


def _load(name: str, subset: str | None, split: str) -> Any:
    reason = out_of_reach(name)
    import datasets

    try:
        with _offline(reason is not None):
            return datasets.load_dataset(name, subset, split=split)
    except Exception as error:  # the library raises many kinds; each means that these rows cannot be had
        if reason is not None:
            raise DataError(
                f"not a local file or folder, not in the cache, and {reason}",
                where=name,
                remedy="check the name, go online without HF_HUB_OFFLINE, or download the data set first",
            ) from error
        raise DataError(
            f"cannot be loaded from the hub ({type(error).__name__}: {error})",
            where=name,
            remedy="check subset, train_split and eval_split",
        ) from error


def out_of_reach(name: str) -> str | None:
    """Why the hub cannot be asked, or None.

    Raises:
        DataError: the hub answered that there is no such data set.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    if constants.HF_HUB_OFFLINE or os.environ.get("HF_DATASETS_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        return "HF_HUB_OFFLINE forbids asking the hub"
    try:
        HfApi().dataset_info(name, timeout=PROBE_SECONDS)
    except RepositoryNotFoundError as error:
        raise DataError(
            "no such file, and no such data set on the hub", where=name, remedy="a private one needs HF_TOKEN"
        ) from error
    except HfHubHTTPError as error:
        return f"the hub answered with an error ({error})"
    except Exception as error:  # whatever the HTTP library says about a connection that did not come about
        return f"the hub is out of reach ({type(error).__name__})"
    return None


@contextmanager
def _offline(active: bool) -> Iterator[None]:
    """Make the libraries use their cache at once instead of retrying a connection that was just seen to fail."""
    import datasets.config
    from huggingface_hub import constants

    if not active:
        yield
        return
    before = datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = before
