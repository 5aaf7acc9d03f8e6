"""Runs the test suite on the cores that are there, one thread each, and passes on pytest's exit code.

The whole suite is also measured: below the coverage that ``pyproject.toml`` asks for it fails. With arguments (paths,
options of pytest) only what they name runs, and nothing is measured.
"""

from __future__ import annotations

import os
import subprocess
import sys

workers = max(1, min(os.cpu_count() or 1, 8))
environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
measured = [] if sys.argv[1:] else ["--cov", "--cov-report="]
command = [sys.executable, "-m", "pytest", "-q", "-n", str(workers), "--dist", "loadfile", *measured, *sys.argv[1:]]
sys.exit(subprocess.run(command, env=environment, check=False).returncode)
