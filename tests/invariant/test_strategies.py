"""One training, shared by two processes in every way: the curve, the model and the answers are those of one process.

All runs of two processes happen in one launch of torchrun; their rows have unequal numbers of tokens, their steps are
accumulated, every step's gradient is clipped, and the rows do not fill the last batches of an epoch.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import ready_python
from helpers import logged, resolved_from, run_training, story_rows, tensors, write_rows
from tunesmith.launch.processes import planned
from tunesmith.model.load import load_for_inference
from tunesmith.report.folder import read_json
from tunesmith.train.check import check

WORKER = Path(__file__).resolve().parents[1] / "several_processes.py"
STRATEGIES = ("ddp", "fsdp2", "zero2", "zero3")
WAYS: dict[str, dict[str, Any]] = {
    "full": {"use_lora": False},
    "lora": {
        "lora_r": 4, "generate": True, "task": "exact", "max_new_tokens": 6, "eval_on_start": True,
        "gen_every_n_steps": 4, "save_merged_model": True,
    },
    "nf4": {"lora_r": 4, "load_in_4bit": True},
    "packed": {"use_lora": False, "batching": "packed", "gradient_checkpointing": True},
    "words": {"use_lora": False, "new_tokens": ["<note>", "<more>"]},
}  # fmt: skip
PAIRS = [(strategy, way) for strategy in STRATEGIES for way in ("full", "lora")] + [
    ("ddp", "nf4"), ("fsdp2", "nf4"), ("ddp", "packed"), ("zero3", "packed"), ("fsdp2", "words"), ("zero3", "words"),
]  # fmt: skip
SLOW = 8
"""Seconds that one merge takes longer; the processes would wait for each other for two."""
COMMON: dict[str, Any] = {
    "per_device_train_batch_size": 2,
    "max_grad_norm": 0.5,
    "max_steps": 4,
    "eval_steps": 4,
    "save_strategy": "steps",
    "save_steps": 2,
    "logging_steps": 1,
    "learning_rate": 1e-3,
    "max_length": 256,
    "lora_dropout": 0.0,
}

WEIGHTED: dict[str, Any] = {
    "max_steps": 1, "save_strategy": "no", "eval_strategy": "no", "logging_steps": 1, "learning_rate": 1e-3,
    "max_length": 256, "lora_dropout": 0.0, "gradient_accumulation_steps": 1,
}  # fmt: skip
"""All rows in one step, most of the weight with one process."""


@dataclass(frozen=True, slots=True)
class Runs:
    """Run folders of one process by way, and of two processes by name; and the settings of the latter."""

    alone: dict[str, Path]
    shared: Path
    settings: dict[str, dict[str, Any]]

    def of(self, strategy: str, way: str) -> Path:
        return self.shared / f"{strategy}-{way}"


@pytest.fixture(scope="module")
def runs(stories_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("strategies")
    rows, eval_rows = story_rows(21), story_rows(7, seed=9)
    questions = folder / "questions.txt"
    questions.write_text("Once upon a time\nOne day, Tom\n", encoding="utf-8")
    words = write_rows(folder / "words.jsonl", [with_words(row) for row in rows])
    ways = {way: settings | _questions(settings, questions) for way, settings in WAYS.items()}
    for settings in ways.values():
        settings |= {"train_data": words} if "new_tokens" in settings else {}
    alone = {
        way: run_training(
            folder / way, stories_model, rows, eval_rows=eval_rows, **COMMON, **settings, gradient_accumulation_steps=4
        ).folder
        for way, settings in ways.items()
    }
    rows_of_weight = [row | {"weight": 8.0 if index < 4 else 0.125} for index, row in enumerate(story_rows(8))]
    weighted = write_rows(folder / "weighted.jsonl", rows_of_weight)
    alone["weighted"] = run_training(
        folder / "weighted", stories_model, rows_of_weight, per_device_train_batch_size=8, **WEIGHTED
    ).folder
    data = {
        "model_name_or_path": str(stories_model),
        "train_data": write_rows(folder / "train.jsonl", rows),
        "eval_data": write_rows(folder / "eval.jsonl", eval_rows),
        "gradient_accumulation_steps": 2,
    }
    shared: dict[str, dict[str, Any]] = {}
    for strategy, way in PAIRS:
        shared[f"{strategy}-{way}"] = COMMON | data | ways[way] | {"strategy": strategy}
    for strategy in STRATEGIES:
        resumed = {
            "resume_from_checkpoint": str(folder / f"{strategy}-lora" / "checkpoint-2"),
            "save_merged_model": False,
        }
        shared[f"{strategy}-resumed"] = shared[f"{strategy}-lora"] | resumed
    shared["ddp-lora"]["slow_merge"] = SLOW
    shared["ddp-weighted"] = data | {"train_data": weighted} | WEIGHTED | {"per_device_train_batch_size": 4}
    plan = folder / "plan.json"
    plan.write_text(json.dumps({"folder": str(folder), "runs": shared}), encoding="utf-8")
    launch(plan)
    errors = {(name, rank): outcome(folder, name, rank).get("error") for name in shared for rank in (0, 1)}
    assert not any(errors.values()), errors
    return Runs(alone, folder, shared)


def outcome(folder: Path, name: str, rank: int) -> dict[str, Any]:
    """What a rank ended a run with."""
    found: dict[str, Any] = json.loads((folder / f"{name}-rank-{rank}.json").read_text())
    return found


def with_words(row: dict[str, Any]) -> dict[str, Any]:
    """The row with tokens in it that the model does not know."""
    return row | {"completion": row["completion"].replace(" saw", "<note>").replace(" happy", "<more>")}


def _questions(settings: dict[str, Any], file: Path) -> dict[str, Any]:
    return {"gen_questions_file": str(file)} if "gen_every_n_steps" in settings else {}


def launch(plan: Path) -> None:
    """Run the trainings of a plan in two processes."""
    command = ["torchrun", "--standalone", "--nproc_per_node=2", str(WORKER), str(plan)]
    done = ready_python.run(command, timeout=550)
    assert done.returncode == 0, done.stderr[-3000:]


def curve(folder: Path) -> list[tuple[float, float]]:
    found = logged(folder, "loss", "grad_norm")
    assert len(found) == 4
    return found


@pytest.mark.parametrize(("strategy", "way"), [*((strategy, "full") for strategy in STRATEGIES), ("zero3", "packed")])
def test_a_check_knew_what_two_processes_would_do(runs: Runs, strategy: str, way: str, tmp_path: Path) -> None:
    settings = runs.settings[f"{strategy}-{way}"] | {"num_processes": 2, "output_dir": str(tmp_path / "run")}
    resolved = resolved_from(**settings)
    report = check(resolved, processes=planned(resolved))
    assert report.problems == []
    assert report.steps is not None
    plan = read_json(runs.of(strategy, way) / "run.json")["plan"]
    assert {name: report.steps[name] for name in plan} == plan
    assert (plan["num_processes"], plan["total_steps"]) == (2, 4)


@pytest.mark.parametrize(("strategy", "way"), PAIRS)
def test_curve_is_that_of_one_process(runs: Runs, strategy: str, way: str) -> None:
    expected = curve(runs.alone[way])
    assert all(norm > COMMON["max_grad_norm"] for _, norm in expected)
    for found, wanted in zip(curve(runs.of(strategy, way)), expected, strict=True):
        assert found == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(("strategy", "way"), PAIRS)
def test_saved_model_is_complete_and_that_of_one_process(runs: Runs, strategy: str, way: str) -> None:
    saved, expected = tensors(runs.of(strategy, way)), tensors(runs.alone[way])
    assert {name: tensor.shape for name, tensor in saved.items()} == {name: t.shape for name, t in expected.items()}
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        found, wanted = (
            load_for_inference(folder).model(ids).logits for folder in (runs.of(strategy, way), runs.alone[way])
        )
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("strategy", ["fsdp2", "zero3"])
def test_new_words_are_in_a_model_that_others_load(runs: Runs, strategy: str) -> None:
    """Embedding and head have their rows, tied as before, and the tokenizer beside them knows the words."""
    folder = runs.of(strategy, "words")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    (first, second) = tokenizer.convert_tokens_to_ids(["<note>", "<more>"])
    assert model.config.vocab_size == len(model.get_input_embeddings().weight) == second + 1 == first + 2
    base = AutoModelForCausalLM.from_pretrained(runs.settings[f"{strategy}-words"]["model_name_or_path"])
    assert model.config.tie_word_embeddings == base.config.tie_word_embeddings
    rows, mean = model.get_input_embeddings().weight[[first, second]], base.get_input_embeddings().weight.mean(dim=0)
    assert (rows - mean).abs().amax(dim=1).min() > 1e-4, "both rows have learnt"


@pytest.mark.parametrize(("strategy", "way"), PAIRS)
def test_files_beside_the_weights_are_those_of_one_process(runs: Runs, strategy: str, way: str) -> None:
    names = {"lora": ["config.json", "lora_weights/adapter_config.json"], "nf4": ["adapter_config.json"]}
    for name in names.get(way, ["config.json"]):
        assert (runs.of(strategy, way) / name).read_text() == (runs.alone[way] / name).read_text()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_evaluations_and_samples_are_those_of_one_process(runs: Runs, strategy: str) -> None:
    keys = ("step", "eval_loss", "eval_token_accuracy", "eval_exact_match", "eval_mean_new_tokens")
    expected = logged(runs.alone["lora"], *keys)
    assert [step for step, *_ in expected] == [0, 4]
    for found, wanted in zip(logged(runs.of(strategy, "lora"), *keys), expected, strict=True):
        assert found == pytest.approx(wanted, rel=1e-5)
    sample = Path("gen_results", "gen_step_4.json")
    assert json.loads((runs.of(strategy, "lora") / sample).read_text()) == json.loads(
        (runs.alone["lora"] / sample).read_text()
    )


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_resumed_run_ends_as_the_uninterrupted_one(runs: Runs, strategy: str) -> None:
    """Bit for bit: each process continues its own piece of weights, states and random numbers."""
    whole, resumed = runs.of(strategy, "lora"), runs.shared / f"{strategy}-resumed"
    assert logged(resumed, "step", "loss", "grad_norm") == logged(whole, "step", "loss", "grad_norm")[2:]
    found, expected = tensors(resumed), tensors(whole / "lora_weights")
    assert found.keys() == expected.keys() != set()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_record_says_what_is_in_force(runs: Runs, strategy: str) -> None:
    record = json.loads((runs.of(strategy, "full") / "run.json").read_text())
    assert record["strategy"]["name"] == strategy
    assert (record["plan"]["num_processes"], record["plan"]["global_batch_size"]) == (2, 8)


def test_processes_average_by_weight_as_one_does(runs: Runs) -> None:
    ((one, one_norm),) = logged(runs.alone["weighted"], "loss", "grad_norm")
    ((two, two_norm),) = logged(runs.of("ddp", "weighted"), "loss", "grad_norm")
    assert (two, two_norm) == (pytest.approx(one, rel=1e-5), pytest.approx(one_norm, rel=1e-5))


def test_nobody_waits_for_the_merge(runs: Runs) -> None:
    """Rank 1 is done while rank 0 merges, proves and writes what it has to, and no time limit ends that."""
    ended = [outcome(runs.shared, "ddp-lora", rank)["ended"] for rank in (0, 1)]
    assert ended[0] - ended[1] > SLOW / 2
    assert json.loads((runs.of("ddp", "lora") / "run.json").read_text())["status"] == "finished"
    assert (runs.of("ddp", "lora") / "model.safetensors").is_file()
