"""The configurations of the NLI recipe, value by value, and the door that opens them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tunesmith import notices
from tunesmith.config.load import load
from tunesmith.config.readers.python_file import DOCUMENT_NAMES, LoadError
from tunesmith.entrypoints import nli as door
from tunesmith.entrypoints.nli import MINIMAL_DEFAULTS, flat, open_config
from tunesmith.errors import ConfigError

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "nli_cot"
CONFIGS = RECIPE / "train" / "configs"
DEFAULT = CONFIGS / "default.py"

COMMON: dict[str, Any] = {
    "model_id": "mistralai/Mistral-7B-v0.3",
    "train_data": "data/finetune/train_ft.jsonl",
    "seed": 42,
    "lora_r": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.05,
    "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"],
    "num_epochs": 2,
    "max_seq_length": 512,
    "batch_size": 16,
    "grad_accumulation_steps": 2,
    "learning_rate": 2e-4,
    "lr_scheduler": "cosine",
    "warmup_ratio": 0.03,
    "warmup_steps": 0,
    "weight_decay": 0.01,
    "max_grad_norm": 1.0,
    "optim": "paged_adamw_8bit",
    "logging_steps": 25,
    "eval_steps": 250,
    "save_steps": 250,
    "save_total_limit": 2,
    "early_stopping_patience": None,
    "use_wandb": True,
    "use_packing": False,
    "gradient_checkpointing": True,
    "resume_from_checkpoint": None,
    "gpu_id": None,
    "distributed_training": False,
}

TABLE: dict[str, dict[str, Any]] = {
    "default": {},
    "ablation0": {"num_epochs": 1, "batch_size": 8},
    "ablation1": {"warmup_ratio": 0.05, "train_data": "data/finetune/correct/train_ft.jsonl"},
    "ablation2": {"grad_accumulation_steps": 1, "train_data": "data/finetune/reflected/train_ft.jsonl"},
    "ablation3": {
        "grad_accumulation_steps": 4,
        "learning_rate": 1e-4,
        "warmup_ratio": 0.10,
        "lora_r": 32,
        "lora_alpha": 64,
        "train_data": "data/finetune/all/train_ft.jsonl",
    },
    "minimal_test": {
        "num_epochs": 1,
        "batch_size": 1,
        "grad_accumulation_steps": 1,
        "lora_r": 8,
        "lora_alpha": 16,
        "max_seq_length": 256,
        "logging_steps": 1,
        "eval_steps": 5,
        "save_steps": 10,
        "save_total_limit": 1,
        "use_wandb": False,
    },
    "distributed": {"num_epochs": 3, "batch_size": 8, "distributed_training": True},
}


@pytest.fixture(autouse=True)
def in_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(RECIPE)
    notices.clear()


@pytest.mark.parametrize("name", TABLE)
def test_a_configuration_has_the_values_of_the_table(name: str) -> None:
    values = flat(open_config(CONFIGS / f"{name}.py", default=DEFAULT, strict=True).resolved)
    expected = COMMON | TABLE[name]
    assert {key: values[key] for key in expected} == expected
    assert set(values) == set(DOCUMENT_NAMES)


@pytest.mark.parametrize("name", TABLE)
def test_the_door_and_the_verb_train_resolve_alike(name: str) -> None:
    by_door = open_config(CONFIGS / f"{name}.py", default=DEFAULT, strict=True).resolved
    assert load(CONFIGS / f"{name}.py").fingerprint() == by_door.fingerprint()


def test_the_sweep_covers_every_documented_file() -> None:
    assert len(TABLE) == 7
    assert {path.stem for path in CONFIGS.glob("*.py")} == {*TABLE, "demo"}


def test_every_run_has_a_folder_of_its_own() -> None:
    folders = [flat(open_config(path, default=DEFAULT).resolved)["output_dir"] for path in CONFIGS.glob("*.py")]
    assert len(folders) == len(set(folders)) == 8


def test_every_setting_of_the_default_file_says_what_it_means() -> None:
    lines = [line for line in DEFAULT.read_text().splitlines() if " = " in line and not line.startswith("#")]
    assert len(lines) > 25
    bare = [line for line in lines if "#" not in line and not line.startswith(("use_wandb", "wandb_project"))]
    assert bare == []


def test_the_demo_needs_no_hub_and_no_account() -> None:
    values = flat(open_config(CONFIGS / "demo.py", default=DEFAULT).resolved)
    assert values["model_id"] == "nano-mistral"
    assert values["use_wandb"] is False


def test_a_file_that_does_not_import_the_default_still_rests_on_it(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("seed = 7\n")
    opened = open_config(path, ["--lora_r", "4"], default=DEFAULT)
    values = flat(opened.resolved)
    assert opened.fallback is None
    assert (values["seed"], values["lora_r"], values["batch_size"]) == (7, 4, 16)
    assert opened.resolved.origins["training.seed"] == f"{path}:1"
    assert opened.resolved.origins["training.weight_decay"].startswith("train/configs/default.py:")


BROKEN = {
    "missing": None,
    "syntax error": "seed = = 1\n",
    "exception": "seed = 1 / 0\n",
    "sys.exit": "import sys\nsys.exit(0)\n",
    "failed import": "from train.configs.no_such_file import *\n",
}


@pytest.fixture(params=BROKEN)
def broken(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "broken.py"
    if BROKEN[request.param] is not None:
        path.write_text(BROKEN[request.param])
    return path


def test_a_file_that_fails_to_load_gives_way_to_the_default_in_plain_words(
    broken: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = door.load_config(broken, ["--seed", "5"], default=DEFAULT)
    assert values["batch_size"] == COMMON["batch_size"]
    assert values["seed"] == 5
    shown = capsys.readouterr().err
    assert "CONFIGURATION NOT LOADED" in shown
    assert str(broken) in shown or "no_such_file" in shown
    assert "train/configs/default.py IS USED INSTEAD" in shown
    assert shown.count("!" * 100) == 2
    assert any("CONFIGURATION NOT LOADED" in text for text in notices.collected())


def test_strict_config_stops_instead(broken: Path) -> None:
    with pytest.raises(LoadError):
        open_config(broken, default=DEFAULT, strict=True)


def test_a_failing_default_gives_way_to_complete_minimal_defaults(broken: Path, tmp_path: Path) -> None:
    opened = open_config(tmp_path / "mine.py", ["--seed", "5"], default=broken)
    assert opened.fallback is not None
    assert "MINIMAL DEFAULTS ARE USED INSTEAD" in opened.fallback
    values = flat(opened.resolved)
    assert {name: values[name] for name in MINIMAL_DEFAULTS} == MINIMAL_DEFAULTS
    assert values["seed"] == 5
    assert not opened.resolved.explicit("data.train_data")
    with pytest.raises(LoadError):
        open_config(None, default=broken, strict=True)


def test_a_good_file_stands_alone_when_the_default_is_broken(broken: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text('model_id = "m"\nseed = 9\n')
    opened = open_config(mine, default=broken)
    assert opened.fallback is not None
    assert "is used without it" in opened.fallback
    assert flat(opened.resolved)["seed"] == 9


@pytest.mark.parametrize("text", ["learning_rat = 1e-4\n", "learning_rate = 'fast'\n", "lora_r = {1, 2}\n"])
@pytest.mark.parametrize("strict", [True, False])
def test_a_wrong_name_or_value_is_never_a_reason_for_the_fallback(text: str, strict: bool, tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(f"from train.configs.default import *\n{text}")
    with pytest.raises(ConfigError) as caught:
        open_config(path, default=DEFAULT, strict=strict)
    assert not isinstance(caught.value, LoadError)
    assert caught.value.where == f"{path}:2"


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("seed: 1\n")
    with pytest.raises(ConfigError, match="Python files") as caught:
        open_config(path, default=DEFAULT)
    assert not isinstance(caught.value, LoadError)


def test_config_loader_prints_the_settings_without_importing_torch() -> None:
    program = (
        "import runpy, sys; sys.argv = ['config_loader.py', '--config', 'train/configs/ablation3.py', '--seed=3']\n"
        "try: runpy.run_path('train/config_loader.py', run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 0, end.code\n"
        "print(sorted({'torch', 'transformers', 'trl', 'tunesmith'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    values = json.loads(done.stdout)
    assert (values["learning_rate"], values["seed"]) == (1e-4, 3)
    assert done.stderr.strip() == "['tunesmith']"


def test_train_sft_names_a_misspelt_setting_and_exits_2() -> None:
    done = subprocess.run(
        [sys.executable, "train/train_sft.py", "--config", "train/configs/ablation2.py", "--learning_rat", "1"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: command line: unknown setting 'learning_rat'; did you mean 'learning_rate'")
    assert done.stderr.count("\n") == 1


def test_load_config_of_the_recipe_is_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(RECIPE)
    from train.config_loader import load_config

    assert load_config("train/configs/ablation2.py", ["--batch_size", "4"])["batch_size"] == 4
