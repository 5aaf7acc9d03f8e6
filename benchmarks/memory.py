"""How much memory this process has held at once."""

from __future__ import annotations

import re
import resource
import sys
from pathlib import Path

STATUS = Path("/proc/self/status")


def peak_bytes() -> int:
    """The largest resident set of this program, in bytes.

    Linux keeps a process's ``ru_maxrss`` when it starts another program, so a small child of a large parent would
    report its parent's peak; ``VmHWM`` begins anew with the program.
    """
    if STATUS.exists():
        found = re.search(r"^VmHWM:\s+(\d+) kB$", STATUS.read_text(encoding="ascii"), re.MULTILINE)
        if found:
            return int(found.group(1)) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
