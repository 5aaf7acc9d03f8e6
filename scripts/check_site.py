"""Says what a built site would fetch from elsewhere when it is read: scripts, styles, fonts, pictures."""

from __future__ import annotations

import re
import sys
from pathlib import Path

FETCHED = {
    ".html": r"""<(?:script|link|img|iframe|source)\b[^>]*?\b(?:src|href)=["']?((?:https?:)?//[^"'\s>]+)""",
    ".css": r"""url\(\s*["']?((?:https?:)?//[^"')]+)""",
}
"""Kind of file -> what in it is loaded without being asked for."""


def fetched(site: Path) -> list[str]:
    """``file: address`` of everything that a browser would load from another place."""
    found = []
    for file in sorted(site.rglob("*")):
        if file.suffix in FETCHED:
            text = re.sub(r'<link rel="?canonical"?[^>]*>', "", file.read_text(encoding="utf-8"))
            found += [f"{file.relative_to(site)}: {address}" for address in re.findall(FETCHED[file.suffix], text)]
    return found


def main() -> int:
    """Look at the folder that is named."""
    found = fetched(Path(sys.argv[1]))
    print("\n".join(found), end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
