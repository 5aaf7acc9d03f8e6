"""Early stopping and the best model by what the model answers: what is exported is what was measured (N20, N21)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from helpers import logged, run_training, tensors
from tunesmith.evaluate.run import evaluate_run
from tunesmith.report.folder import read_json, read_jsonl
from tunesmith.synthetic.nli import make_nli

SETTINGS: dict[str, Any] = {
    "task": "nli",
    "max_steps": 40,
    "per_device_train_batch_size": 16,
    "seed": 2,  # with whose order and dropout it learns something in so few steps
    "learning_rate": 8e-3,
    "target_modules": "all-linear",
    "lora_dropout": 0.1,
    "eval_steps": 4,
    "max_new_tokens": 12,
    "max_length": 128,
}
BEST: dict[str, Any] = {
    "generate": True,
    "save_strategy": "steps",
    "save_steps": 8,
    "load_best_model_at_end": True,
    "metric_for_best_model": "macro_f1",
    "early_stopping_patience": 2,
}


def rows() -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Pairs of the embedded world with the label alone as the answer, which is learnt in a few steps."""

    def short(row: dict[str, Any]) -> dict[str, str]:
        prompt = f"{row['premise']} {row['hypothesis']} "
        return {"prompt": prompt, "completion": f'{{"predicted_label": {row["predicted_label"]}}}'}

    train, held = make_nli(640, 60)
    return [short(row) for row in train], [short(row) for row in held]


@pytest.fixture(scope="module")
def best_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A QLoRA run (NF4) stopped early by the macro F1 of a sample of its evaluation rows."""
    folder = tmp_path_factory.mktemp("best")
    train, held = rows()
    sample = {"generate_limit": 24, "generate_seed": 5}
    run_training(folder, "nano-mistral", train, eval_rows=held, load_in_4bit=True, **SETTINGS, **BEST, **sample)
    return folder / "run"


def test_training_stops_when_macro_f1_no_longer_rises(best_run: Path) -> None:
    """Recounted from the log: the best evaluation is followed by as many as the patience allows, and no more."""
    measured = logged(best_run, "step", "eval_macro_f1")
    values = [value for _, value in measured]
    place = values.index(max(values))
    assert values[place] > 0.4
    assert place == len(measured) - 1 - BEST["early_stopping_patience"]
    assert measured[-1][0] < SETTINGS["max_steps"]
    record = read_json(best_run / "run.json")
    assert record["best"] == {"step": measured[place][0], "metric": "eval_macro_f1", "value": values[place]}
    assert record["best_checkpoint"] == f"checkpoint-{measured[place][0]}"
    assert (best_run / "curves.png").stat().st_size > 10_000


def test_the_exported_best_gives_its_logged_figures_again(best_run: Path) -> None:
    """Every figure, bit for bit: those of the sampled answers, and loss and token accuracy of all rows."""
    record = read_json(best_run / "run.json")
    step = record["best"]["step"]
    result = evaluate_run(best_run, sample=True)
    entry = next(entry for entry in read_jsonl(best_run / "metrics.jsonl")
                 if entry["step"] == step and "eval_loss" in entry)  # fmt: skip
    figures = {name.removeprefix("eval_"): value for name, value in entry.items() if name.startswith("eval_")}
    figures.pop("runtime")
    assert {"loss", "token_accuracy", "accuracy", "macro_f1", "parse_failure_rate"} <= figures.keys()
    assert {name: result.metrics[name] for name in figures} == figures
    kept = best_run / "evaluation" / f"step-{step}"
    assert result.metrics | {"model": None} == read_json(kept / "metrics.json") | {"model": None}
    assert list(read_jsonl(kept / "predictions.jsonl")) == result.predictions
    assert len(result.predictions) == 24
    assert [row["source"] for row in result.predictions] != [f"{best_run.parent}/eval.jsonl:{n}" for n in range(1, 25)]


def test_every_evaluation_of_the_log_has_its_predictions(best_run: Path) -> None:
    steps = {step for step, _ in logged(best_run, "step", "eval_macro_f1")}
    assert {path.name for path in (best_run / "evaluation").glob("step-*")} == {f"step-{step}" for step in steps}


def test_generating_at_evaluations_changes_no_bit_of_the_run(tmp_path: Path) -> None:
    """N20, with dropout and sampling, so that every random stream is in use."""
    train, held = rows()
    short = SETTINGS | {"max_steps": 4, "eval_steps": 2, "max_new_tokens": 4, "report_to": ["tensorboard"]}
    asked = {"generate": True, "generate_limit": 4, "temperature": 1.0, "gen_every_n_steps": 1}
    run_training(tmp_path / "without", "nano-mistral", train, **short)
    run_training(tmp_path / "with", "nano-mistral", train, eval_rows=held, **short, **asked)
    curves = [logged(tmp_path / name / "run", "step", "loss", "grad_norm") for name in ("without", "with")]
    assert curves[0] == curves[1]
    assert len(curves[0]) == 4
    one, other = tensors(tmp_path / "without/run"), tensors(tmp_path / "with/run")
    assert one.keys() == other.keys()
    assert all((one[name] == other[name]).all() for name in one)
