"""Resume is a contract: the rows of the trust battery that concern it, each test with its number.

F1, F2 (kills) and F5, F6 (which checkpoint is found) are tested where checkpoints are.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from helpers import logged, resolved_from, run_training, story_rows, tensors, write_rows
from tunesmith import notices
from tunesmith.config.names import leaf_paths, leaf_type
from tunesmith.config.resume import BY_FACT, FIXED, FREE, flat
from tunesmith.errors import ConfigError, StorageError
from tunesmith.train import contract
from tunesmith.train.best import best_complete

COMMON: dict[str, Any] = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "lora_r": 2, "lora_dropout": 0.1}
ROWS = 12


@pytest.fixture(scope="module")
def stories(stories_model) -> Path:
    return stories_model


@pytest.fixture(scope="module")
def finished(tmp_path_factory, stories) -> Path:
    """A run of 4 steps with checkpoints after 2 and 4; copy it before touching it."""
    folder = tmp_path_factory.mktemp("finished")
    run_training(folder, stories, story_rows(ROWS), **COMMON)
    return folder


@pytest.fixture
def broken_off(finished, tmp_path) -> Path:
    """The same run as it was after its second step."""
    folder = tmp_path / "broken-off"
    shutil.copytree(finished, folder)
    shutil.rmtree(folder / "run" / "checkpoint-4")
    return folder


def go_on(folder: Path, model: Path, **settings: Any) -> Path:
    run_training(folder, model, story_rows(ROWS), **(COMMON | {"resume_from_checkpoint": "latest"} | settings))
    return folder / "run"


def same_weights(left: Path, right: Path) -> bool:
    a, b = tensors(left), tensors(right)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def steps_of(run: Path) -> list[tuple[Any, ...]]:
    return logged(run, "step", "loss", "grad_norm", "learning_rate")


# the matrix -----------------------------------------------------------------------------------------------------------

CANDIDATES = (
    False, True, 0, 1, 2, 3, 7, 0.25, 0.5, 1.5, "x", "2026-01-01", "all", "none", "report", "merge", "text", "constant",
    "fp4", "float32", "eager", "packed", "steps", "epoch", "all_exhausted", "drop", "lora_only", "zero3", "ray",
    "exact", "transformers", "assistant", "allow", ["x"], {"x": "y"}, {"x": "user"}, {"x": 2}, [1.0], ["wandb"],
)  # fmt: skip


def another_value(path: str, value: Any) -> Any:
    """A value that the setting accepts and does not have."""
    adapter = TypeAdapter(leaf_type(path))
    for candidate in CANDIDATES:
        if candidate == value and isinstance(candidate, bool) == isinstance(value, bool):
            continue
        try:
            adapter.validate_python(candidate, strict=True)
        except ValidationError:
            continue
        return candidate
    raise AssertionError(f"no other value for {path}: add one to CANDIDATES")


ONE_VALUE = {"adapter.peft_type", "adapter.task_type"}
"""Settings that can have no other value."""


@pytest.fixture(scope="module")
def terms() -> contract.Terms:
    values = resolved_from(model_name_or_path="m").values()
    settings = {path: value for path, value in values.items() if path not in FREE and path not in BY_FACT}
    facts = dict.fromkeys(BY_FACT.values(), "before") | {"examples": ["a", None], "total_steps": 4}
    return {"settings": settings, "facts": facts, "versions": {"torch": "1"}}


@pytest.mark.parametrize("path", [path for path in leaf_paths() if path not in ONE_VALUE])
def test_F15_every_setting_is_refused_by_name_or_listed_with_a_reason(path, terms):
    """Generated from the schema: a new setting is refused until a table says why it may change."""
    resolved = resolved_from(model_name_or_path="m", allow_changed=[flat(path)])
    value = another_value(path, resolved.values()[path])
    kept = path not in FREE and path not in BY_FACT
    assert (path in terms["settings"]) == kept
    if path in FREE:
        return
    if path in BY_FACT:
        fact = BY_FACT[path]
        new = terms | {"facts": terms["facts"] | {fact: 3 if fact == "total_steps" else "after"}}
        changed = fact
    else:
        new, changed = terms | {"settings": terms["settings"] | {path: value}}, path
    found = contract.changes(terms, new)
    assert [change.path for change in found] == [changed]
    plain = resolved_from(model_name_or_path="m")
    with pytest.raises(ConfigError) as refused:
        contract.accept(found, "checkpoint-2", plain)
    assert str(found[0]) in refused.value.line()
    if changed in FIXED:
        with pytest.raises(ConfigError, match="train anew"):
            contract.accept(found, "checkpoint-2", resolved)
    else:
        contract.accept(found, "checkpoint-2", resolved)


@pytest.mark.parametrize("group", ["versions", "facts"])
def test_F15_a_library_or_file_of_another_version_is_refused_by_name(group, terms):
    name = {"versions": "torch", "facts": "base"}[group]
    found = contract.changes(terms, terms | {group: terms[group] | {name: "2"}})
    with pytest.raises(ConfigError, match=f"{name}: .* -> 2"):
        contract.accept(found, "checkpoint-2", resolved_from(model_name_or_path="m"))
    contract.accept(found, "checkpoint-2", resolved_from(model_name_or_path="m", allow_changed=[name]))


def test_F15_what_follows_from_an_accepted_change_needs_no_name_of_its_own(terms):
    settings = terms["settings"] | {"data.max_length": 2}
    new = terms | {"settings": settings, "facts": terms["facts"] | {"examples": ["b", None], "total_steps": 3}}
    assert [change.path for change in contract.changes(terms, new)] == ["data.max_length"]


# resumed runs ---------------------------------------------------------------------------------------------------------


def test_F15_D26_changed_settings_and_data_are_refused_and_nothing_is_touched(broken_off, stories):
    before = {path: path.read_bytes() for path in sorted((broken_off / "run").rglob("*")) if path.is_file()}
    write_rows(broken_off / "train.jsonl", story_rows(ROWS, seed=1))
    with pytest.raises(ConfigError) as refused:
        run_training(
            broken_off, stories, story_rows(ROWS, seed=1), **COMMON, resume_from_checkpoint="latest",
            learning_rate=1e-6, weight_decay=0.5,
        )  # fmt: skip
    text = refused.value.line()
    assert refused.value.exit_code == 2
    assert "learning_rate: 0.001 -> 1e-06" in text
    assert "weight_decay: 0.0 -> 0.5" in text
    assert "train_data: sha256" in text
    assert {path: path.read_bytes() for path in sorted((broken_off / "run").rglob("*")) if path.is_file()} == before


def test_F15_free_settings_change_nothing(broken_off, finished, stories, tmp_path):
    moved = tmp_path / "elsewhere.jsonl"
    shutil.copy(broken_off / "train.jsonl", moved)
    run = go_on(
        broken_off, stories, train_data=str(moved), logging_first_step=False, save_steps=3, save_total_limit=2,
        cache=False, max_dropped=0.5, run_name="x", bootstrap_samples=5, overwrite_output_dir=True,
    )  # fmt: skip
    assert same_weights(run, finished / "run")
    assert steps_of(run) == steps_of(finished / "run")
    assert (run / "checkpoint-3").is_dir(), "the intervals of this run count, not the checkpoint's"


def test_F15_an_accepted_learning_rate_is_the_one_that_is_used_and_is_recorded(broken_off, stories):
    run = go_on(broken_off, stories, learning_rate=1e-5, allow_changed=["learning_rate"])
    rates = dict(logged(run, "step", "learning_rate"))
    assert rates[3] == pytest.approx(1e-5 * 2 / 4)
    assert rates[4] == pytest.approx(1e-5 * 1 / 4)
    accepted = json.loads((run / "run.json").read_text())["accepted_changes"]
    assert accepted == [{"step": 2, "changed": {"learning_rate": [1e-3, 1e-5]}}]
    assert json.loads((run / "checkpoint-4" / "contract.json").read_text())["accepted"] == accepted


def test_F15_a_longer_run_follows_the_longer_schedule_from_its_first_step(finished, stories, tmp_path):
    shutil.copytree(finished, tmp_path / "longer")
    run = go_on(tmp_path / "longer", stories, max_steps=6)
    rates = dict(logged(run, "step", "learning_rate"))
    assert [rates[5], rates[6]] == [pytest.approx(1e-3 * 2 / 6), pytest.approx(1e-3 * 1 / 6)]


def test_F15_a_longer_run_with_an_endless_schedule_equals_one_that_was_never_stopped(tmp_path, stories):
    rows, settings = story_rows(ROWS), COMMON | {"lr_scheduler_type": "constant"}
    run_training(tmp_path / "short", stories, rows, **(settings | {"max_steps": 2}))
    run_training(tmp_path / "short", stories, rows, **settings, resume_from_checkpoint="latest")
    run_training(tmp_path / "whole", stories, rows, **settings)
    assert same_weights(tmp_path / "short" / "run", tmp_path / "whole" / "run")
    assert steps_of(tmp_path / "short" / "run") == steps_of(tmp_path / "whole" / "run")


def test_F17_a_checkpoint_at_the_end_of_an_epoch_between_two_logged_steps(tmp_path, stories):
    """Two epochs of 3 steps; the checkpoint lies after step 3, and lines are logged after 1, 2, 4 and 6."""
    rows, settings = story_rows(6), COMMON | {"max_steps": 6, "save_steps": 3, "logging_steps": 2}
    run_training(tmp_path / "whole", stories, rows, **settings)
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "run" / "checkpoint-6")
    run_training(tmp_path / "again", stories, rows, **settings, resume_from_checkpoint="latest")
    assert steps_of(tmp_path / "again" / "run") == steps_of(tmp_path / "whole" / "run")
    assert [step for step, *_ in steps_of(tmp_path / "whole" / "run")] == [1, 2, 4, 6]
    assert same_weights(tmp_path / "again" / "run", tmp_path / "whole" / "run")


STOPPING: dict[str, Any] = {
    "max_steps": 12, "save_strategy": "steps", "save_steps": 1, "learning_rate": 1e-3, "eval_steps": 1, "lora_r": 2,
    "eval_on_start": True, "early_stopping_patience": 3, "early_stopping_threshold": 10.0,
    "load_best_model_at_end": True, "greater_is_better": True,
}  # fmt: skip
"""The loss falls and the greatest one is best: an early checkpoint. No evaluation is better than the first one by 10,
so the run stops after step 4."""


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, stories) -> Path:
    folder = tmp_path_factory.mktemp("stopped")
    run_training(folder, stories, story_rows(8), eval_rows=story_rows(4, 1), **STOPPING)
    assert json.loads((folder / "run" / "run.json").read_text())["result"]["steps"] == 4
    return folder


def without_its_last_step(folder: Path, copy: Path) -> Path:
    """Moved elsewhere as well, so that the paths which the checkpoints recorded lead nowhere."""
    shutil.copytree(folder, copy)
    shutil.rmtree(copy / "run" / "checkpoint-4")
    record = json.loads((copy / "run" / "run.json").read_text())
    (copy / "run" / "run.json").write_text(json.dumps(record | {"status": "failed"}))
    return copy / "run"


def test_F18_early_stopping_and_the_best_model_go_on_over_a_resume(stopped, stories, tmp_path):
    run = without_its_last_step(stopped, tmp_path / "again")
    again = run_training(
        tmp_path / "again", stories, story_rows(8), eval_rows=story_rows(4, 1), **STOPPING,
        resume_from_checkpoint="latest",
    )  # fmt: skip
    assert again.steps == 4
    assert same_weights(run, stopped / "run")
    records = [json.loads((folder / "run.json").read_text()) for folder in (stopped / "run", run)]
    assert records[0]["best"] == records[1]["best"]
    assert logged(run, "step", "eval_loss") == logged(stopped / "run", "step", "eval_loss")


def test_F23_a_damaged_best_checkpoint_is_named_and_the_next_best_is_the_result(stopped, stories, tmp_path):
    run = without_its_last_step(stopped, tmp_path / "again")
    best = json.loads((run / "run.json").read_text())["best"]["step"]
    assert best < 3, "the checkpoint that is continued must be another one"
    (run / f"checkpoint-{best}" / "optimizer.pt").write_bytes(b"")
    run_training(
        tmp_path / "again", stories, story_rows(8), eval_rows=story_rows(4, 1), **STOPPING,
        resume_from_checkpoint="latest",
    )  # fmt: skip
    said = " ".join(notices.collected())
    assert f"checkpoint-{best} " in said
    assert "optimizer.pt has changed" in said
    losses = {step: loss for step, loss in logged(run, "step", "eval_loss") if step not in (0, best)}
    assert same_weights(run, run / f"checkpoint-{max(losses, key=losses.__getitem__)}")


FILES = (
    "adapter_model.safetensors", "adapter_config.json", "optimizer.pt", "scheduler.pt", "rng_state.pth",
    "trainer_state.json", "contract.json", "progress.json", "manifest.json",
)  # fmt: skip


@pytest.mark.parametrize("how", ["truncated", "removed", "flipped"])
@pytest.mark.parametrize("name", FILES)
def test_F3_F4_each_file_of_a_checkpoint_damaged_in_turn(finished, tmp_path, name, how):
    """The one before is taken and the bad file is named; what is taken is trained on in the tests above."""
    from tunesmith.train.start import starting_point

    run = tmp_path / "run"
    shutil.copytree(finished / "run", run)
    path = run / "checkpoint-4" / name
    content = bytearray(path.read_bytes())
    if how == "removed":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    notices.clear()
    settings = {"model_name_or_path": "m", "output_dir": str(run), "resume_from_checkpoint": "latest"}
    found = starting_point(resolved_from(**settings))
    assert found is not None
    assert found.step == 2
    said = " ".join(notices.collected())
    assert name in said
    assert "continuing from checkpoint-2" in said


def test_F3_every_file_of_a_checkpoint_is_among_those_that_are_damaged(finished):
    found = {path.name for path in (finished / "run" / "checkpoint-4").iterdir()}
    others = {"README.md", "inference.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}
    assert found - others - {"chat_template.jinja"} == set(FILES)


def test_F4_what_changes_between_check_and_load_is_refused(broken_off, stories, monkeypatch):
    from tunesmith.train import run as recipe

    load_model = recipe.load_model

    def meanwhile(*args: Any) -> Any:
        path = broken_off / "run" / "checkpoint-2" / "optimizer.pt"
        path.write_bytes(path.read_bytes())  # the same bytes even: nobody can tell them from others
        return load_model(*args)

    monkeypatch.setattr(recipe, "load_model", meanwhile)
    with pytest.raises(StorageError, match=r"optimizer\.pt changed while"):
        go_on(broken_off, stories)


# the best checkpoint --------------------------------------------------------------------------------------------------

HISTORY = [{"step": 0, "eval_loss": 0.1}, {"step": 1, "eval_loss": 3.0}, {"step": 2, "eval_loss": 2.0},
           {"step": 3, "eval_loss": float("nan")}, {"step": 4, "eval_loss": 2.5}]  # fmt: skip


def best_of(folder: Path, bad: dict[int, str], steps: tuple[int, ...] = (1, 2, 3, 4)) -> Any:
    for step in steps:
        (folder / f"checkpoint-{step}").mkdir()
    notices.clear()
    return best_complete(
        HISTORY, "eval_loss", [folder], lambda path: bad.get(int(path.name[11:])), greater_is_better=False
    )


def test_F20_an_evaluation_that_is_no_number_is_never_the_best(tmp_path):
    assert best_of(tmp_path, {}).step == 2
    assert notices.collected() == []


def test_the_next_best_complete_checkpoint_takes_the_place_of_a_damaged_one(tmp_path):
    assert best_of(tmp_path, {2: "optimizer.pt is missing"}).step == 4
    said = " ".join(notices.collected())
    assert "checkpoint-2" in said
    assert "optimizer.pt is missing" in said
    assert "checkpoint-4" in said


def test_the_next_best_complete_checkpoint_takes_the_place_of_a_lost_one(tmp_path):
    assert best_of(tmp_path, {}, steps=(1, 4)).step == 4
    assert "checkpoint-2" in " ".join(notices.collected())


def test_no_complete_best_checkpoint_is_an_error(tmp_path):
    with pytest.raises(StorageError, match="checkpoint-2"):
        best_of(tmp_path, dict.fromkeys((1, 2, 4), "it was not finished"))


# PiSSA ----------------------------------------------------------------------------------------------------------------


def test_a_checkpoint_of_pissa_holds_what_was_trained_and_goes_on_exactly(tmp_path, stories):
    from tunesmith.model.load import load_for_inference

    settings = COMMON | {"init_lora_weights": "pissa_niter_2", "lora_dropout": 0.0}
    run_training(tmp_path / "whole", stories, story_rows(ROWS), **settings)
    run = tmp_path / "whole" / "run"
    assert same_weights(run / "checkpoint-4", run)
    ids = torch.arange(3, 40)[None]
    torch.manual_seed(1)
    from_checkpoint = load_for_inference(run / "checkpoint-4").model(ids).logits
    torch.manual_seed(2)
    assert torch.equal(from_checkpoint, load_for_inference(run).model(ids).logits)
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "run" / "checkpoint-4")
    run_training(tmp_path / "again", stories, story_rows(ROWS), **settings, resume_from_checkpoint="latest")
    assert same_weights(tmp_path / "again" / "run", run)


def test_a_rotation_that_was_killed_behind_the_last_step_is_done_at_the_end(tmp_path, stories, monkeypatch):
    """Found by killing at random: what the next start has no more checkpoint to write for."""
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "save_total_limit": 1}

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("tunesmith.train.run.finalize", killed)
        with pytest.raises(KeyboardInterrupt):
            run_training(tmp_path, stories, story_rows(8), **settings)
    run = tmp_path / "run"
    (run / "checkpoint-2").mkdir()
    (run / "checkpoint-2" / "optimizer.pt").write_bytes(b"the manifest went first")
    run_training(tmp_path, stories, story_rows(8), resume_from_checkpoint="latest", **settings)
    assert [found.name for found in run.glob("checkpoint-*")] == ["checkpoint-4"]
    assert json.loads((run / "run.json").read_text())["status"] == "finished"
