"""Numbers that are not finite, seen without a wait for the device: right step, nothing written after it, no question
asked of a tensor while a step is taken."""

from __future__ import annotations

import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainerCallback

from helpers import logged, run_training, story_rows
from tunesmith.errors import NumericsError
from tunesmith.train import trainer as trainers
from tunesmith.train.finite import FiniteSteps
from tunesmith.train.run import Trainer

CUDA = torch.device("cuda")  # named, not used: its numbers are read a step later
ASKS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::equal")
"""What a process cannot know before the device has computed it."""
ELSEWHERE = ("torch/optim/", "tunesmith/data/collate.py")
"""Files whose questions are of tensors in main memory wherever the run computes: an optimizer's own count of steps, and
a batch that is being made."""


class Asked(TorchDispatchMode):
    """Counts what a device would have to be waited for, by the innermost place that asked."""

    def __init__(self) -> None:
        super().__init__()
        self.places: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), keywords: Any = None) -> Any:
        if function._schema.name in ASKS:
            frames = [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_stack()[:-1]]
            if not any(part in place for place in frames for part in ELSEWHERE):
                self.places[next(place for place in reversed(frames) if "/torch/" not in place)] += 1
        return function(*args, **(keywords or {}))


class Watched(TrainerCallback):
    """Watches all that happens between the beginning of the second step and that of the third."""

    def __init__(self) -> None:
        self.asked = Asked()

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 1:
            self.asked.__enter__()
        elif state.global_step == 2:
            self.asked.__exit__(None, None, None)


def test_a_step_asks_nothing_of_the_device(
    stories_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As batches are laid out by default; of a padded one, transformers asks whether anything is masked."""
    watched = Watched()
    begin = Trainer.check_callbacks

    def joined(trainer: Trainer) -> None:
        begin(trainer)
        trainer.add_callback(watched)

    monkeypatch.setattr(Trainer, "check_callbacks", joined)
    run_training(
        tmp_path, stories_model, story_rows(8), max_steps=3, logging_steps=10,
        gradient_accumulation_steps=2, per_device_train_batch_size=1,
    )  # fmt: skip
    assert not watched.asked.places


def test_what_asks_is_seen() -> None:
    with Asked() as asked:
        if torch.ones(1).sum() > 0:
            torch.ones(2).nonzero()
    assert sum(asked.places.values()) == 2


def test_numbers_of_a_gpu_are_read_a_step_later() -> None:
    steps = FiniteSteps(CUDA, lambda: ", and checkpoint-2 can be resumed")
    fine, spoilt = torch.tensor(1.0), torch.tensor(float("nan"))
    with Asked() as asked:
        steps.note(1, ["a:1"], fine, fine)
        steps.note(2, ["a:2"], spoilt, fine)
    assert not asked.places
    with pytest.raises(NumericsError, match=r"the loss is not finite at step 2; rows of the step: a:2.*checkpoint-2"):
        steps.note(3, ["a:3"], fine, fine)
    steps = FiniteSteps(CUDA, lambda: "")
    steps.note(1, [f"a:{row}" for row in range(9)], fine, torch.tensor(float("inf")))
    with pytest.raises(
        NumericsError, match=r"the gradient is not finite at step 1; .*a:7 \.\.\..*nothing of it is kept"
    ):
        steps.settle()
    steps.settle()


def test_numbers_of_a_cpu_are_read_at_once() -> None:
    steps = FiniteSteps(torch.device("cpu"), lambda: "")
    steps.note(1, [], torch.tensor(1.0), 2.0)
    with pytest.raises(NumericsError, match=r"the gradient is not finite at step 2.*the weights are as they were"):
        steps.note(2, [], torch.tensor(1.0), float("inf"))


@pytest.mark.parametrize(("logging_steps", "lines"), [(1, [1, 2, 3]), (10, [1])])
def test_nothing_is_written_after_a_step_that_is_found_out_later(
    logging_steps: int, lines: list[int], stories_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The numbers are those of a real run on the CPU, read as late as those of a GPU are."""
    monkeypatch.setattr(trainers, "FiniteSteps", lambda _device, resumable: FiniteSteps(CUDA, resumable))
    step = Trainer.training_step

    def spoilt(trainer: Trainer, *args: Any, **keywords: Any) -> Any:
        if trainer.state.global_step == 3:
            trainer.model.get_input_embeddings().weight.data.fill_(float("nan"))
        return step(trainer, *args, **keywords)

    monkeypatch.setattr(Trainer, "training_step", spoilt)
    with pytest.raises(NumericsError, match=r"the loss is not finite at step 4;.* checkpoint-2 can be resumed"):
        run_training(
            tmp_path, stories_model, story_rows(8), max_steps=6, logging_steps=logging_steps, save_strategy="steps",
            save_steps=2,
        )  # fmt: skip
    run = tmp_path / "run"
    assert sorted(folder.name for folder in run.glob("checkpoint-*")) == ["checkpoint-2"]
    assert [number for (number,) in logged(run, "step")] == lines
