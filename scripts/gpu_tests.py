"""``make gpu``: the tests marked gpu, where there is a CUDA device; elsewhere a word and nothing else."""

from __future__ import annotations

import subprocess
import sys

import torch


def main() -> int:
    """Run them; the exit code is that of pytest."""
    if not torch.cuda.is_available():
        print("no CUDA device here: nothing was run")
        return 0
    names = ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
    print(f"on {names}", flush=True)
    return subprocess.call([sys.executable, "-m", "pytest", "-q", "-n0", "-m", "gpu", "tests/gpu", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
