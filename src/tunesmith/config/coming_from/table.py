"""The programs whose files are known, the most particular ones first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tunesmith.config.coming_from.axolotl import AXOLOTL
from tunesmith.config.coming_from.llama_factory import LLAMA_FACTORY
from tunesmith.config.coming_from.tool import Tool
from tunesmith.config.coming_from.torchtune import TORCHTUNE, interpolated
from tunesmith.config.coming_from.trl import TRL
from tunesmith.config.coming_from.unsloth import UNSLOTH
from tunesmith.config.draft import Draft
from tunesmith.config.readers.yaml_lines import read_yaml

TOOLS: Mapping[str, Tool] = {tool.name: tool for tool in (TORCHTUNE, AXOLOTL, LLAMA_FACTORY, UNSLOTH, TRL)}


def recognise(tree: Any) -> str | None:
    """The name of the program whose file has such a tree; None where it is nobody's."""
    if not isinstance(tree, dict):
        return None
    return next((name for name, tool in TOOLS.items() if tool.recognises(tree)), None)


def read(path: str | Path, name: str) -> Draft:
    """The settings of a file of the program ``name``; JSON is read as the YAML that it nearly is.

    Raises:
        ConfigError: the file cannot be read.
    """
    document = read_yaml(path)
    return TOOLS[name].read(replace(document, value=interpolated(document.value)) if name == "torchtune" else document)
