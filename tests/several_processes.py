"""What each of several processes runs in a test: the trainings of a JSON file, one after the other.

``torchrun ... several_processes.py FILE``; FILE is ``{"folder": ..., "runs": {name: settings}}``. Each run folder is
``folder/name``; what a run ended with, and when, stands for each rank in ``folder/name-rank-N.json``.

Beside settings, a run may have ``slow_merge``: seconds that the merge takes longer, while the processes wait for each
other no longer than a quarter of them.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any


def main(file: str) -> None:
    plan = json.loads(Path(file).read_text(encoding="utf-8"))
    agent = {name: os.environ[name] for name in ("MASTER_PORT", "TORCHELASTIC_USE_AGENT_STORE")}
    for number, (name, settings) in enumerate(plan["runs"].items()):
        # A run ends its group of processes; the next one meets as ranks do that were started again, at a port of its
        # own: at the former one, who is ahead would find the store that the other has not closed yet, and wait there.
        os.environ.update(agent, TORCHELASTIC_RESTART_COUNT=str(number))
        with slow_merge(settings.pop("slow_merge", 0)):
            outcome = train_one(settings | {"output_dir": str(Path(plan["folder"], name))})
        result = Path(plan["folder"], f"{name}-rank-{os.environ['RANK']}.json")
        result.write_text(json.dumps(outcome | {"ended": time.time()}), encoding="utf-8")


@contextmanager
def slow_merge(seconds: float) -> Iterator[None]:
    """Let the merge take longer, and the processes wait for each other for a quarter of that once training is over."""
    if not seconds:
        yield
        return
    import pytest
    from torch.distributed.distributed_c10d import _set_pg_timeout

    from tunesmith.train import folder, run

    merge, close = folder.merge, run.trackers.close

    def slowly(*args: Any, **keywords: Any) -> Any:
        time.sleep(seconds)
        return merge(*args, **keywords)

    def impatient(*args: Any, **keywords: Any) -> None:
        close(*args, **keywords)
        _set_pg_timeout(timedelta(seconds=seconds / 4))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder, "merge", slowly)
        patch.setattr(run.trackers, "close", impatient)
        yield


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
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        unset_hf_deepspeed_config()
        os.environ.clear()
        os.environ.update(environment)


if __name__ == "__main__":
    main(sys.argv[1])
