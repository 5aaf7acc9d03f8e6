"""Who is told that something is deprecated: whoever called it, whichever file the warning names."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest

LIBRARY = """
import warnings
def old(kind):
    inner(kind)
def inner(kind):
    warnings.warn("old is deprecated", kind)
"""


@pytest.fixture
def old() -> Callable[[type[Warning]], None]:
    """A library's deprecated function, which warns in the library's own name."""
    library: dict[str, object] = {"__name__": "library.part"}
    exec(LIBRARY, library)
    return library["old"]  # type: ignore[return-value]


def called_from(module: str, function: Callable[[type[Warning]], None], kind: type[Warning]) -> None:
    exec("function(kind)", {"__name__": module, "function": function, "kind": kind})


@pytest.mark.parametrize("kind", [FutureWarning, DeprecationWarning])
def test_a_deprecated_call_of_ours_is_an_error(old: Callable[[type[Warning]], None], kind: type[Warning]) -> None:
    with pytest.raises(kind, match="old is deprecated"):
        called_from("tunesmith.model.load", old, kind)


@pytest.mark.parametrize(("module", "kind"), [("peft.model", FutureWarning), ("tunesmith.model.load", UserWarning)])
def test_others_and_other_warnings_only_warn(
    old: Callable[[type[Warning]], None], module: str, kind: type[Warning]
) -> None:
    with pytest.warns(kind, match="old is deprecated") as caught:
        called_from(module, old, kind)
    assert len(caught) == 1


def test_a_warning_that_names_one_of_our_modules_is_an_error() -> None:
    """The filters of pyproject.toml: the module is matched from its beginning."""
    with pytest.raises(UserWarning, match="careful"):
        warnings.warn_explicit("careful", UserWarning, "load.py", 1, module="tunesmith.model.load")
