"""``tunesmith doctor``: whether this machine can train, what is missing, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.cli import environment
from tunesmith.cli.arguments import VerbParser
from tunesmith.cli.output import say, say_json
from tunesmith.errors import ModelError
from tunesmith.visible import one_line

if TYPE_CHECKING:
    from tunesmith.train.machine import Finding


def run(argv: Sequence[str]) -> int:
    """Look at everything and tell it; exit code 4 where something prevents training."""
    parser = VerbParser(
        "doctor",
        "Look at Python, libraries, GPUs, memory, disk, folders, hub and tokens; each finding with its remedy.",
        takes_settings=False,
    )
    parser.add_argument("--json", action="store_true", help='print {"can_train": ..., "findings": [...]}')
    options = parser.parse_all(argv)
    environment.prepare()
    from tunesmith.train.machine import look

    findings = []
    for finding in look(Path.cwd()):
        findings.append(finding)
        if not options.json:
            say(line(finding))
    can_train = all(finding.status != "problem" for finding in findings)
    if options.json:
        say_json({"can_train": can_train, "findings": [asdict(finding) for finding in findings]})
    return 0 if can_train else ModelError.exit_code


def line(finding: Finding) -> str:
    """A finding on one line."""
    remedy = f"; {finding.remedy}" if finding.remedy else ""
    return one_line(f"{finding.status:<8} {finding.name:<14} {finding.what}{remedy}".replace("\n", " "))
