"""F1, F2: SIGKILL at random times. The driver is that of ``make soak``, which does the same for every kind of run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SOAK = Path(__file__).parents[2] / "scripts" / "soak.py"


def test_F1_five_kills_at_random_times_change_nothing(stories_model: Path) -> None:
    """LoRA with dropout, checkpoints between two logged steps. A process of its own, since it forks the runs."""
    done = subprocess.run(
        [sys.executable, str(SOAK), "--kinds", "lora", "--kills", "5", "--model", str(stories_model), "--json"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)["lora"]
    assert found["kills"] == len(found["at_steps"]) == 5
    assert found["differences"] == []
