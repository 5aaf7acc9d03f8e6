"""What each of several processes runs in a test: the trainings of a JSON file, one after the other.

``torchrun ... several_processes.py FILE``; FILE is ``{"folder": ..., "runs": {name: settings}}``. Each run folder is
``folder/name``; what a run ended with stands in ``folder/name.json``.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any


def main(file: str) -> None:
    plan = json.loads(Path(file).read_text(encoding="utf-8"))
    for name, settings in plan["runs"].items():
        outcome = train_one(settings | {"output_dir": str(Path(plan["folder"], name))})
        if os.environ["RANK"] == "0":
            Path(plan["folder"], f"{name}.json").write_text(json.dumps(outcome), encoding="utf-8")


def train_one(settings: dict[str, Any]) -> dict[str, Any]:
    """Train, and leave the process as it was for the next run."""
    from accelerate.state import AcceleratorState, GradientState
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    from helpers import resolved_from
    from tunesmith.train.run import train

    environment = dict(os.environ)
    try:
        result = train(resolved_from(**settings), command=["test"])
        return {"steps": result.steps, "metrics": result.metrics}
    except BaseException as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"}
    finally:
        AcceleratorState._reset_state()
        GradientState._reset_state()
        unset_hf_deepspeed_config()
        os.environ.clear()
        os.environ.update(environment)


if __name__ == "__main__":
    main(sys.argv[1])
