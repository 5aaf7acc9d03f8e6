"""``tunesmith init``: a recipe's copy is complete, resolves to the embedded model and its own data, and trains."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tunesmith import notices
from tunesmith.cli import init
from tunesmith.cli.main import main
from tunesmith.config.load import load
from tunesmith.data.rows import read_rows
from tunesmith.data.selection import load_rows

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture(params=sorted(init.RECIPES))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(init, "NUM_TRAIN", 60)
    monkeypatch.setattr(init, "NUM_HELDOUT", 20)


def test_there_is_a_copy_of_every_recipe() -> None:
    assert sorted(init.RECIPES) == sorted(path.name for path in (PROJECT / "recipes").iterdir() if path.is_dir())
    assert len(init.RECIPES) == 4


def test_copy_is_complete_and_small(
    name: str, few_rows: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init", name, "mine"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed == ["cd mine", *init.RECIPES[name].commands]
    monkeypatch.chdir("mine")
    original = PROJECT / "recipes" / name
    copied = 0
    for path in original.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            assert Path(path.relative_to(original)).is_file()
            copied += 1
    assert copied > 3
    recipe = init.RECIPES[name]
    resolved = load(recipe.config, dialect=recipe.dialect)
    assert resolved.config.model.model_name_or_path == "nano-mistral"
    assert not resolved.config.quantization.load_in_4bit
    assert not resolved.config.tracking.trackers()
    train_rows, eval_rows = load_rows(resolved.config.data)
    assert (len(train_rows), len(eval_rows)) == (60, 20)
    assert tmp_path.as_posix() not in Path(recipe.config).read_text()
    kept = Path(recipe.config).with_name(f"{Path(recipe.config).stem}_full{Path(recipe.config).suffix}")
    assert kept.read_bytes() == (original / recipe.config).read_bytes()
    assert all(os.access(script, os.X_OK) for script in Path().glob("*.sh"))


def test_every_configuration_of_the_nli_copy_finds_its_rows(
    few_rows: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    init.lay("nli_cot", tmp_path / "mine")
    monkeypatch.chdir(tmp_path / "mine")
    configurations = sorted(Path("train/configs").glob("*.py"))
    assert len(configurations) == 9
    for path in configurations:
        config = load(str(path)).config
        train_rows, eval_rows = load_rows(config.data)
        assert train_rows, path
        assert eval_rows, path


def test_rows_of_the_two_sides_are_apart(name: str, few_rows: None, tmp_path: Path) -> None:
    sides = init.RECIPES[name].files
    init.lay(name, tmp_path / "mine")
    texts = []
    for file in sides(tmp_path / "mine"):
        texts.append({json.dumps(row.values, sort_keys=True) for row in read_rows(str(tmp_path / "mine" / file))})
    assert not texts[0] & texts[1]


def test_documented_overrides_work_on_the_small_rag_configuration(few_rows: None, tmp_path: Path) -> None:
    """Hydra refuses keys that the file does not have, so the small file has those of the full one."""
    from tunesmith.config.readers.hydra_compose import compose

    init.lay("rag", tmp_path / "mine")
    overrides = ["train.max_steps=3", "limit=5", "shuffle=1", "hfhub_tag=me/mine", "model.lora.r=2", "template=x.txt"]
    tree = compose(tmp_path / "mine" / "configs", "training", overrides).tree
    assert (tree["train"]["max_steps"], tree["limit"], tree["model"]["lora"]["r"]) == (3, 5, 2)


@pytest.mark.parametrize("content", ["file", "folder"])
def test_a_place_that_is_taken_is_left_alone(content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    taken = tmp_path / "taken"
    if content == "file":
        taken.write_text("mine")
    else:
        taken.mkdir()
        (taken / "notes.txt").write_text("mine")
    assert main(["init", "sft", str(taken)]) == 6
    assert "is there and not empty" in capsys.readouterr().err
    assert (taken if content == "file" else taken / "notes.txt").read_text() == "mine"
    assert main(["init", "other", str(tmp_path / "new")]) == 2
    assert not (tmp_path / "new").exists()


def test_a_copy_trains(few_rows: None, stories_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sft copy, as its first command starts it, with another small model and fewer steps."""
    from tunesmith.entrypoints import sft

    init.lay("sft", tmp_path / "mine")
    monkeypatch.chdir(tmp_path / "mine")
    notices.clear()
    small = [f"--model={stories_model}", "--max_steps=5", "--gen_every_n_steps=5", "--max_new_tokens=4"]
    assert sft.main(Path(), ["--config", "default_train_config.yaml", *small, "--eval_steps=5"]) == 0
    assert Path("outputs/model.safetensors").is_file()
    assert Path("outputs/gen_results/gen_step_5.json").is_file()


def test_an_installed_wheel_lays_recipes(tmp_path: Path) -> None:
    """Built and installed into a folder of its own, away from the checkout."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    offline = ["--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*pip, "wheel", *offline, "-w", tmp_path / "dist", PROJECT], check=True, timeout=300)
    wheel = next((tmp_path / "dist").glob("*.whl"))
    site = tmp_path / "site"
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", site, wheel], check=True, timeout=300)
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import tunesmith.cli.main as cli; "
        "assert cli.__file__.startswith(sys.argv[1]), cli.__file__; sys.exit(cli.main(sys.argv[2:]))"
    )
    laid = 0
    for name in init.RECIPES:
        command = [sys.executable, "-c", program, site, "init", name, tmp_path / name]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / name / init.RECIPES[name].config).is_file()
        assert not list((tmp_path / name).rglob("__pycache__"))
        laid += 1
    assert laid == 4
    assert os.access(tmp_path / "nli_cot" / "run_training.sh", os.X_OK)
