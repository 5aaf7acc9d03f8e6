"""Document 5: its commands word for word in the recipe's folder, its loading snippets, the faults it must not have."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import ready_python
from tunesmith import notices
from tunesmith.entrypoints.sft import main
from tunesmith.report.folder import read_json, read_jsonl

PROJECT = Path(__file__).resolve().parents[2]
RECIPE = PROJECT / "recipes" / "sft"

COMMANDS = {
    "full": "accelerate launch sft.py --config default_train_config.yaml",
    "lora": "accelerate launch sft.py --config lora_train_config.yaml",
    "default": "python sft.py",
}
"""What document 5 tells people to type to train. (Its other two commands, `pip install -r requirements.txt` and
`accelerate config`, set up a machine.)"""

LOAD_WHOLE = """
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("path/to/output_dir")
tokenizer = AutoTokenizer.from_pretrained("path/to/output_dir")
"""
LOAD_BASE_AND_ADAPTER = """
from transformers import AutoModelForCausalLM, AutoTokenizer
from peft import PeftModel

base_model = AutoModelForCausalLM.from_pretrained("path/to/base_model")
model = PeftModel.from_pretrained(base_model, "path/to/output_dir/lora_weights")
tokenizer = AutoTokenizer.from_pretrained("path/to/base_model")
"""
STEPS = 4


@pytest.fixture(scope="session")
def small(stories_model: Path) -> list[str]:
    """A small real model, the recipe's small data, a few steps."""
    return [
        f"model.path={stories_model}", "model.max_seq_length=256",
        "dataset.name=data/train.jsonl", "--subset=none", "--limit=64",
        f"--max_steps={STEPS}", "--warmup_steps=1", "--logging_steps=1", "--max_new_tokens=4",
    ]  # fmt: skip


def shell(command: str, *overrides: str) -> None:
    """Type ``command`` in the recipe's folder, with overrides behind it."""
    program, *rest = command.split()
    environment = ready_python.environment(CUDA_VISIBLE_DEVICES="", ACCELERATE_USE_CPU="true")
    done = ready_python.run([program, *rest, *overrides], cwd=RECIPE, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="session")
