"""Which files of tests come first: with the long ones started early, the workers end within a minute of each other."""

from __future__ import annotations

from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
SLOWEST = (
    "invariant/test_strategies.py",
    "fault/test_processes.py",
    "unit/model/test_memory.py",
    "unit/launch/test_ray.py",
    "invariant/test_training.py",
    "fault/test_trust_kills.py",
    "unit/export/test_merge.py",
    "invariant/test_data_templates.py",
    "fault/test_trust_data.py",
    "recipes/test_reasoning.py",
    "recipes/test_sft.py",
    "fault/test_trust_signals.py",
    "fault/test_trust_resume.py",
    "unit/data/test_cache.py",
    "golden/test_recipes.py",
    "fault/test_trust_networks.py",
    "docs/test_readme.py",
    "fault/test_whole.py",
    "recipes/test_rag.py",
    "unit/config/test_ways.py",
    "fault/test_trust_around.py",
    "unit/config/test_hydra_yaml.py",
    "docs/test_many_machines.py",
    "invariant/test_layouts.py",
    "recipes/test_nli_faults.py",
    "fault/test_trust_folders.py",
    "docs/test_notebook.py",
    "fault/test_soak.py",
    "recipes/test_reasoning_faults.py",
    "invariant/test_loss_weights.py",
    "fault/test_run_faults.py",
    "unit/cli/test_check.py",
    "fault/test_trust_model.py",
    "fault/row_faults/test_columns.py",
)
"""From the longest down; a file that is not here takes less than about half a minute."""


def slowest_first(items: list[pytest.Item]) -> None:
    """Sort tests by the place of their file in ``SLOWEST``; all others follow as they were."""
    places = {TESTS / name: place for place, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: places.get(item.path, len(SLOWEST)))
