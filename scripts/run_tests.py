"""Runs the test suite on the cores that are there, one thread each, and passes on pytest's exit code.

The whole suite is also measured: when fewer lines of ``src/tunesmith`` run than ``COVERAGE_FLOOR`` asks for, it fails.
With arguments (paths, options of pytest) only what they name runs, and nothing is measured. ``TEST_DURATIONS=1`` also
shows the ten slowest tests.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

COVERAGE_FLOOR = 95.0
"""Share of lines in percent; CONTRIBUTING.md says when and how it moves."""
MEASURE = ["-m", "slipcover", "--immediate", "--source", "src/tunesmith", "--json", "--out"]
"""Lines are counted by bytecode that removes itself; coverage.py's tracer nearly doubles the time of some tests."""


def main(arguments: list[str]) -> int:
    """Run what ``arguments`` name, or everything, and return the exit code."""
    workers = max(1, min(os.cpu_count() or 1, 8))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    # one worker takes a file, for its fixtures; tests/order.py says which come first
    spread = ["-n", str(workers), "--dist", "loadfile", "--no-loadscope-reorder"]
    slowest = ["--durations", "10"] if os.environ.get("TEST_DURATIONS") == "1" else []
    pytest = ["-m", "pytest", "-q", *spread, *slowest, *arguments]
    if arguments:
        return subprocess.run([sys.executable, *pytest], env=environment, check=False).returncode
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "coverage.json"
        command = [sys.executable, *MEASURE, str(report), *pytest]
        exit_code = subprocess.run(command, env=environment, check=False).returncode
        return exit_code or check_coverage(json.loads(report.read_text(encoding="utf-8")))


def check_coverage(report: dict[str, object], floor: float = COVERAGE_FLOOR) -> int:
    """Print the share of lines that ran; 1 where it is below the floor, else 0."""
    summary = report["summary"]
    assert isinstance(summary, dict)
    share = float(summary["percent_covered"])
    print(f"coverage: {share:.1f} % of the lines of src/tunesmith (floor {floor:g} %)")
    return int(share < floor)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
