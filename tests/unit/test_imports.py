"""Imports wait for nothing that a run does not need, and leave everything as it was."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from tunesmith.imports import lean_imports

PROGRAM = """
import sys

from tunesmith.imports import lean_imports

with lean_imports():
    import torch
    import bitsandbytes
    import transformers.loss.loss_utils
    from tunesmith.train.run import train
assert not [finder for finder in sys.meta_path if type(finder).__module__.startswith("tunesmith")]

print(sorted({"scipy", "torch._inductor.lowering", "deepspeed", "wandb"} & set(sys.modules)))

# and all of it is there for whoever calls it
from transformers.loss import loss_for_object_detection, loss_rt_detr

costs = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
for module in (loss_for_object_detection, loss_rt_detr):
    print([list(map(int, side)) for side in module.linear_sum_assignment(costs)])
import scipy.optimize

assert "tunesmith" not in repr(scipy.optimize.linear_sum_assignment)
assert "tunesmith" not in repr(torch.compile)
quantized, state = bitsandbytes.functional.quantize_blockwise(torch.arange(512.0))
back = bitsandbytes.functional.dequantize_blockwise(quantized, state)
print(float((back - torch.arange(512.0)).abs().max()) < 10)
"""


def test_compiler_and_scipy_come_when_they_are_called() -> None:
    ended = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines() == ["[]", "[[0, 1], [1, 0]]", "[[0, 1], [1, 0]]", "True"]


COMPILING = """
import sys

from tunesmith import imports

with imports.lean_imports(), imports._compiled_when_called():
    import torch

    @torch.compile
    def twice(x):
        return 2 * x

    @torch.compile(dynamic=False, backend="eager")
    def thrice(x):
        "Three times."
        return 3 * x

assert thrice.__doc__ == "Three times." and "torch._dynamo.eval_frame" not in sys.modules
assert torch.equal(thrice(torch.ones(3)), torch.full((3,), 3.0)) and "torch._dynamo.eval_frame" in sys.modules
assert torch.compile(twice, backend="eager")(torch.ones(1)).item() == 2
"""


def test_what_was_compiled_while_it_was_imported_is_compiled_when_it_is_called() -> None:
    ended = subprocess.run([sys.executable, "-c", COMPILING], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


def test_the_collector_rests_and_goes_on() -> None:
    with lean_imports():
        assert not gc.isenabled()
        with lean_imports():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()


def test_it_goes_on_after_an_import_that_failed() -> None:
    finders = list(sys.meta_path)
    with pytest.raises(ImportError), lean_imports():
        raise ImportError("gone")
    assert gc.isenabled()
    assert sys.meta_path == finders


def test_who_has_turned_it_off_finds_it_off() -> None:
    gc.disable()
    try:
        with lean_imports():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
