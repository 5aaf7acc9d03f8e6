"""The settings of a run as one flat dict: default file, chosen file, overrides, in this order.

python train/config_loader.py [--config FILE] [--name value ...]    prints them as JSON
"""

import sys
from pathlib import Path

from tunesmith.entrypoints.nli import load_config as load
from tunesmith.entrypoints.nli import show_config

DEFAULT = Path(__file__).with_name("configs") / "default.py"


def load_config(path=None, overrides=(), *, strict=False):
    """Names of document 2 -> values; ``overrides`` are written as on the command line."""
    return load(path, overrides, default=DEFAULT, strict=strict)


if __name__ == "__main__":
    sys.exit(show_config(DEFAULT))
