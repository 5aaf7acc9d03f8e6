"""Sample answers during training: to a file, and readable in the trackers themselves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from helpers import run_training, story_rows
from tunesmith.report.folder import read_json


@pytest.fixture(scope="module")
def sampled_run(tmp_path_factory: pytest.TempPathFactory, stories_model: Path) -> Path:
    """Two steps with TensorBoard and W&B offline, questions taken from the evaluation rows."""
    folder = tmp_path_factory.mktemp("samples")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        run_training(
            folder, stories_model, story_rows(4), eval_rows=story_rows(6, seed=9), max_steps=2, gen_every_n_steps=1,
            max_new_tokens=6, report_to=["tensorboard", "wandb"], generate=True, generate_limit=2, task="exact",
        )  # fmt: skip
    return folder / "run"


def answers(run: Path, step: int) -> list[str]:
    return [sample["answer"] for sample in read_json(run / f"gen_results/gen_step_{step}.json")["samples"]]


def test_without_questions_evaluation_rows_are_asked(sampled_run: Path) -> None:
    rows = story_rows(6, seed=9)[:4]
    samples = read_json(sampled_run / "gen_results" / "gen_step_2.json")["samples"]
    assert [sample["reference"] for sample in samples] == [row["completion"] for row in rows]
    assert all(row["prompt"] in sample["question"] for row, sample in zip(rows, samples, strict=True))


def test_tensorboard_shows_samples_and_figures_of_answers(sampled_run: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(sampled_run / "tensorboard"))
    events.Reload()
    texts = events.Tensors("samples/text_summary")
    assert [event.step for event in texts] == [1, 2]
    for event in texts:
        shown = event.tensor_proto.string_val[0].decode()
        found = [text for text in answers(sampled_run, event.step) if " ".join(text.split()) in shown]
        assert len(found) == 4
    assert len(events.Scalars("eval/exact_match")) == 2


def test_wandb_keeps_a_table_of_samples(sampled_run: Path) -> None:
    tables = sorted(sampled_run.glob("wandb/offline-run-*/files/media/table/*.table.json"))
    assert len(tables) == 2
    by_step = {table["data"][0][0]: table for table in (json.loads(path.read_text()) for path in tables)}
    for step, table in by_step.items():
        assert table["columns"] == ["step", "question", "reference", "answer", "stopped"]
        assert [row[3] for row in table["data"]] == answers(sampled_run, step)
    assert set(by_step) == {1, 2}
