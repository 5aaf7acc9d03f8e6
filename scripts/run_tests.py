"""Runs the whole test suite on the cores that are there, one thread each, and passes on pytest's exit code."""

from __future__ import annotations

import os
import subprocess
import sys

workers = max(1, min(os.cpu_count() or 1, 8))
environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
command = [sys.executable, "-m", "pytest", "-q", "-n", str(workers), "--dist", "loadfile", *sys.argv[1:]]
sys.exit(subprocess.run(command, env=environment, check=False).returncode)
