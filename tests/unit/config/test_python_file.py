"""The reader of Python files: a child process, a time limit, plain data only, and a line for every name."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunesmith import notices
from tunesmith.config.load import load
from tunesmith.config.readers import python_file
from tunesmith.config.readers.python_file import LoadError
from tunesmith.errors import ConfigError, ConfigErrors


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)

    def write(text: str, name: str = "run.py") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write


def written(path: Path) -> dict[str, tuple[object, str]]:
    return {setting.name: (setting.value, setting.origin) for setting in python_file.read(path).settings}


def test_each_name_has_the_line_that_set_it_last(write) -> None:
    text = 'model_id = "m"\nseed = 1\nlora_r: int = 8\nfor seed in (2, 3):\n    lora_alpha = 2 * seed\nseed += 1\n'
    path = write(text)
    assert written(path) == {
        "model_id": ("m", "run.py:1"),
        "seed": (4, "run.py:6"),
        "lora_r": (8, "run.py:3"),
        "lora_alpha": (6, "run.py:5"),
    }


def test_star_imports_are_followed_to_their_lines(write) -> None:
    write('model_id = "m"\nseed = 1\nlearning_rate = 1e-4\n', "train/configs/base.py")
    write("from train.configs.base import *\nseed = 2\n", "train/configs/middle.py")
    path = write("from train.configs.middle import *\nlearning_rate = 2e-4\n", "train/configs/top.py")
    assert written(path) == {
        "model_id": ("m", "train/configs/base.py:1"),
        "seed": (2, "train/configs/middle.py:2"),
        "learning_rate": (2e-4, "train/configs/top.py:2"),
    }


def test_helpers_modules_and_functions_are_no_settings(write) -> None:
    helpers = "import math\n_base = 8\ndef twice(x):\n    return 2 * x\n"
    path = write(helpers + "lora_r = twice(_base)\nlora_alpha = math.floor(32.5)\n")
    assert {name: value for name, (value, _) in written(path).items()} == {"lora_r": 16, "lora_alpha": 32}


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("seed = 1\nlora_r = 1 / 0\n", 2, "ZeroDivisionError: division by zero"),
        ("seed = 1\nlora_r = = 2\n", 2, "SyntaxError"),
        ("\n\nimport no_such_module\n", 3, "ModuleNotFoundError"),
        ("seed = 1\nimport sys\nsys.exit(0)\n", 3, "called sys.exit(0)"),
        ("def helper():\n    raise ValueError('inside')\nhelper()\n", 2, "ValueError: inside"),
    ],
)
def test_a_failing_file_names_its_line(write, text: str, line: int, words: str) -> None:
    with pytest.raises(LoadError) as caught:
        python_file.read(write(text))
    assert caught.value.where == f"run.py:{line}"
    assert words in caught.value.what


def test_an_exception_in_an_imported_file_names_that_file(write) -> None:
    write("seed = 1\nlora_r = undefined_name\n", "train/configs/base.py")
    path = write("from train.configs.base import *\n", "train/configs/top.py")
    with pytest.raises(LoadError) as caught:
        python_file.read(path)
    assert caught.value.where == "train/configs/base.py:2"


def test_an_endless_file_is_stopped(write, monkeypatch: pytest.MonkeyPatch) -> None:
    assert python_file.TIME_LIMIT_S <= 10
    monkeypatch.setattr(python_file, "TIME_LIMIT_S", 0.5)
    with pytest.raises(LoadError, match="still running"):
        python_file.read(write("while True:\n    pass\n"))


@pytest.mark.parametrize("text", ["import os\nos._exit(3)\n", "import os\nos.kill(os.getpid(), 9)\n"])
def test_a_file_that_kills_its_process_is_an_error(write, text: str) -> None:
    with pytest.raises(LoadError, match="ended without a result"):
        python_file.read(write(text))


def test_a_missing_file_is_a_load_error(write) -> None:
    with pytest.raises(LoadError, match="no such configuration file"):
        python_file.read("nowhere.py")


def test_what_a_file_does_stays_in_its_process(write) -> None:
    import sys

    before = list(sys.path)
    python_file.read(write("import sys\nsys.path.clear()\nsys.modules['json'] = None\nseed = 1\n"))
    assert sys.path == before
    assert sys.modules["json"] is not None


def test_what_a_file_prints_does_not_mix_with_its_settings(write) -> None:
    path = write("print('{\"values\": {}}')\nseed = 5\n")
    assert written(path) == {"seed": (5, "run.py:2")}


@pytest.mark.parametrize("value", ["{1, 2}", "object()", "b'x'", "[object()]"])
def test_only_plain_data_comes_back(write, value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(write(f"model_id = 'm'\nlora_r = {value}\n"))
    assert caught.value.where == "run.py:2"
    assert not isinstance(caught.value, LoadError)


def test_an_unknown_name_is_no_load_error(write) -> None:
    with pytest.raises(ConfigError) as caught:
        load(write('model_id = "m"\nlearning_rat = 1\n'))
    assert caught.value.where == "run.py:2"
    assert "'learning_rate'" in (caught.value.remedy or "")
    assert not isinstance(caught.value, LoadError)


def test_tuples_are_lists_and_false_is_false(write) -> None:
    switches = "use_wandb = False\ngradient_checkpointing = False\n"
    path = write('model_id = "m"\ntarget_modules = ("q_proj", "v_proj")\n' + switches)
    config = load(path).config
    assert config.adapter.target_modules == ["q_proj", "v_proj"]
    assert config.tracking.use_wandb is False
    assert config.training.gradient_checkpointing is False


def test_helpers_that_the_file_reads_itself_are_passed_over_and_said(write) -> None:
    """As people write these files: a folder on ``sys.path``, paths, numbers that others follow from."""
    write("import os\nroot = os.path.dirname(__file__)\ntrain_data = os.path.join(root, 'rows.jsonl')\n", "base.py")
    path = write(
        "from __future__ import annotations\nimport os, sys\nfrom pathlib import Path\n"
        "here = Path(__file__).parent\nsys.path.insert(0, str(here))\nfrom base import *\n"
        "rows_of_a_step = 32\nbatch_size = 4\ngrad_accumulation_steps = rows_of_a_step // batch_size\n"
        "_private = 3\nmodel_id = here / 'model'\nfor size in (8, 16):\n    lora_r = size\n"
    )
    notices.clear()
    found = {name: value for name, (value, _) in written(path).items()}
    assert found.pop("train_data").endswith("rows.jsonl")
    assert found == {
        "batch_size": 4,
        "grad_accumulation_steps": 8,
        "model_id": str(path.parent / "model"),
        "lora_r": 16,
    }
    (said,) = notices.collected()
    assert all(name in said for name in ("root", "here", "rows_of_a_step", "_private", "size"))
    assert python_file.read(path).problems == ()


@pytest.mark.parametrize(
    "text",
    [
        "learning_rat = 1e-4\n",
        "learning_rat = 1e-4\nlearning_rat = learning_rat * 2\n",
        "learning_rat = 1\nlearning_rat += 1\n",
    ],
)
def test_a_name_that_nobody_else_reads_is_an_error_with_its_suggestion(write, text: str) -> None:
    with pytest.raises(ConfigError, match="did you mean 'learning_rate'"):
        load(write('model_id = "m"\n' + text))


def test_all_mistakes_of_a_file_and_a_command_line_are_told_at_once(write) -> None:
    path = write('model_id = "m"\nlearning_rat = 1\nlora_r = 0\nseed = object()\nfp16 = bf16 = True\n')
    with pytest.raises(ConfigErrors) as caught:
        load(path, ["--batch_sise", "3", "--max_steps", "x", "stray"])
    told = " ".join(caught.value.lines())
    for words in (
        "'learning_rat'",
        "lora_r = 0",
        "seed is a object",
        "both on",
        "'batch_sise'",
        "max_steps",
        "'stray'",
    ):
        assert words in told
    assert len(caught.value.lines()) == 7


def test_a_known_name_stays_a_setting_though_the_file_reads_it(write) -> None:
    assert set(written(write("batch_size = 2\nlora_r = batch_size * 4\n"))) == {"batch_size", "lora_r"}
