"""One local Ray cluster for all tests that need one: it takes seconds to start."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tunesmith.launch.ray import cluster


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local cluster with two places for workers; tunesmith finds it and leaves it running."""
    with cluster(2):
        yield
