"""Trust rows F19 and F29: numbers that are not finite, wherever they appear, and memory that runs out."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from helpers import logged, run_training, story_rows
from tunesmith.errors import ModelError, NumericsError
from tunesmith.train import checkpoint
from tunesmith.train.trainer import Trainer


@pytest.fixture
def train(stories_model: Path, tmp_path: Path) -> Callable[..., Any]:
    def call(**settings: Any) -> Any:
        return run_training(
            tmp_path,
            stories_model,
            story_rows(8),
            **({"max_steps": 4, "save_strategy": "steps", "save_steps": 2} | settings),
        )

    return call


def before_call(monkeypatch: pytest.MonkeyPatch, name: str, call: int, action: Callable[[Trainer], None]) -> None:
    """Let ``action`` change the trainer before a method of it runs for the n-th time."""
    function, calls = getattr(Trainer, name), []

    def stand_in(trainer: Trainer, *args: Any, **keywords: Any) -> Any:
        calls.append(name)
        if len(calls) == call:
            action(trainer)
        return function(trainer, *args, **keywords)

    monkeypatch.setattr(Trainer, name, stand_in)


def trained(trainer: Trainer) -> list[torch.nn.Parameter]:
    return [weight for weight in trainer.model.parameters() if weight.requires_grad]


def spoil_gradient(value: float) -> Callable[[Trainer], None]:
    def action(trainer: Trainer) -> None:
        trained(trainer)[-1].grad.view(-1)[0] = value

    return action


def spoil_embedding(trainer: Trainer) -> None:
    trainer.model.get_input_embeddings().weight.data.fill_(float("nan"))


def spoil_weight(trainer: Trainer) -> None:
    trained(trainer)[-1].data.view(-1)[0] = float("inf")


@pytest.mark.parametrize(
    ("name", "spoil", "said"),
    [
        ("_get_grad_norm", spoil_gradient(float("nan")), "the gradient is not finite at step 3; rows of the step: "),
        ("_get_grad_norm", spoil_gradient(float("inf")), "the gradient is not finite at step 3; rows of the step: "),
        ("training_step", spoil_embedding, "the loss is not finite at step 3; rows of the step: "),
    ],
)
def test_F19_a_step_with_a_number_that_is_not_finite_is_not_taken(
    name: str, spoil: Any, said: str, train: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before_call(monkeypatch, name, 3, spoil)
    with pytest.raises(NumericsError) as stopped:
        train(max_grad_norm=0.0)
    assert said in stopped.value.line()
    assert "train.jsonl:" in stopped.value.line()
    assert "checkpoint-2 can be resumed" in stopped.value.line()
    assert stopped.value.__notes__ == ["once that is mended, go on with: test --resume_from_checkpoint latest"]
    run = tmp_path / "run"
    assert [step for (step,) in logged(run, "step")] == [1, 2]
    newest = checkpoint.find(run, "latest")
    assert newest is not None
    assert all(tensor.isfinite().all() for tensor in load_file(newest.path / "adapter_model.safetensors").values())
    assert not (run / "adapter_model.safetensors").exists()
    assert json.loads((run / "run.json").read_text())["status"] == "failed"


@pytest.mark.parametrize("save_strategy", ["steps", "no"])
def test_F19_weights_that_the_last_step_spoils_are_not_saved(
    save_strategy: str, train: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before_call(monkeypatch, "log", 4, spoil_weight)
    with pytest.raises(NumericsError, match=r"after step 4 the weight .*lora.* is not finite; nothing was saved"):
        train(save_strategy=save_strategy)
    run = tmp_path / "run"
    assert not (run / "checkpoint-4").exists()
    assert not (run / "adapter_model.safetensors").exists()
    assert json.loads((run / "run.json").read_text())["status"] == "failed"


class Floor:
    """A loss scaler with this scale."""

    def __init__(self, scale: float) -> None:
        self.get_scale = lambda: scale


@pytest.mark.parametrize(("scale", "stops"), [(65536.0, False), (1.0, True)])
def test_F19_half_precision_stops_where_the_scale_cannot_explain_it(
    scale: float, stops: bool, train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The numbers are those of a real step; that it computes in fp16, which a CPU has not, is told to the trainer."""

    def pretend(trainer: Trainer) -> None:
        spoil_gradient(float("inf"))(trainer)
        trainer.accelerator.scaler = Floor(scale)
        trainer.args.fp16 = True
        try:
            trainer._get_grad_norm(trainer.model)
        finally:
            trainer.args.fp16, trainer.accelerator.scaler = False, None
        trainer.model.zero_grad()

    before_call(monkeypatch, "_clip_grad_norm", 2, pretend)
    if stops:
        with pytest.raises(NumericsError, match="the gradient is not finite at step 2"):
            train(save_strategy="no")
    else:
        train(save_strategy="no")


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), MemoryError()]
)
def test_F29_memory_that_runs_out_names_the_settings_to_change(
    error: Exception, train: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_out(trainer: Trainer) -> None:
        raise error

    before_call(monkeypatch, "_get_grad_norm", 3, run_out)
    with pytest.raises(ModelError) as stopped:
        train()
    line = stopped.value.line()
    assert stopped.value.exit_code == 4
    assert "ran out of memory at step 3, with a batch of 1 x " in line  # two rows, end to end
    assert "checkpoint-2 is kept" in line
    assert "gradient_checkpointing: true, per_device_train_batch_size: 1 with gradient_accumulation_steps: 2" in line
    assert checkpoint.find(tmp_path / "run", "latest") is not None


def test_an_error_that_is_not_about_memory_stays_what_it_is(
    train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(trainer: Trainer) -> None:
        raise RuntimeError("something else")

    before_call(monkeypatch, "_get_grad_norm", 1, fail)
    with pytest.raises(RuntimeError, match="something else"):
        train()


class Averaging(torch.optim.SGD):
    """Steps with weights that are a thousandth off those it means; in evaluation mode they are put right."""

    training = True

    def _shift(self, training: bool) -> None:
        if training != self.training:
            self.training = training
            for group in self.param_groups:
                for weight in group["params"]:
                    weight.data.add_(1e-3 if training else -1e-3)

    def train(self) -> None:
        self._shift(True)

    def eval(self) -> None:
        self._shift(False)


def test_an_optimizer_with_modes_is_judged_and_saved_in_evaluation_mode(
    train: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes: dict[str, list[bool]] = {"_token_metrics": [], "_save": [], "training_step": []}
    for name, seen in modes.items():
        function = getattr(Trainer, name)

        @functools.wraps(function)  # with its mark of an override
        def look(trainer: Trainer, *args: Any, seen: Any = seen, function: Any = function, **keywords: Any) -> Any:
            before = trainer.optimizer.optimizer.training
            result = function(trainer, *args, **keywords)
            seen.append(trainer.optimizer.optimizer.training if function.__name__ == "training_step" else before)
            return result

        monkeypatch.setattr(Trainer, name, look)
    monkeypatch.setattr(
        Trainer, "get_optimizer_cls_and_kwargs", staticmethod(lambda args, model=None: (Averaging, {"lr": 1e-3}))
    )
    train(eval_rows=story_rows(10, seed=5)[8:], eval_steps=1)
    assert modes["_token_metrics"] == [False] * 4
    assert modes["_save"] == [False] * 2
    assert modes["training_step"] == [True] * 4
    last, final = (load_file(tmp_path / "run" / name / "adapter_model.safetensors") for name in ("checkpoint-4", "."))
    assert all(torch.allclose(last[name], final[name], atol=1e-6) for name in last)
