"""Rules that hold between settings: one named function each, all checked at once.

They stand in ``training_rules.py``, ``folder_rules.py``, ``launch_rules.py`` and ``task_rules.py``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from tunesmith.config import folder_rules, launch_rules, task_rules, training_rules
from tunesmith.config.resolve import Resolved
from tunesmith.config.rule import Rule
from tunesmith.errors import ConfigError, raise_together

RULES: list[Rule] = [*training_rules.RULES, *folder_rules.RULES, *launch_rules.RULES, *task_rules.RULES]
"""Every rule, in the order of the report."""


def check(resolved: Resolved) -> None:
    """Apply every rule.

    Raises:
        ConfigError: one or more rules do not hold; each problem names the settings' origins.
    """
    raise_together(list(find_problems(resolved)))


def find_problems(resolved: Resolved, without: Collection[str] = ()) -> Iterator[ConfigError]:
    """Every rule that does not hold, as an error with the place of the setting that somebody wrote.

    Args:
        resolved: the configuration.
        without: paths whose values nobody meant; a rule that speaks of one of them is left out.
    """
    for function in RULES:
        problem = function(resolved)
        if problem is not None and not set(problem.paths) & set(without):
            written = [path for path in problem.paths if resolved.explicit(path)]
            places = dict.fromkeys(resolved.origins[path] for path in written or problem.paths[:1])
            yield ConfigError(problem.what, where=", ".join(places), remedy=problem.remedy)
