"""The loss that balances experts: added where a setting asks, and configurations come back as they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from benchmarks.zoo.models import build, write

from helpers import logged, run_training
from tunesmith.errors import ModelError
from tunesmith.notices import clear, collected
from tunesmith.train.balance import Balance, tell_unused

ROWS = [{"prompt": "ab" * index, "completion": " c" * index} for index in range(2, 6)]


def test_a_model_without_routers_is_refused() -> None:
    with pytest.raises(ModelError, match="no routers"):
        Balance(build("llama"), 0.1)


def test_a_coefficient_that_is_not_used_is_named() -> None:
    clear()
    tell_unused(build("mixtral"), None)
    assert any("router_aux_loss_coef" in line for line in collected())
    clear()
    tell_unused(build("mixtral"), 0.0)
    assert not collected()


def test_the_loss_is_added_and_the_configuration_comes_back(tmp_path: Path) -> None:
    model = write("mixtral", tmp_path / "model")
    losses: dict[Any, float] = {}
    for factor in (None, 5.0):
        more = {} if factor is None else {"router_aux_loss_coef": factor}
        run_training(tmp_path / str(factor), model, ROWS, max_steps=1, use_lora=False, **more)
        losses[factor] = logged(tmp_path / str(factor) / "run", "loss")[0][0]
        text = (tmp_path / str(factor) / "run" / "config.json").read_text()
        assert '"output_router_logits": false' in text
    assert losses[5.0] > losses[None] + 1