def runs(small: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The run folders of every documented command, and of the same LoRA training in two processes."""
    home = tmp_path_factory.mktemp("sft")
    samples = ["--gen_questions_file", "data/questions.txt", "--gen_every_n_steps", "2"]
    two = COMMANDS["lora"].replace("launch", "launch --multi_gpu --num_processes 2")
    plans = {
        "full": (COMMANDS["full"], samples),
        "lora": (COMMANDS["lora"], ["--per_device_train_batch_size=4", "--lora_dropout=0", *samples]),
        "default": (COMMANDS["default"], ["--gen_every_n_steps=none"]),
        "two": (two, ["--per_device_train_batch_size=2", "--lora_dropout=0", *samples]),
    }
    for name, (command, overrides) in plans.items():
        shell(command, *small, *overrides, f"--output_dir={home / name}")
    return {name: home / name for name in plans}


def losses(run: Path) -> list[float]:
    return [entry["loss"] for entry in read_jsonl(run / "metrics.jsonl")]


def files(run: Path) -> set[str]:
    return {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}


def test_documented_commands_train(runs: dict[str, Path]) -> None:
    finished = 0
    for name in COMMANDS:
        record = read_json(runs[name] / "run.json")
        assert record["status"] == "finished"
        assert [entry["step"] for entry in read_jsonl(runs[name] / "metrics.jsonl")] == list(range(1, STEPS + 1))
        assert all(0 < loss < 20 for loss in losses(runs[name]))
        finished += 1
    assert finished == len(COMMANDS) == 3


def test_without_config_the_default_file_is_used(runs: dict[str, Path]) -> None:
    """The same settings, so the same losses and weights bit for bit; samples every two steps changed nothing."""
    assert losses(runs["default"]) == losses(runs["full"])
    weights = [(runs[name] / "model.safetensors").read_bytes() for name in ("default", "full")]
    assert weights[0] == weights[1]
    assert read_json(runs["default"] / "run.json")["settings"]["training.seed"] == 3407


def test_lora_saves_adapter_merged_model_and_tokenizer(runs: dict[str, Path]) -> None:
    names = files(runs["lora"])
    assert {"lora_weights/adapter_model.safetensors", "lora_weights/adapter_config.json"} <= names
    assert {"model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"} <= names
    assert not (runs["full"] / "lora_weights").exists()


def test_samples_are_written_during_training(runs: dict[str, Path]) -> None:
    questions = (RECIPE / "data" / "questions.txt").read_text().splitlines()
    for name in ("full", "lora", "two"):
        samples = sorted(path.name for path in (runs[name] / "gen_results").iterdir())
        assert samples == ["gen_step_2.json", "gen_step_4.json"]
        written = read_json(runs[name] / "gen_results" / "gen_step_2.json")
        assert [sample["question"] for sample in written["samples"]] == questions
        assert any(sample["answer"] for sample in written["samples"])
    assert not (runs["default"] / "gen_results").exists()


def test_the_documents_snippets_load_what_was_saved(runs: dict[str, Path], stories_model: Path, tmp_path: Path) -> None:
    """In a fresh process, with transformers and peft alone; adapter on base equals the merged model."""
    program = tmp_path / "load.py"
    programs = []
    for name, code, base in (
        ("lora", LOAD_WHOLE, None), ("lora", LOAD_BASE_AND_ADAPTER, stories_model), ("full", LOAD_WHOLE, None)
    ):  # fmt: skip
        code = code.replace("path/to/output_dir", str(runs[name])).replace("path/to/base_model", str(base))
        programs.append(f"{code}\nresults.append((model, tokenizer))\n")
    ending = """
import torch, sys
assert "tunesmith" not in sys.modules
ids = results[0][1]("Once upon a time", return_tensors="pt").input_ids
logits = [model.eval()(ids).logits for model, _ in results]
assert all(tokenizer("a b")["input_ids"] == results[0][1]("a b")["input_ids"] for _, tokenizer in results)
print(float((logits[0] - logits[1]).abs().max()), float((logits[0] - logits[2]).abs().max()))
"""
    program.write_text("results = []\n" + "".join(programs) + ending)
    done = subprocess.run([sys.executable, "-I", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    merged_and_adapter, lora_and_full = map(float, done.stdout.split())
    assert merged_and_adapter < 1e-4
    assert lora_and_full > 1e-3  # other models do differ


def test_fault_every_rank_writing_the_same_files(runs: dict[str, Path]) -> None:
    """Two processes with the same global batch: the same losses, and every file written once."""
    assert [entry["step"] for entry in read_jsonl(runs["two"] / "metrics.jsonl")] == list(range(1, STEPS + 1))
    assert losses(runs["two"]) == pytest.approx(losses(runs["lora"]), rel=1e-5)
    one, two = files(runs["lora"]), files(runs["two"])
    assert {name for name in two if "rng_state" not in name} == {name for name in one if "rng_state" not in name}
    assert sum("rng_state" in name for name in two) == 2
    plans = [read_json(runs[name] / "run.json")["plan"] for name in ("lora", "two")]
    assert [plan["num_processes"] for plan in plans] == [1, 2]
    assert [plan["global_batch_size"] for plan in plans] == [4, 4]


# In this process


@pytest.fixture
def sft(small: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Runs sft.py in this process; the run's folder is ``tmp_path/NAME``."""
    monkeypatch.chdir(RECIPE)
    notices.clear()

    def run(name: str, *arguments: str) -> int:
        return main(RECIPE, [*small, f"--output_dir={tmp_path / name}", *arguments])

    return run


def rows_file(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"dataset.name={path}"


GOOD = [{"question": f"What is {n} and {n}?", "answer": f"It is {n + n}."} for n in range(8)]


def test_fault_prompt_longer_than_max_seq_length_leaves_nothing_to_train_on(sft, tmp_path: Path, capsys) -> None:
    """Such a row is left out and named; a run of nothing else does not begin, instead of a loss that is no number."""
    long = {"question": "why " * 400, "answer": "so"}
    assert sft("some", rows_file(tmp_path / "rows.jsonl", [*GOOD, long])) == 0
    ledger = read_json(tmp_path / "some" / "ledger.json")["training"]
    (account,) = ledger["sources"].values()
    assert account["dropped"] == {"too_long": [f"{tmp_path / 'rows.jsonl'}:9"]}
    assert ledger["total"]["kept"] == 8
    assert all(0 < loss < 20 for loss in losses(tmp_path / "some"))
    capsys.readouterr()
    assert sft("all", rows_file(tmp_path / "long.jsonl", [long] * 3)) == 3
    assert "no examples are left of 3 rows" in capsys.readouterr().err


def test_fault_null_answer_trained_as_the_text_none(sft, tmp_path: Path, capsys) -> None:
    assert sft("run", rows_file(tmp_path / "rows.jsonl", [*GOOD, {"question": "Why?", "answer": None}])) == 3
    assert 'rows.jsonl:9: "answer" is null' in capsys.readouterr().err
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_fault_two_bos(stories_tokenizer, mistral_tokenizer) -> None:
    """One begin token, in training and in the prompt of inference, with and without a chat template that writes it."""
    from tunesmith.config.schema import DataSection
    from tunesmith.data.examples import ExampleBuilder
    from tunesmith.data.row import Row

    row = Row(GOOD[1], "rows.jsonl", 2)
    for tokenizer in (stories_tokenizer, mistral_tokenizer):
        builder = ExampleBuilder(tokenizer, DataSection(max_length=256))
        example, prompt = builder.example(row), builder.prompt(row).input_ids
        assert example is not None
        assert list(example.input_ids).count(tokenizer.bos_token_id) == 1 == prompt.count(tokenizer.bos_token_id)
        assert example.input_ids[0] == prompt[0] == tokenizer.bos_token_id
        assert list(example.input_ids[: len(prompt)]) == prompt


@pytest.mark.parametrize(
    ("arguments", "held", "precision"),
    [
        (["--use_lora", "model.load_in_4bit=true"], "4-bit nf4 with LoRA", None),
        (["model.dtype=bfloat16", "--bf16"], "full precision, every weight trained", "bfloat16"),
    ],
)
def test_fault_dtype_and_load_in_4bit_read_by_nothing(
    sft, tmp_path: Path, arguments: list[str], held: str, precision: str | None
) -> None:
    assert sft("run", *arguments, "--max_steps=2", "--no_save_merged_model") == 0
    model = read_json(tmp_path / "run" / "run.json")["model"]
    assert model["held"] == held
    assert precision in (None, model["precision"])
    if precision:
        from safetensors import safe_open

        with safe_open(tmp_path / "run" / "model.safetensors", framework="pt") as tensors:
            assert {tensors.get_slice(name).get_dtype() for name in tensors.keys()} == {"BF16"}  # noqa: SIM118


def test_fault_unknown_keys_ignored(sft, tmp_path: Path, capsys) -> None:
    config = tmp_path / "config.yaml"
    config.write_text((RECIPE / "default_train_config.yaml").read_text() + "  lerning_rate: 1e-4\n")
    assert sft("run", f"--config={config}") == 2
    line = len(config.read_text().splitlines())
    assert f"config.yaml:{line}: unknown setting 'training.lerning_rate'; did you mean" in capsys.readouterr().err
    assert sft("run", "--lerning_rate=1e-4") == 2


def test_fault_generating_samples_without_returning_to_train_mode(sft, tmp_path: Path) -> None:
    """With dropout in the adapters, a run with samples after every step equals one without, bit for bit."""
    for name, samples in (
        ("with", ["--gen_questions_file=data/questions.txt", "--gen_every_n_steps=1", "--temperature=0.8"]),
        ("without", []),
    ):
        lora = ["--config=lora_train_config.yaml", "--lora_dropout=0.3", "--no_save_merged_model"]
        assert sft(name, *lora, "--learning_rate=1e-2", *samples) == 0
    assert len(list((tmp_path / "with" / "gen_results").iterdir())) == STEPS
    assert losses(tmp_path / "with") == losses(tmp_path / "without")
    weights = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("with", "without")]
    assert weights[0] == weights[1]


def test_questions_that_cannot_be_asked(sft, tmp_path: Path, capsys) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text("\n \n")
    for file, words in ((empty, "holds no question"), (tmp_path / "none.txt", "cannot read the questions")):
        assert sft("run", f"--gen_questions_file={file}", "--gen_every_n_steps=1") == 3
        assert words in capsys.readouterr().err
    assert sft("run", "--gen_questions_file=data/questions.txt", "--gen_every_n_steps=none") == 2


def chat(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def test_other_shapes_of_rows_and_columns(sft, tmp_path: Path) -> None:
    """`dataset.name` is a local file of any known shape, its columns under any name; questions follow the shape."""
    shapes: dict[str, list[dict[str, Any]]] = {
        "renamed": [{"problem": row["question"], "solution": row["answer"]} for row in GOOD],
        "messages": [{"messages": [chat("user", row["question"]), chat("assistant", row["answer"])]} for row in GOOD],
        "completion": [{"prompt": row["question"], "completion": " " + row["answer"]} for row in GOOD],
        "alpaca": [{"instruction": row["question"], "output": row["answer"]} for row in GOOD],
    }
    for name, rows in shapes.items():
        columns = ["--question_column=problem", "--answer_column=solution"] if name == "renamed" else []
        samples = ["--gen_questions_file=data/questions.txt", "--gen_every_n_steps=1"]
        data = rows_file(tmp_path / f"{name}.jsonl", rows)
        assert sft(name, data, *columns, *samples, "--max_steps=1", "--save_strategy=no") == 0
        assert read_json(tmp_path / name / "gen_results" / "gen_step_1.json")["samples"]
    assert len(shapes) == 4


def test_shipped_files_hold_the_documented_values() -> None:
    from tunesmith.config.load import load

    default = load(RECIPE / "default_train_config.yaml").config
    assert (default.model.model_name_or_path, default.data.max_length) == ("Qwen/Qwen2.5-0.5B-Instruct", 128)
    assert (default.data.train_data, default.data.subset, default.data.train_split) == ("openai/gsm8k", "main", "train")
    training = default.training
    assert (training.num_train_epochs, training.max_steps, training.per_device_train_batch_size) == (1, 2000, 1)
    assert (training.learning_rate, training.lr_scheduler_type, training.seed) == (2e-4, "linear", 3407)
    assert (training.output_dir, default.adapter.use_lora) == ("outputs", False)
    lora = load(RECIPE / "lora_train_config.yaml").config
    assert (lora.data.max_length, lora.training.learning_rate, lora.training.output_dir) == (256, 5e-5, "outputs_lora")
    adapter = lora.adapter
    assert (adapter.use_lora, adapter.lora_r, adapter.lora_alpha, adapter.lora_dropout) == (True, 16, 32, 0.1)
    assert adapter.target_modules == ["q_proj", "v_proj", "k_proj", "o_proj"]
    assert lora.training.save_merged_model


def test_requirements_are_installed_here() -> None:
    import importlib.metadata

    lines = (RECIPE / "requirements.txt").read_text().splitlines()
    names = [line.split("#")[0].strip() for line in lines if line.split("#")[0].strip()]
    assert names == ["tunesmith"]
    assert importlib.metadata.version("tunesmith")
