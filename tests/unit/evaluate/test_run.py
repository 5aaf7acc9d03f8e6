"""Evaluation from rows to files: complete, in order, and equal to an independent recount."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, precision_recall_fscore_support
from transformers import AutoModelForCausalLM, AutoTokenizer

from tunesmith.config.resolve import Resolved, from_values
from tunesmith.config.schema import DataSection, EvaluationSection
from tunesmith.data.examples import ExampleBuilder
from tunesmith.data.row import Row
from tunesmith.data.rows import read_rows
from tunesmith.errors import ConfigError, DataError, DataErrors, ModelError
from tunesmith.evaluate.generate import Generation
from tunesmith.evaluate.result import write_result
from tunesmith.evaluate.run import evaluate_rows, evaluate_run, evaluate_several, evaluate_untrained
from tunesmith.evaluate.scoring import Case, score_generations, task_for
from tunesmith.evaluate.tasks import NliTask
from tunesmith.model.load import load_for_inference
from tunesmith.report import record
from tunesmith.report.folder import read_json, read_jsonl
from tunesmith.train.checkpoint import Batches, commit


def recount(folder: Path) -> dict[str, Any]:
    """metrics.json of an nli evaluation, counted again from predictions.jsonl with scikit-learn alone."""
    predictions = [json.loads(line) for line in (folder / "predictions.jsonl").read_text("utf-8").splitlines()]
    gold = [item["reference"] for item in predictions]
    answers = [-9 if item["answer"] is None else item["answer"] for item in predictions]
    seen = sorted({*gold, *answers} - {-9})
    per_class = precision_recall_fscore_support(gold, answers, labels=[0, 1], zero_division=0)
    return {
        "num_examples": len(predictions),
        "accuracy": accuracy_score(gold, answers),
        "macro_f1": f1_score(gold, answers, labels=seen, average="macro", zero_division=0),
        "parse_failure_rate": answers.count(-9) / len(answers),
        "f1": per_class[2].tolist(),
        "counts": confusion_matrix(gold, answers, labels=[0, 1, -9])[:2].tolist(),
    }


def assert_equal_to_recount(metrics: dict[str, Any], folder: Path) -> None:
    again = recount(folder)
    for name in ("num_examples", "accuracy", "macro_f1", "parse_failure_rate"):
        assert metrics[name] == pytest.approx(again[name], abs=1e-12), name
    assert [metrics["per_class"][label]["f1"] for label in ("0", "1")] == pytest.approx(again["f1"])
    assert metrics["confusion_matrix"]["counts"] == again["counts"]


def test_metrics_equal_an_independent_recount_of_the_predictions_file(tmp_path: Path) -> None:
    rng = random.Random(5)
    shapes = [
        '{{"thought_process": "x", "predicted_label": {}}}',
        "label: {}",
        "entailment {}?",
        'ok {{"predicted_label": {}}}',
    ]
    cases = [Case(f"rows.jsonl:{line}", "p", rng.randint(0, 1)) for line in range(300)]
    generations = [
        Generation(rng.choice(shapes).format(case.reference if rng.random() < 0.8 else 1 - case.reference), [1], True)
        for case in cases
    ]
    result = score_generations(NliTask(), cases, generations)
    write_result(tmp_path, result)
    assert_equal_to_recount(read_json(tmp_path / "metrics.json"), tmp_path)
    assert 0.4 < result.metrics["accuracy"] < 0.8
    assert 0.1 < result.metrics["parse_failure_rate"] < 0.4
    assert len(result.metrics["read_as"]) == 4
    assert sum(result.metrics["read_as"].values()) == 300


def test_rows_are_answered_from_the_prompt_of_training_alone(stories: tuple[Any, Any], esnli: Path) -> None:
    model, tokenizer = stories
    tokenizer.pad_token = tokenizer.eos_token
    builder = ExampleBuilder(tokenizer, DataSection(format="text", max_length=512))
    rows = read_rows(str(esnli))[:6]
    evaluation = EvaluationSection(max_new_tokens=12, generation_batch_size=4)
    task = task_for(evaluation, builder, rows)
    assert task.name == "nli"
    model.train()
    state = torch.get_rng_state().clone()
    result = evaluate_rows(model, builder, rows, task, evaluation)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert [prediction["source"] for prediction in result.predictions] == [row.where for row in rows]
    for row, prediction in zip(rows, result.predictions, strict=True):
        example = builder.example(row)
        assert example is not None
        prompt = builder.prompt(row).input_ids
        assert example.input_ids[: len(prompt)] == prompt
        assert prediction["prompt"].rstrip().endswith("[/INST]")
        assert prediction["reference"] == json.loads(row.values["text"].split("[/INST]")[1][:-5])["predicted_label"]
        assert prediction["answer"] is None  # a story model that says nothing about labels is unreadable, not 1
    assert result.metrics["parse_failure_rate"] == 1.0
    assert result.metrics["accuracy"] == 0.0


def test_rows_without_gold_label_are_all_named(stories: tuple[Any, Any]) -> None:
    model, tokenizer = stories
    builder = ExampleBuilder(tokenizer, DataSection(format="prompt_completion"))
    rows = [Row({"prompt": "p", "completion": text}, "x.jsonl", line) for line, text in enumerate(["a", "b", "1"], 1)]
    with pytest.raises(DataErrors) as caught:
        evaluate_rows(model, builder, rows, NliTask(), EvaluationSection())
    (line,) = caught.value.lines()
    assert line.startswith("x.jsonl:1: ")
    assert line.endswith("(and 1 more: 2)")
    with pytest.raises(DataError, match="no rows"):
        evaluate_rows(model, builder, [], NliTask(), EvaluationSection())


def test_renamed_columns_reach_the_task(stories: tuple[Any, Any]) -> None:
    model, tokenizer = stories
    section = DataSection(format="prompt_completion", columns={"prompt": "input", "completion": "gold"})
    builder = ExampleBuilder(tokenizer, section)
    rows = [Row({"input": "Once upon a", "gold": '{"predicted_label": 1}'}, "x.jsonl", 1)]
    result = evaluate_rows(model, builder, rows, NliTask(), EvaluationSection(max_new_tokens=3))
    assert result.predictions[0]["reference"] == 1


@pytest.fixture
def run_folder(real_data: Path, esnli: Path, tmp_path: Path) -> Path:
    """A run folder as training leaves one: record, adapter with random weights, tokenizer."""
    folder = tmp_path / "run"
    resolved = settings_of(real_data, esnli, folder)
    record.begin(folder, resolved, ["tunesmith", "train"], {})
    record.close(folder, "finished", {})
    source = resolved.config.model.model_name_or_path
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    torch.manual_seed(0)
    adapted = get_peft_model(
        model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    )
    adapted.save_pretrained(folder)
    adapted.save_pretrained(folder / "checkpoint-3")
    commit(folder / "checkpoint-3", Batches(1, 1, 1))
    return folder


def settings_of(real_data: Path, data: Path, folder: Path) -> Resolved:
    return from_values(
        {
            "model.model_name_or_path": str(real_data / "model_stories260k" / "hf"),
            "model.dtype": "float32",
            "adapter.lora_r": 4,
            "adapter.target_modules": ["q_proj", "v_proj"],
            "data.train_data": str(data),
            "data.eval_data": str(data),
            "data.max_length": 512,
            "training.output_dir": str(folder),
            "evaluation.max_new_tokens": 8,
        }
    )


def test_a_run_folder_is_evaluated_into_files_that_agree(run_folder: Path, esnli: Path) -> None:
    told: list[tuple[int, int]] = []
    result = evaluate_run(run_folder, limit=20, progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (20, 20)
    folder = run_folder / "evaluation"
    assert result.folder == folder
    assert read_json(folder / "metrics.json") == result.metrics
    assert list(read_jsonl(folder / "predictions.jsonl")) == result.predictions
    assert [item["source"] for item in result.predictions] == [row.where for row in read_rows(str(esnli))[:20]]
    assert_equal_to_recount(result.metrics, folder)
    again = evaluate_run(run_folder, limit=20)
    assert again == result


def test_checkpoints_other_data_and_other_settings(run_folder: Path, esnli: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text("".join(esnli.read_text("utf-8").splitlines(keepends=True)[:3]), encoding="utf-8")
    result = evaluate_run(run_folder / "checkpoint-3", data=str(other), settings=["--max_new_tokens", "4"])
    assert result.folder == run_folder / "evaluation" / "checkpoint-3"
    assert result.metrics["num_examples"] == 3
    assert result.metrics["mean_new_tokens"] == 4.0
    elsewhere = evaluate_run(run_folder, data=str(other), output=tmp_path / "elsewhere")
    assert_equal_to_recount(elsewhere.metrics, tmp_path / "elsewhere")
    assert not (run_folder / "evaluation" / "metrics.json").exists()


def test_what_cannot_be_evaluated_is_refused(run_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="lora_r cannot be changed"):
        evaluate_run(run_folder, settings=["--lora_r", "8"])
    with pytest.raises(ModelError, match="no such model folder"):
        evaluate_run(tmp_path / "nothing")
    with pytest.raises(DataError):
        evaluate_run(run_folder, data=str(tmp_path / "missing.jsonl"))


def test_the_untrained_model_is_judged_under_the_same_settings(
    real_data: Path, esnli: Path, run_folder: Path, tmp_path: Path
) -> None:
    resolved = settings_of(real_data, esnli, run_folder)
    before = evaluate_untrained(resolved, limit=5)
    assert before.folder is None
    after = evaluate_run(run_folder, limit=5)
    same = ("source", "prompt", "reference")
    assert [[row[key] for key in same] for row in before.predictions] == [
        [row[key] for key in same] for row in after.predictions
    ]
    assert [row["output"] for row in before.predictions] != [row["output"] for row in after.predictions]
    written = evaluate_untrained(resolved, limit=5, output=tmp_path / "before")
    assert written.metrics == before.metrics
    assert_equal_to_recount(before.metrics, tmp_path / "before")


def test_loss_and_token_accuracy_are_counted_again_by_hand(run_folder: Path, real_data: Path, esnli: Path) -> None:
    """An independent cross-entropy over the answers' tokens, row by row and without padding."""
    result = evaluate_run(run_folder, limit=3)
    inference = load_for_inference(run_folder)
    tokenizer = AutoTokenizer.from_pretrained(real_data / "model_stories260k" / "hf")
    builder = ExampleBuilder(tokenizer, settings_of(real_data, esnli, run_folder).config.data)
    nll, right, count = 0.0, 0, 0
    for row in read_rows(str(esnli))[:3]:
        example = builder.example(row)
        with torch.no_grad():
            logits = inference.model(torch.tensor([example.input_ids])).logits[0].double().log_softmax(-1)
        for position, label in enumerate(example.labels[1:]):
            if label != -100:
                nll -= logits[position, label].item()
                right += int(logits[position].argmax() == label)
                count += 1
    assert count > 30
    assert result.metrics["loss"] == pytest.approx(nll / count, rel=1e-5)
    assert result.metrics["token_accuracy"] == right / count


