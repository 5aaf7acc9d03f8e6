"""Random files, rows, settings, templates, answers and run folders for an hour: what is no error of ours is a finding.

    python scripts/fuzz.py                      an hour
    python scripts/fuzz.py --hours 2 --examples 300 --log fuzz.jsonl
                                                goes on where the log of an earlier call ends

Rounds of the suite's own tests with other random examples each time. A round's line in the log has its seconds, the
examples that were tried and the findings, each of them a test that failed. Exit code 1 with the first finding.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

TESTS = ("test_fuzz.py", "test_fuzz_folders.py", "test_fuzz_code.py", "test_odd_settings.py")
PROJECT = Path(__file__).resolve().parents[1]


def one_round(examples: int) -> dict[str, object]:
    """Run every test once; what pytest says goes to standard error where there is a finding."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n0", "--hypothesis-show-statistics", "-p", "no:cacheprovider",
         *(f"tests/invariant/{name}" for name in TESTS)],
        env=os.environ | {"HYPOTHESIS_RANDOM": "1", "FUZZ_EXAMPLES": str(examples)},
        cwd=PROJECT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    tried = sum(map(int, re.findall(r"- (\d+) passing, ", done.stdout)))
    findings = re.findall(r"^FAILED (\S+)", done.stdout, flags=re.MULTILINE)
    if done.returncode and not findings:
        findings = [f"pytest ended with {done.returncode}"]
    if findings:
        print(done.stdout, done.stderr, file=sys.stderr)
    return {"seconds": round(time.monotonic() - began), "examples": tried, "findings": findings}


def read_log(path: Path | None) -> list[dict[str, object]]:
    """The rounds of earlier calls."""
    if path is None or not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def main() -> int:
    """Parse, fuzz, report."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument(
        "--examples", type=int, default=int(os.environ.get("FUZZ_EXAMPLES") or 100), help="of each test"
    )
    parser.add_argument("--log", type=Path, default=os.environ.get("FUZZ_LOG") or None, help="rounds, one line each")
    options = parser.parse_args()
    rounds = read_log(options.log)
    while sum(int(str(one["seconds"])) for one in rounds) < options.hours * 3600:
        rounds.append(one_round(options.examples))
        if options.log:
            with options.log.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(rounds[-1]) + "\n")
        print(json.dumps(rounds[-1]), flush=True)
        if rounds[-1]["findings"]:
            return 1
    total = {name: sum(int(str(one[name])) for one in rounds) for name in ("seconds", "examples")}
    print(f"{len(rounds)} rounds, {total['seconds'] / 60:.0f} minutes, {total['examples']:,} examples, no finding")
    return 0


if __name__ == "__main__":
    sys.exit(main())
