"""What a model makes of the last bit of its weights, and the slack of float32 arithmetic where it is asked for."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from merges import random_questions, run_folder
from tunesmith.config.resolve import Resolved
from tunesmith.export import asked, proof
from tunesmith.export.asked import moved
from tunesmith.export.update import Update, finite, merged_is_expected
from tunesmith.model.load import model_spec

Settings = Callable[..., Resolved]


@pytest.mark.parametrize("large", [False, True])
def test_noise_of_float32_is_asked_of_the_model(
    large: bool, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if large:
        monkeypatch.setattr(asked, "LARGE", 0)
    run = run_folder(settings, tmp_path / "run")
    found = asked.ask(model_spec(run, device_map="cpu"), "trained", "float32", random_questions(), tmp_path)
    assert 0 < found.noise.mean_logprob_difference < 1e-5
    assert proof.allowed(found.noise, "float32")["mean_logprob_difference"] == proof.FLOORS["float32"]


def test_weights_move_by_a_unit_in_the_last_place_at_most() -> None:
    weight = torch.randn(50, 20)
    found = moved(weight, torch.Generator().manual_seed(0))
    ratio = (found / weight - 1).abs()
    assert 0 < float(ratio.max()) <= 2 * torch.finfo(torch.float32).eps
    numbers = torch.arange(6, dtype=torch.uint8)
    assert moved(numbers, torch.Generator()) is numbers


@pytest.mark.parametrize("magnitude", [False, True])
@pytest.mark.parametrize("kind", ["rows", "columns", "experts", "experts_transposed"])
def test_slack_is_that_of_each_place(kind: str, magnitude: bool) -> None:
    torch.manual_seed(0)
    experts = 3 if kind.startswith("experts") else 1
    if experts > 1 and magnitude:
        pytest.skip("DoRA knows no experts")
    outputs, inputs, rank = 6, 9, 2
    a, b = torch.randn(rank * experts, inputs), torch.randn(outputs, rank * experts)
    b[1] *= 1e4  # sums of large numbers are off by more
    shape = {"rows": (outputs, inputs), "columns": (inputs, outputs), "experts": (experts, outputs, inputs)}
    base = torch.zeros(shape.get(kind, (experts, inputs, outputs)))
    update = Update(a, b, 0.5, kind, torch.ones(outputs) if magnitude else None, experts)
    value, slack = update.expected(base)
    everywhere = slack(torch.ones_like(base, dtype=torch.bool)).view(base.shape)
    some = torch.rand(base.shape) > 0.5
    assert torch.equal(slack(some), everywhere[some])
    by_output = everywhere.movedim({"rows": 0, "columns": 1, "experts": 1}.get(kind, 2), 0).flatten(1).amax(1)
    assert magnitude or int(by_output.argmax()) == 1
    off = torch.nextafter(value, value + 1)
    assert merged_is_expected(off, value, slack) <= 0.5
    assert merged_is_expected(value * 1.001, value, slack) > 0.501


def test_one_value_that_is_no_number_is_seen() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for wrong in (math.nan, math.inf, -math.inf):
            weight = torch.ones(7, 5, dtype=dtype)
            assert finite([weight, torch.zeros(0, dtype=dtype), torch.tensor([1, 2])])
            weight[3, 2] = wrong
            assert not finite([weight])
