"""Nothing that we override or patch of other libraries can stop acting without a word."""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
from collections import Counter
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from datasets import Dataset
from packaging.requirements import Requirement
from transformers.trainer_callback import CallbackHandler
from trl import SFTTrainer
from typing_extensions import override

from helpers import resolved_from, run_training, story_rows, write_rows
from tunesmith.errors import ModelError
from tunesmith.model.load import load_model
from tunesmith.train.callbacks import EarlyStopping, RunLog
from tunesmith.train.processes import Processes
from tunesmith.train.resuming import ResumingTrainer
from tunesmith.train.run import build_trainer, inference_contract, trainer_arguments
from tunesmith.train.samples import Samples
from tunesmith.train.setup import set_up
from tunesmith.train.trainer import Arguments, Trainer
from tunesmith.train.upstream import TOUCHED, Touched, base_of, check_overrides, constructed, overrides

LIBRARIES = {"transformers", "trl", "accelerate"}
OF_INSTANCES = {"model_accepts_loss_kwargs", "_tr_loss", "_globalstep_last_logged"}
"""Attributes that no class has; ``check_overrides`` looks for whoever reads them."""
CALLBACKS = (RunLog, Samples, EarlyStopping)


@pytest.mark.parametrize("touched", TOUCHED, ids=lambda touched: touched.name)
def test_what_is_touched_is_there_in_a_version_that_was_looked_at(touched: Touched) -> None:
    name, _, variable = touched.name.partition(":")
    found: Any = None
    for part in name.split("."):
        path = part if found is None else f"{found.__name__}.{part}"
        try:
            found = importlib.import_module(path)
        except ModuleNotFoundError:
            break
    rest = name.removeprefix(found.__name__).strip(".").split(".")
    if variable:
        assert variable in inspect.getsource(found)
    elif not OF_INSTANCES & set(rest):
        for part in filter(None, rest):
            found = getattr(found, part)
    requirement = Requirement(touched.until)
    assert version(requirement.name) in requirement.specifier, "look at it again, then raise its bound"
    assert touched.link.startswith("https://github.com/")
    assert touched.reason


def test_every_private_hook_is_explained() -> None:
    explained = {touched.name.rpartition(".")[2] for touched in TOUCHED}
    private = {name for cls in (Trainer, ResumingTrainer, Arguments) for name in overrides(cls) if name.startswith("_")}
    assert len(private) >= 9
    assert private <= explained


@pytest.mark.parametrize("cls", [Trainer, ResumingTrainer, Arguments, *CALLBACKS])
def test_whatever_is_overridden_is_marked(cls: type) -> None:
    """An unmarked method that a base has, too, may be an accident of names."""
    ours = {name for name, member in vars(cls).items() if callable(member) and not name.startswith("__")}
    shared = {name for name in ours if any(name in vars(base) for base in cls.__mro__[1:])}
    assert shared <= set(overrides(cls))


def test_the_installed_libraries_call_what_is_overridden() -> None:
    check_overrides(Arguments)
    check_overrides(Trainer, sets=["model_accepts_loss_kwargs"])
    for callback in CALLBACKS:
        assert overrides(callback)
        check_overrides(callback, callers=[transformers.Trainer, CallbackHandler])


class Library:
    flag = True

    def run(self) -> int:
        return self._step() if self.flag else 0

    def _step(self) -> int:
        return 1

    def _left(self) -> int:
        return 2


class Extension(Library):
    def _left(self) -> int:
        return super()._left()


def test_a_hook_that_is_gone_or_left_is_refused() -> None:
    class Kept(Extension):
        @override
        def _step(self) -> int:
            return 3

    class Renamed(Extension):
        @override
        def _former(self) -> int:  # type: ignore[misc]
            return 3

    class Left(Extension):
        @override
        def _left(self) -> int:
            return 3

    check_overrides(Kept, sets=["flag"])
    with pytest.raises(ModelError, match="no _former any more") as caught:
        check_overrides(Renamed)
    assert caught.value.exit_code == 4
    with pytest.raises(ModelError, match="_left, and nothing calls it"):  # its base's hand-over to its own is no call
        check_overrides(Left)
    with pytest.raises(ModelError, match="sign, and nothing reads it"):
        check_overrides(Kept, sets=["sign"])


def recorded(calls: Counter[str], name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if sys._getframe(1).f_globals["__name__"].partition(".")[0] in LIBRARIES:
            calls[name] += 1
        return function(*args, **kwargs)

    return wrapper


def test_every_override_is_called_by_the_libraries_themselves(
    tmp_path: Path, stories_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: Counter[str] = Counter()
    hooks: list[str] = []
    for cls in (Trainer, *CALLBACKS):
        for name in overrides(cls):
            hooks.append(f"{cls.__name__}.{name}")
            monkeypatch.setattr(cls, name, recorded(calls, hooks[-1], vars(cls)[name]))
    settings: dict[str, Any] = {
        "eval_rows": story_rows(2, seed=9), "max_steps": 2, "eval_steps": 1, "save_strategy": "steps", "save_steps": 1,
        "load_best_model_at_end": True, "early_stopping_patience": 5, "gen_every_n_steps": 1, "max_new_tokens": 2,
    }  # fmt: skip
    run = run_training(tmp_path, stories_model, story_rows(4), **settings).folder
    resumed = {"resume_from_checkpoint": str(run / "checkpoint-1")}
    run_training(tmp_path, stories_model, story_rows(4), **settings | resumed)
    assert len(hooks) >= 20
    assert [name for name in hooks if not calls[name]] == []


def test_a_model_leaves_the_constructor_as_it_came(tmp_path: Path, stories_model: Path) -> None:
    """Adapters over 4-bit weights keep their type, and no fused head is patched onto a forward that never asks it."""
    resolved = resolved_from(
        model_name_or_path=str(stories_model),
        train_data=write_rows(tmp_path / "rows.jsonl", story_rows(4)),
        output_dir=str(tmp_path / "run"),
        cache_dir=str(tmp_path / "cache"),
        max_length=256,
        load_in_4bit=True,
    )
    setup = set_up(resolved, Processes())
    model = load_model(resolved, setup.precision, setup.device)
    trained = {name: part.detach().clone() for name, part in model.named_parameters() if part.requires_grad}
    base = base_of(model)
    former = vars(base).get("forward")
    trainer = build_trainer(setup, model, inference_contract(setup, model), trainer_arguments(setup))
    assert base_of(trainer.model) is base
    assert vars(base).get("forward") is former
    assert trained
    for name, part in trainer.model.named_parameters():
        assert name not in trained or (part.dtype == torch.float32 and torch.equal(part, trained[name]))


def test_what_the_constructor_does_still_has_to_be_undone(stories_model: Path, tmp_path: Path) -> None:
    """Once this fails, upstream leaves models alone and ``constructed`` can go."""
    model = transformers.AutoModelForCausalLM.from_pretrained(stories_model)
    tokenizer = transformers.AutoTokenizer.from_pretrained(stories_model)
    rows = Dataset.from_dict({"input_ids": [[1, 2, 3]], "labels": [[1, 2, 3]]})
    arguments = Arguments(
        output_dir=str(tmp_path),
        report_to="none",
        use_cpu=True,
        bf16=False,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    with constructed(model):
        SFTTrainer(model=model, args=arguments, train_dataset=rows, processing_class=tokenizer)
        assert "fused_lm_head" in vars(model)["forward"].__func__.__code__.co_varnames
    assert "forward" not in vars(model)
    ids = torch.arange(3, 9)[None]
    assert torch.isfinite(model(input_ids=ids).logits).all()
