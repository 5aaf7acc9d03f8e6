"""Document 4's commands, word for word, from a copy of the recipe folder; only model and lengths are made small."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import ready_python
from tunesmith import notices
from tunesmith.cli.main import main as tunesmith
from tunesmith.entrypoints.rag import main as training

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "rag"

COMMANDS = {
    "context": """python training.py -cp configs/paper -cn training-asqa  \\
       data_file=asqa-prefix-train.jsonl                \\
       output_key=answers                               \\
       train.output_dir=./trained_models_context/""",
    "cot": """python training.py -cp configs/paper -cn training-asqa  \\
       data_file=asqa-raft-cot-train.jsonl              \\
       output_key=generated_answer                      \\
       train.output_dir=./trained_models_cot/""",
}
"""What the document tells its readers to type."""


@pytest.fixture(autouse=True)
def fresh_notices() -> None:
    notices.clear()


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipes") / "rag"
    shutil.copytree(RECIPE, folder, ignore=shutil.ignore_patterns("__pycache__", "trained_models*"))
    return folder


@pytest.fixture(scope="module")
def small(stories_model: Path) -> list[str]:
    """Overrides that put a small local model in the place of Phi-3."""
    return [
        f"model.model_name_or_path={stories_model}",
        "model.load_in_8bit=false",
        "model.lora.target_modules=[q_proj,v_proj]",
        "model.completion_start='### Assistant:'",
        "model.max_sequence_len=400",
        "limit=8",
    ]


def run_in(folder: Path, command: list[str]) -> subprocess.CompletedProcess[str]:
    assert command[0] == "python"
    return ready_python.run([ready_python.python(), *command[1:]], cwd=folder)


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if "__pycache__" not in path.parts}


def test_the_documented_commands_run(recipe: Path, small: list[str]) -> None:
    before = tree(recipe)
    results = {}
    for name, command in COMMANDS.items():
        done = run_in(recipe, [*shlex.split(command.replace("\\\n", " ")), *small])
        assert done.returncode == 0, done.stderr
        output = recipe / f"trained_models_{name}"
        results[name] = json.loads((output / "ledger.json").read_text(encoding="utf-8"))["training"]["total"]
        assert {"adapter_model.safetensors", "tokenizer.json", "run.json"} <= {path.name for path in output.iterdir()}
        settings = json.loads((output / "run.json").read_text(encoding="utf-8"))["settings"]
        assert settings["quantization.load_in_8bit"] is False
        assert settings["training.warmup_ratio"] == 0.03
    assert len(results) == 2
    assert [total["kept"] for total in results.values()] == [8, 8]
    assert results["cot"]["trained_tokens"] > 4 * results["context"]["trained_tokens"]
    new = {name for name in tree(recipe) - before if not name.startswith("trained_models_")}
    assert new == set()  # Hydra leaves no outputs and no .hydra folder behind


def test_a_sweep_runs_every_combination_in_a_folder_of_its_own(recipe: Path, small: list[str]) -> None:
    command = [
        *("python training.py -cn small --multirun data_file=asqa-prefix-train.jsonl output_key=answers").split(),
        *small,
        "++train.max_steps=1",
        "train.learning_rate=1e-3,1e-4",
        "train.output_dir=trained_models_sweep",
    ]
    before = tree(recipe)
    done = run_in(recipe, command)
    assert done.returncode == 0, done.stderr
    rates = []
    for number in (0, 1):
        record = json.loads((recipe / "trained_models_sweep" / str(number) / "run.json").read_text(encoding="utf-8"))
        rates.append(record["settings"]["training.learning_rate"])
    assert rates == [1e-3, 1e-4]
    assert all(name.startswith("trained_models_sweep") for name in tree(recipe) - before)


def call(recipe: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.chdir(recipe)
    monkeypatch.setattr(sys, "argv", ["training.py", *arguments])
    return training(recipe)


def test_cfg_job_shows_the_composed_configuration(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(recipe, monkeypatch, "--cfg", "job", "-cn", "small", "limit=3", "experiment=x${limit}") == 0
    shown = capsys.readouterr().out
    assert "model_name_or_path: nano-mistral" in shown
    assert "limit: 3\n" in shown
    assert "experiment: x${limit}" in shown
    assert (
        call(recipe, monkeypatch, "--cfg", "job", "--resolve", "-cn", "small", "limit=3", "experiment=x${limit}") == 0
    )
    assert "experiment: x3" in capsys.readouterr().out
    assert call(recipe, monkeypatch, "--cfg", "job", "-p", "model.lora") == 0
    assert capsys.readouterr().out.startswith("# @package model.lora\nbias: none\n")
    assert call(recipe, monkeypatch, "--help") == 0
    assert "configurations: paper/training-asqa, small, training" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["-cn", "trainings"], 2, "no configuration named 'trainings'; there are small, training"),
        (["-cp", "nowhere"], 2, "nowhere: no such configuration folder"),
        (["trian.seed=1"], 2, "Could not override 'trian.seed'"),
        (["+train.sed=1"], 2, "unknown setting 'train.sed'"),
        (["limit=2,3"], 2, "--multirun"),
        (["--learning_rate", "1"], 2, "settings are written key=value"),
        (["--multirun", "limit=1,2", "train.fp16=maybe"], 2, "fp16 = 'maybe'"),
        (["--multirun", "--cfg", "job"], 2, "exclude each other"),
        (["--experimental-rerun", "config.pickle"], 7, "opens a pickle"),
        (["++model._target_=os.system"], 7, "_target_ 'os.system'"),
        (["+model.lora._target_=torch.load"], 7, "_target_ 'torch.load'"),
        (["+train._target_=pandas.read_pickle"], 7, "_target_ 'pandas.read_pickle'"),
        (["hydra.searchpath=[pkg://pandas]"], 7, "is not a plain folder"),
        (["data_file=nowhere.jsonl", "model.model_name_or_path=nowhere/at-all"], 4, "nowhere/at-all"),
    ],
)
def test_exit_codes_and_one_line_an_error(
    recipe: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    said: str,
) -> None:
    assert call(recipe, monkeypatch, *arguments) == code
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert said in lines[0]


def test_the_verb_train_reads_the_same_file(
    recipe: Path, small: list[str], stories_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``tunesmith train configs/training.yaml`` and ``python training.py`` give equal settings and losses."""
    monkeypatch.chdir(recipe)
    doors = {
        "script": call(
            recipe, monkeypatch, *small, "data_file=asqa-prefix-train.jsonl", "output_key=answers",
            f"train.output_dir={tmp_path / 'script'}", "train.max_steps=2", "train.logging_steps=1",
        ),
        "verb": tunesmith([
            "train", "configs/training.yaml", "--model_name_or_path", str(stories_model), "--no_load_in_8bit",
            "--target_modules", "q_proj", "v_proj", "--completion_start", "### Assistant:", "--max_length", "400",
            "--limit", "8", "--data_file", "asqa-prefix-train.jsonl", "--output_key", "answers",
            "--output_dir", str(tmp_path / "verb"), "--max_steps", "2", "train.logging_steps=1",
        ]),
    }  # fmt: skip
    assert doors == {"script": 0, "verb": 0}
    records = {name: json.loads((tmp_path / name / "run.json").read_text(encoding="utf-8")) for name in doors}
    settings = {name: {**record["settings"], "training.output_dir": None} for name, record in records.items()}
    assert settings["script"] == settings["verb"]
    assert losses(tmp_path / "script") == losses(tmp_path / "verb")
    assert len(losses(tmp_path / "verb")) == 2


def losses(folder: Path) -> list[Any]:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [row["loss"] for row in map(json.loads, lines) if "loss" in row]


def test_the_instruction_is_the_system_message_or_in_the_prompt_and_is_sent_once(
    recipe: Path, mistral_tokenizer: Any, stories_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tunesmith.config.load import load
    from tunesmith.data.examples import ExampleBuilder
    from tunesmith.data.rows import read_rows

    monkeypatch.chdir(recipe)
    row = read_rows("asqa-prefix-train.jsonl")[0]
    instruction = Path("ragfit/processing/prompts/prompt_instructions/qa.txt").read_text(encoding="utf-8").strip()
    for tokenizer, in_prompt in ((stories_tokenizer, False), (stories_tokenizer, True), (mistral_tokenizer, True)):
        settings = ["--output_key", "answers", "--instruction_in_prompt", str(in_prompt), "--completion_start", "none"]
        config = load("configs/training.yaml", settings).config
        text = ExampleBuilder(tokenizer, config.data).prompt_rendered(row).text
        assert text.count(instruction) == 1
        assert text.count(row.values["query"]) == 1
        assert ("### System:" in text) == (not in_prompt)
