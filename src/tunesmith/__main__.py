"""``python -m tunesmith``: the same as the command ``tunesmith``."""

from tunesmith.cli.main import entry_point

entry_point()
