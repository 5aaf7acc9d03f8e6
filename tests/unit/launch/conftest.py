"""One local Ray cluster for all tests that need one: it takes seconds to start."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from unittest.mock import patch

import pytest

import ready_python
from tunesmith.launch.ray import ENVIRONMENT, cluster


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local cluster with two places for workers; tunesmith finds it and leaves it running.

    Ray starts its workers as ever, each as a process of its own, but in the Python that has its imports behind it.
    """
    os.environ |= ENVIRONMENT | os.environ  # Ray reads some of them when it is imported
    import ray

    ready = partial(ray.init, runtime_env={"py_executable": ready_python.python()})
    with ExitStack() as stack:
        with patch.object(ray, "init", ready):
            stack.enter_context(cluster(2))
        make_data_context()
        yield


def make_data_context() -> None:
    """Have Ray make the settings of its data library: that warns of Ray's own defaults, once a process.

    Whichever call of tunesmith came first would seem to be the cause, and fail.
    """
    from ray.data import DataContext

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        DataContext.get_current()
