"""The table of spellings: complete, unambiguous, and helpful with misspelt names."""

from __future__ import annotations

import pytest

from tunesmith.config.names import SPELLINGS, NameTable, leaf_paths
from tunesmith.errors import ConfigError

NAMES = NameTable()


def test_every_leaf_is_found_by_its_path_and_by_its_flat_name() -> None:
    paths = leaf_paths()
    assert len(paths) > 100
    for path in paths:
        assert NAMES.find(path, "here").path == path
        assert NAMES.find(path.partition(".")[2], "here").path == path


def test_flat_names_are_unique() -> None:
    flat = [path.partition(".")[2] for path in leaf_paths()]
    assert len(flat) == len(set(flat))


def test_every_spelling_leads_to_a_leaf() -> None:
    paths = set(leaf_paths())
    assert len(SPELLINGS) > 30
    assert {spelling.path for spelling in SPELLINGS.values()} <= paths


@pytest.mark.parametrize(
    ("misspelt", "suggestion"),
    [
        ("learning_rat", "learning_rate"),
        ("lerning_rate", "learning_rate"),
        ("batch_sise", "batch_size"),
        ("training.learning_rat", "training.learning_rate"),
        ("no_such_section.learning_rate", "learning_rate"),
    ],
)
def test_a_misspelt_name_gets_the_nearest_one(misspelt: str, suggestion: str) -> None:
    with pytest.raises(ConfigError) as caught:
        NAMES.find(misspelt, "file.py:3")
    assert caught.value.line().startswith(f"file.py:3: unknown setting {misspelt!r}")
    assert repr(suggestion) in (caught.value.remedy or "")


def test_a_name_like_no_other_points_to_the_list() -> None:
    with pytest.raises(ConfigError) as caught:
        NAMES.find("zzzzqqqq", "here")
    assert caught.value.remedy == "see `tunesmith config --list`"
