"""Writes docs/reference.md from the schema; ``--check`` only says whether the file is up to date."""

from __future__ import annotations

import sys
from pathlib import Path

from tunesmith.config.describe import reference
from tunesmith.config.schema import SECTIONS

TARGET = Path(__file__).parents[1] / "docs" / "reference.md"


def page() -> str:
    """The whole page."""
    lines = [
        "# Settings",
        "",
        "Made from the schema by `make docs`. Every setting can be written in a file of any dialect, and on a command",
        "line as `--name value` or `section.name=value`; `tunesmith config FILE` shows values with their origins.",
    ]
    section = None
    for path, default, meaning, others in reference():
        if path.split(".")[0] != section:
            section = path.split(".")[0]
            about = " ".join((SECTIONS[section].__doc__ or "").split())
            lines += [
                "",
                f"## {section}",
                "",
                about,
                "",
                "| setting | default | meaning | also accepted |",
                "|---|---|---|---|",
            ]
        name = path.split(".")[1]
        also = ", ".join(f"`{other}`" for other in others)
        lines.append(f"| `{name}` | `{default}` | {meaning.replace('|', chr(92) + '|')} | {also} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    text = page()
    if "--check" in sys.argv:
        current = TARGET.is_file() and TARGET.read_text(encoding="utf-8") == text
        print("docs/reference.md is up to date" if current else "docs/reference.md is stale: run `make docs`")
        return 0 if current else 1
    TARGET.write_text(text, encoding="utf-8")
    print(f"wrote {TARGET.relative_to(Path.cwd()) if TARGET.is_relative_to(Path.cwd()) else TARGET}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
