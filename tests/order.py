"""Which files of tests come first: with the long ones started early, the workers end within a minute of each other."""

from __future__ import annotations

from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
SLOWEST = (
    "invariant/test_strategies.py",
    "fault/test_processes.py",
    "unit/model/test_memory.py",
    "unit/launch/test_sweep.py",
    "unit/export/test_merge.py",
    "fault/test_run_faults.py",
    "invariant/test_training.py",
    "fault/test_trust_secrets.py",
    "recipes/test_nli_faults.py",
    "golden/test_recipes.py",
    "unit/data/test_cache.py",
    "unit/cli/test_preview.py",
    "unit/evaluate/test_generate.py",
    "invariant/test_layouts.py",
    "unit/config/test_convert.py",
    "unit/launch/test_cluster.py",
)
"""From the longest down; a file that is not here takes less than half a minute of a core."""


def slowest_first(items: list[pytest.Item]) -> None:
    """Sort tests by the place of their file in ``SLOWEST``; all others follow as they were."""
    places = {TESTS / name: place for place, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: places.get(item.path, len(SLOWEST)))
