"""The figures that are published: ``results.json`` holds them, RESULTS.md and the README's tables are written from it.

A comparison replaces its own tables and leaves the others as they were measured, each with what it was measured on.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("RESULTS.md")
KEPT = Path(__file__).with_name("results.json")
README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- training: begin -->", "<!-- training: end -->"


def publish(title: str, tables: Sequence[Sequence[str]], how: str, figures: Any, *, in_readme: bool = False) -> None:
    """Keep the tables of one comparison, and write all that are kept.

    Args:
        title: heading of its section; what was kept under it is replaced.
        tables: lines of Markdown of each table.
        how: a paragraph on what was measured and how.
        figures: the numbers that the tables show.
        in_readme: whether README shows them as well.
    """
    kept = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else {}
    kept[title] = {"tables": tables, "how": f"{how} {machine()}", "figures": figures, "in_readme": in_readme}
    KEPT.write_text(json.dumps(dict(sorted(kept.items())), indent=1) + "\n", encoding="utf-8")
    sections = [f"## {title}\n\n{one['how']}\n\n{_joined(one['tables'])}" for title, one in sorted(kept.items())]
    intro = "# Measured\n\nWritten by `python -m benchmarks COMPARISON --publish`; the numbers are in `results.json`."
    RESULTS.write_text("\n\n".join([intro, *sections]) + "\n", encoding="utf-8")
    shown = [table for _, one in sorted(kept.items()) if one["in_readme"] for table in one["tables"]]
    if shown:
        _into_readme(_joined(shown))


def _joined(tables: Sequence[Sequence[str]]) -> str:
    return "\n\n".join("\n".join(lines) for lines in tables)


def _into_readme(text: str) -> None:
    before, begin, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    _old, end, after = rest.partition(END)
    if begin and end:
        README.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")


def machine() -> str:
    """Processor and versions of what computes."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft", "trl"))
    return f"One thread of {platform.machine()} ({_processor()}); Python {platform.python_version()}, {versions}."


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
