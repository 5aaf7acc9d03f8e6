"""The journal of an evaluation: what was interrupted goes on exactly, and nothing else is ever taken from it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from helpers import story_rows, write_rows
from tunesmith import notices
from tunesmith.config.load import load as load_config
from tunesmith.errors import StorageError
from tunesmith.evaluate import side_by_side
from tunesmith.evaluate.decoding import Decoding, Job
from tunesmith.evaluate.generate import generate
from tunesmith.evaluate.journal import JOURNAL, Journal
from tunesmith.evaluate.run import evaluate_untrained

PROMPTS = [[1, *range(5, 5 + length)] for length in (3, 9, 4, 12, 7)]
SETTINGS: dict[str, Any] = {"max_new_tokens": 5, "batch_size": 2, "stop_token_ids": [95]}


def load(folder: Path) -> tuple[Any, Any]:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), AutoTokenizer.from_pretrained(folder)


class Killed(Exception):
    """What stands for the end of the process."""


def interrupted(model: Any, tokenizer: Any, path: Path, prompts: list[list[int]] = PROMPTS, **changes: Any) -> None:
    """Generate until the first batch is finished."""

    def stop(done: int, total: int) -> None:
        raise Killed

    with pytest.raises(Killed):
        generate(model, tokenizer, prompts, Decoding(**SETTINGS | changes), journal=Journal(path), on_progress=stop)
    assert len(path.read_text().splitlines()) == 2


def generated_now(model: Any, tokenizer: Any, path: Path, prompts: list[list[int]] = PROMPTS, **changes: Any) -> int:
    """How many answers are generated with this journal, all of which must be as without it."""
    settings = SETTINGS | changes
    started: list[int] = []
    begin = side_by_side.Rows.__init__

    def counted(rows: side_by_side.Rows, model: Any, jobs: Sequence[Job], *more: Any) -> None:
        started.append(len(jobs))
        begin(rows, model, jobs, *more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(side_by_side.Rows, "__init__", counted)
        answers = generate(model, tokenizer, prompts, Decoding(**settings), journal=Journal(path))
    assert answers == generate(model, tokenizer, prompts, Decoding(**settings))
    return sum(started)


def test_what_was_finished_is_not_generated_again(models_folder: Path, tmp_path: Path, clean_notices: None) -> None:
    model, tokenizer = load(models_folder / "llama")
    path = tmp_path / "evaluation" / JOURNAL
    interrupted(model, tokenizer, path)
    # another process with the same weights goes on
    assert generated_now(*load(models_folder / "llama"), path) == 3
    assert notices.collected() == [f"{path}: goes on after 2 answers of an interrupted evaluation"]
    assert generated_now(model, tokenizer, path) == 0
    Journal(path).remove()
    assert not path.exists()
    assert generated_now(model, tokenizer, path) == 5


def test_a_line_that_was_being_written_is_thrown_away(models_folder: Path, tmp_path: Path) -> None:
    model, tokenizer = load(models_folder / "llama")
    path = tmp_path / JOURNAL
    interrupted(model, tokenizer, path)
    whole = path.read_bytes()
    for cut in (len(whole) - 1, len(whole) - 20, len(whole.splitlines(keepends=True)[0]) + 1):
        path.write_bytes(whole[:cut])
        assert generated_now(model, tokenizer, path) == 5  # the batch is no longer whole
        assert {json.loads(line)["index"] for line in path.read_text().splitlines()} == set(range(5))
        assert generated_now(model, tokenizer, path) == 0


@pytest.mark.parametrize(
    "change",
    ["max_new_tokens", "batch_size", "stop_token_ids", "temperature", "seed", "prompt", "order", "weight", "adapter",
     "scaling", "autocast", "engine"],
)  # fmt: skip
def test_nothing_is_taken_from_another_generation(
    models_folder: Path, tmp_path: Path, change: str, clean_notices: None
) -> None:
    model, tokenizer = load(models_folder / "mistral")
    if change in ("adapter", "scaling"):
        torch.manual_seed(0)
        model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    path = tmp_path / JOURNAL
    interrupted(model, tokenizer, path, temperature=0.5 if change == "seed" else 0.0)
    assert generated_now(model, tokenizer, path, temperature=0.5 if change == "seed" else 0.0) == 3  # as it was: taken

    prompts, changes = PROMPTS, {}
    if change == "prompt":
        prompts = [*PROMPTS[:-1], [1, 90, 91]]
    elif change == "order":
        prompts = PROMPTS[::-1]
    elif change == "weight":
        with torch.no_grad():
            model.model.layers[1].mlp.down_proj.weight[3, 3] += 1e-3
    elif change == "adapter":
        with torch.no_grad():
            next(parameter for name, parameter in model.named_parameters() if "lora_B" in name)[0, 0] += 1e-3
    elif change == "scaling":
        model.peft_config["default"].lora_alpha = 3
    elif change != "autocast":
        new = {"max_new_tokens": 4, "batch_size": 3, "stop_token_ids": [94], "temperature": 0.3, "seed": 1}
        changes = {change: new.get(change, "continuous")} | ({"temperature": 0.5} if change == "seed" else {})
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=change == "autocast"):
        generated_now(model, tokenizer, path, prompts, **changes)
    assert f"{path}: holds answers of other weights, data or settings; they are not used" in notices.collected()
    fingerprints = {json.loads(line)["fingerprint"] for line in path.read_text().splitlines()}
    assert len(fingerprints) == 1


@pytest.mark.parametrize("times", [1, 3])
def test_what_was_under_way_side_by_side_begins_anew(models_folder: Path, tmp_path: Path, times: int) -> None:
    model, tokenizer = load(models_folder / "llama")
    prompts = [[1, *range(5, 5 + length)] for length in range(3, 25)]
    changes = {"batch_size": 4, "max_new_tokens": 12, "stop_token_ids": list(range(4, 20))}
    told: list[int] = []

    def stop(done: int, total: int) -> None:
        told.append(done)
        if len(told) == times:
            raise Killed

    path = tmp_path / JOURNAL
    with pytest.raises(Killed):
        generate(model, tokenizer, prompts, Decoding(**SETTINGS | changes), journal=Journal(path), on_progress=stop)
    kept = len(path.read_text().splitlines()) if path.exists() else 0
    assert kept <= told[-1] < len(prompts)
    assert generated_now(model, tokenizer, path, prompts, **changes) == len(prompts) - kept


def test_answers_that_were_kept_together_count_together(tmp_path: Path) -> None:
    journal = Journal(tmp_path / JOURNAL)
    journal.open({})
    journal.add([(0, ([5], True)), (3, ([6], False))])
    journal.add([(1, ([7], True)), (2, ([8], True)), (4, ([9], True))])
    lines = journal.path.read_bytes().splitlines(keepends=True)
    journal.path.write_bytes(b"".join(lines[:4]))
    assert Journal(journal.path).open({}) == {0: ([5], True), 3: ([6], False)}
    assert len(journal.path.read_bytes().splitlines()) == 2


def test_two_processes_with_one_journal_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / JOURNAL
    first, second = Journal(path), Journal(path)
    assert first.open({"seed": 1}) == {}
    first.add([(0, ([5], True))])
    assert second.open({"seed": 2}) == {}
    first.add([(1, ([6], True))])
    second.add([(0, ([7], False))])
    assert Journal(path).open({"seed": 2}) == {0: ([7], False)}


def test_a_journal_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / JOURNAL).mkdir()
    with pytest.raises(StorageError, match=JOURNAL):
        Journal(tmp_path / JOURNAL).open({})


def test_a_killed_evaluation_ends_as_if_nothing_had_happened(
    stories_model: Path, tmp_path: Path, clean_notices: None
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", story_rows(16))
    config = tmp_path / "config.yaml"
    config.write_text(f"model:\n  model_name_or_path: {stories_model}\ndata:\n  train_data: {rows}\n", encoding="utf-8")
    settings = ["--generation_batch_size", "2", "--max_new_tokens", "40", "--temperature", "0.7"]
    journal = tmp_path / "killed" / JOURNAL
    command = [sys.executable, "-m", "tunesmith", "evaluate", "--config", config, "--data", rows, *settings]
    with (tmp_path / "stderr").open("wb") as stderr:
        process = subprocess.Popen([*command, "--output", journal.parent], stderr=stderr)
    while process.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") >= 6):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, (tmp_path / "stderr").read_text("utf-8")
    assert [path.name for path in journal.parent.iterdir()] == [JOURNAL]
    finished = journal.read_bytes().count(b"\n")
    assert 6 <= finished < 16

    resolved = load_config(config, settings)
    for name in ("killed", "whole"):
        evaluate_untrained(resolved, data=rows, output=tmp_path / name)
    assert notices.collected()[-1] == f"{journal}: goes on after {finished} answers of an interrupted evaluation"
    names = {"predictions.jsonl", "metrics.json", "mistakes.json"}
    assert {path.name for path in journal.parent.iterdir()} == names
    for name in names:
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
