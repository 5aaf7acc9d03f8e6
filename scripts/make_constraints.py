"""Prints the versions installed in this environment as a constraints file (``make lock``)."""

from __future__ import annotations

import importlib.metadata

SKIPPED = {"tunesmith", "pip", "setuptools", "wheel"}

print("# Versions that the tests ran with. Made by `make lock`.")
found = {d.metadata["Name"].lower().replace("_", "-"): d.version for d in importlib.metadata.distributions()}
for line in sorted(f"{name}=={version.split('+')[0]}" for name, version in found.items() if name not in SKIPPED):
    print(line)
