"""Which files of tests come first: with the long ones started early, the workers end within a minute of each other."""

from __future__ import annotations

from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
SLOWEST = (
    "fault/test_processes.py",
    "unit/launch/test_ray.py",
    "unit/model/test_memory.py",
    "invariant/test_strategies.py",
    "unit/export/test_merge.py",
    "fault/test_trust_kills.py",
    "fault/test_trust_signals.py",
    "docs/test_readme.py",
    "invariant/test_training.py",
    "fault/test_trust_data.py",
    "invariant/test_data_templates.py",
    "fault/test_whole.py",
    "fault/test_trust_around.py",
    "recipes/test_sft.py",
    "fault/test_trust_resume.py",
    "fault/row_faults/test_columns.py",
    "recipes/test_reasoning.py",
    "fault/test_trust_folders.py",
    "recipes/test_rag.py",
    "fault/test_soak.py",
    "invariant/test_layouts.py",
    "invariant/test_loss_weights.py",
    "golden/test_recipes.py",
)
"""From the longest down; a file that is not here takes less than half a minute of a core."""


def slowest_first(items: list[pytest.Item]) -> None:
    """Sort tests by the place of their file in ``SLOWEST``; all others follow as they were."""
    places = {TESTS / name: place for place, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: places.get(item.path, len(SLOWEST)))
