"""What a rule between settings is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tunesmith.config.resolve import Resolved


@dataclass(frozen=True, slots=True)
class Problem:
    """A contradiction between settings: the paths involved, what is wrong, what to do."""

    paths: tuple[str, ...]
    what: str
    remedy: str


Rule = Callable[[Resolved], Problem | None]


class Rules(list[Rule]):
    """The rules of one file in the order of their definition, which is the order of the report."""

    def rule(self, function: Rule) -> Rule:
        """Register ``function``."""
        self.append(function)
        return function
