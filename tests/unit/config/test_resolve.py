"""Layers of settings: precedence, origins, validation of every value at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunesmith.config.load import load
from tunesmith.config.resolve import from_values
from tunesmith.errors import ConfigError, ConfigErrors, UnsafeError


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "run.py"
    path.write_text('model_id = "m"\nlearning_rate = 3e-4\nseed = 7\n')
    return path


def test_defaults_then_dialect_then_file_then_command_line(config: Path) -> None:
    resolved = load(config, ["--seed", "9"])
    assert resolved.config.training.seed == 9
    assert resolved.origins["training.seed"] == "command line"
    assert resolved.config.training.learning_rate == 3e-4
    assert resolved.origins["training.learning_rate"] == "run.py:2"
    assert resolved.config.quantization.load_in_4bit is True
    assert resolved.origins["quantization.load_in_4bit"].startswith("default of Python configs")
    assert resolved.origins["training.weight_decay"] == "default"


def test_explicit_means_that_somebody_wrote_it(config: Path) -> None:
    resolved = load(config, ["--seed", "9"])
    assert resolved.explicit("training.seed")
    assert resolved.explicit("training.learning_rate")
    assert not resolved.explicit("quantization.load_in_4bit")
    assert not resolved.explicit("training.weight_decay")


def test_all_wrong_values_are_listed_with_their_places(config: Path) -> None:
    config.write_text('model_id = "m"\nlearning_rate = -1.0\nbatch_size = "four"\n')
    with pytest.raises(ConfigErrors) as caught:
        load(config, ["--lora_r", "0"])
    lines = caught.value.lines()
    assert len(lines) == 3
    assert any(line.startswith("run.py:2: learning_rate = -1.0") for line in lines)
    assert any(line.startswith("run.py:3: batch_size = 'four'") for line in lines)
    assert any(line.startswith("command line: lora_r = 0") for line in lines)


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    path = tmp_path / "run.py"
    path.write_text("seed = 1\n")
    with pytest.raises(ConfigError, match=r"model_name_or_path is not set"):
        load(path)


def test_a_file_may_not_allow_itself_remote_code(config: Path) -> None:
    config.write_text('model_id = "m"\ntrust_remote_code = True\nallow_remote_code = True\n')
    with pytest.raises(UnsafeError) as caught:
        load(config)
    assert caught.value.where == "run.py:3"
    assert caught.value.what == "allow_remote_code cannot be set in a file"
    config.write_text('model_id = "m"\ntrust_remote_code = True\n')
    assert load(config, ["--allow_remote_code"]).config.model.allow_remote_code is True


def test_packing_no_leaves_another_layout_alone(config: Path) -> None:
    assert load(config, ["--use_packing"]).config.training.batching == "packed"
    assert load(config, ["--batching", "length_grouped", "--no_packing"]).config.training.batching == "length_grouped"
    assert load(config, ["--use_packing", "--no_use_packing"]).config.training.batching == "auto"


def test_the_fingerprint_is_of_values_not_of_origins(config: Path) -> None:
    written, given = load(config), load(config, ["--seed", "7"])
    assert written.origins != given.origins
    assert written.fingerprint() == given.fingerprint()
    assert written.fingerprint() != load(config, ["--seed", "8"]).fingerprint()


def test_values_survive_the_way_through_a_record(config: Path) -> None:
    resolved = load(config)
    again = from_values(resolved.values(), resolved.origins)
    assert again.config == resolved.config
    assert again.origins == resolved.origins