def test_any_model_and_adapter_is_judged_and_compared(
    run_folder: Path, real_data: Path, esnli: Path, tmp_path: Path
) -> None:
    """A run, its adapter on its own, and the base from its folder; the baseline is that base."""
    adapter = tmp_path / "adapter"
    shutil.copytree(run_folder, adapter, ignore=shutil.ignore_patterns("run.json", "checkpoint-*"))
    base = str(real_data / "model_stories260k" / "hf")
    flags = ["--max_new_tokens", "6", "--max_length", "512"]
    comparison = evaluate_several(
        [run_folder, adapter, base], baseline=True, data=str(esnli), limit=4, settings=flags, output=tmp_path / "cmp"
    )
    names = [f"{base} (untrained)", str(run_folder), str(adapter), base]
    assert list(comparison.models) == names
    figures = [{key: value for key, value in comparison.models[name].items() if key != "model"} for name in names]
    assert figures[0] == figures[3] != figures[1]
    assert figures[1] == figures[2]
    folders = sorted(path.name for path in (tmp_path / "cmp").iterdir() if path.is_dir())
    assert [name.split("-")[0] for name in folders] == ["1", "2", "3", "4"]
    assert all((tmp_path / "cmp" / name / "predictions.jsonl").is_file() for name in folders)
    assert read_json(tmp_path / "cmp" / "comparison.json") == comparison.to_dict()
    assert not (run_folder / "evaluation").exists()


def test_what_cannot_be_compared_is_refused(run_folder: Path, esnli: Path, real_data: Path) -> None:
    base = str(real_data / "model_stories260k" / "hf")
    with pytest.raises(ConfigError, match="named twice"):
        evaluate_several([run_folder, run_folder])
    with pytest.raises(ConfigError, match="does not say which model it was trained from"):
        evaluate_several([base], baseline=True, data=str(esnli))
    with pytest.raises(DataError, match="no rows to evaluate on"):
        evaluate_several([run_folder, base])
