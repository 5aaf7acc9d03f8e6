"""The tables of what may differ from a checkpoint, held against the schema."""

from __future__ import annotations

import pytest

from helpers import resolved_from
from tunesmith.config.names import leaf_paths
from tunesmith.config.resume import BY_FACT, FACTS, FIXED, FREE, OPTIMIZATION, allowed_changes
from tunesmith.errors import ConfigError


def test_the_tables_name_settings_that_exist():
    paths = set(leaf_paths())
    assert FREE.keys() <= paths
    assert BY_FACT.keys() <= paths
    assert paths >= OPTIMIZATION
    assert FIXED.keys() <= paths | FACTS


def test_no_setting_stands_in_two_tables():
    assert not FREE.keys() & BY_FACT.keys()
    assert not (FREE.keys() | BY_FACT.keys()) & (FIXED.keys() | OPTIMIZATION)
    assert all(len(reason) > 10 for reason in [*FREE.values(), *FIXED.values()])


def test_flat_names_paths_and_spellings_name_the_same_thing():
    resolved = resolved_from(
        model_name_or_path="m", allow_changed=["lr", "training.weight_decay", "train_file", "torch", "epochs"]
    )
    assert allowed_changes(resolved, ["torch"]) == {
        "learning_rate", "weight_decay", "train_data", "torch", "num_train_epochs", "total_steps",
    }  # fmt: skip


def test_a_name_that_nothing_has_is_refused():
    resolved = resolved_from(model_name_or_path="m", allow_changed=["learnig_rate"])
    with pytest.raises(ConfigError, match=r"learnig_rate.*did you mean 'learning_rate'"):
        allowed_changes(resolved, [])
