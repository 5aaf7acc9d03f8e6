"""The reader of YAML files in sections: every name in its section, defaults of document 5, errors with their line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tunesmith.config.load import detect_dialect, load
from tunesmith.config.names import leaf_paths, leaf_type
from tunesmith.config.permissions import COMMAND_LINE_ONLY
from tunesmith.config.readers import sectioned_yaml
from tunesmith.errors import ConfigError, ConfigErrors, UnsafeError

DOCUMENT_SAMPLE = """
# Model Configuration
model:
  path: 'your/model/path'
  max_seq_length: 256
  dtype: null
  load_in_4bit: false

# Dataset Configuration
dataset:
  name: "your/dataset"
  subset: "your_subset"
  split: "train"

# Training Configuration
training:
  gradient_accumulation_steps: 8
  per_device_train_batch_size: 2
"""


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str) -> Path:
        path = tmp_path / "config.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def values(path: Path, *overrides: str) -> dict[str, Any]:
    return load(path, overrides, dialect="yaml").values()


def test_the_documents_sample_is_complete_enough(write) -> None:
    path = write(DOCUMENT_SAMPLE)
    assert detect_dialect(path) == "yaml"
    resolved = load(path)
    got = resolved.values()
    assert got["model.model_name_or_path"] == "your/model/path"
    assert got["data.max_length"] == 256
    assert got["model.dtype"] == "auto"
    assert got["quantization.load_in_4bit"] is False
    assert (got["data.train_data"], got["data.subset"]) == ("your/dataset", "your_subset")
    assert got["data.train_split"] == "train"
    assert (got["training.gradient_accumulation_steps"], got["training.per_device_train_batch_size"]) == (8, 2)
    assert resolved.origins["data.max_length"].endswith("config.yaml:5")


def test_documented_defaults(write) -> None:
    resolved = load(write(DOCUMENT_SAMPLE))
    adapter = resolved.config.adapter
    assert adapter.use_lora is False
    assert (adapter.lora_r, adapter.lora_alpha, adapter.lora_dropout, adapter.bias) == (16, 32, 0.1, "none")
    assert adapter.target_modules == ["q_proj", "v_proj"]
    assert resolved.config.training.save_merged_model is True
    assert resolved.config.data.too_long == "drop"
    assert not resolved.explicit("adapter.use_lora")


def test_lora_config_knows_every_peft_name_we_support(write) -> None:
    written = {
        "r": 4, "lora_alpha": 8, "target_modules": ["k_proj"], "lora_dropout": 0.2, "bias": "lora_only",
        "task_type": "CAUSAL_LM", "peft_type": "LORA", "fan_in_fan_out": True, "modules_to_save": ["lm_head"],
        "use_rslora": True, "use_dora": True, "init_lora_weights": "gaussian", "layers_pattern": "layers",
        "layers_to_transform": [0, 1], "exclude_modules": ["o_proj"], "rank_pattern": {"q": 2},
        "alpha_pattern": {"q": 3.0}, "target_parameters": ["mlp.experts.down_proj"],
    }  # fmt: skip
    path = write(yaml.safe_dump({"model": {"path": "m", "use_lora": True, "lora_config": written}}))
    adapter = load(path).config.adapter.model_dump()
    adapter["r"] = adapter.pop("lora_r")
    assert {name: adapter[name] for name in written} == written
    assert set(adapter) - set(written) == {"use_lora", "loraplus_lr_ratio"}  # everything else of the schema was written


@pytest.mark.parametrize(
    ("question", "answer", "expected"),
    [
        (None, None, {}),
        ("question", "answer", {}),
        ("problem", "answer", {"question": "problem"}),
        ("problem", "solution", {"question": "problem", "answer": "solution"}),
    ],
)
def test_columns_are_merged(write, question: str | None, answer: str | None, expected: dict[str, str]) -> None:
    dataset = {"name": "d", "question_column": question, "answer_column": answer}
    path = write(yaml.safe_dump({"model": {"path": "m"}, "dataset": dataset}))
    assert values(path)["data.columns"] == expected
    assert values(path, "--answer_column", "text")["data.columns"] == expected | {"answer": "text"}


def test_a_column_that_is_no_text_is_refused(write) -> None:
    with pytest.raises(ConfigError, match=r"config.yaml:4"):
        values(write("model:\n  path: m\ndataset:\n  question_column: 3\n"))


def test_every_setting_stands_in_its_own_section(write) -> None:
    examples = {"model.model_name_or_path": "m", "data.columns": {"a": "b"}, "training.lr_scheduler_kwargs": {"a": 1}}
    swept = 0
    for path in leaf_paths():
        if path in COMMAND_LINE_ONLY:
            continue
        section, name = path.split(".")
        value = examples.get(path, _valid_value(path))
        tree: dict[str, Any] = {"model": {"model_name_or_path": "m"}}
        tree.setdefault(section, {})[name] = value
        draft = sectioned_yaml.read(write(yaml.safe_dump(tree)))
        setting = next(setting for setting in draft.settings if setting.spelling.path == path)
        assert setting.value == value
        swept += 1
    assert swept == len(leaf_paths()) - len(COMMAND_LINE_ONLY) > 100


def _valid_value(path: str) -> Any:
    from pydantic import TypeAdapter, ValidationError

    words = ["auto", "none", "no", "padded", "linear", "completion", "error", "nf4", "CAUSAL_LM", "LORA"]
    for value in (True, 1, 0.5, *words):
        try:
            return TypeAdapter(leaf_type(path)).validate_python(value, strict=True)
        except ValidationError:
            continue
    return []


def test_dotted_names_of_the_document_work_on_the_command_line(write) -> None:
    path = write(DOCUMENT_SAMPLE)
    got = values(path, "model.path=x", "dataset.name=y", "training.epochs=5", "model.lora_config.r=2", "--seed", "7")
    assert got["model.model_name_or_path"] == "x"
    assert got["data.train_data"] == "y"
    assert got["training.num_train_epochs"] == 5
    assert got["adapter.lora_r"] == 2
    assert got["training.seed"] == 7


def test_fault_unknown_keys_ignored(write) -> None:
    with pytest.raises(ConfigError, match=r":3: unknown setting 'training.learning_rat'; did you mean 'learning_rate'"):
        values(write("model: {path: m}\ntraining:\n  learning_rat: 1e-4\n"))
    with pytest.raises(ConfigError, match=r"config.yaml:4: unknown setting 'model.lora_config.rank_'"):
        values(write("model:\n  path: m\n  lora_config:\n    rank_: 4\n"))
    with pytest.raises(ConfigError, match=r"config.yaml:2: unknown section 'trainin'; did you mean 'training'"):
        values(write("model: {path: m}\ntrainin:\n  epochs: 1\n"))


def test_a_name_in_the_wrong_place_is_told_its_own(write) -> None:
    with pytest.raises(ConfigError, match=r":2: 'model.learning_rate' is in the wrong section; .*training.learn"):
        values(write("model:\n  learning_rate: 1e-4\n  path: m\n"))
    with pytest.raises(ConfigError, match=r":2: 'learning_rate' stands outside .*; write it as training.learn"):
        values(write("model: {path: m}\nlearning_rate: 1e-4\n"))


def test_a_section_holds_settings(write) -> None:
    with pytest.raises(ConfigError, match=r"config.yaml:2: training holds a value"):
        values(write("model: {path: m}\ntraining: 5\n"))
    with pytest.raises(ConfigError, match="no sections"):
        values(write("- a\n- b\n"))
    assert values(write("model: {path: m}\ntraining:\n"))["training.seed"] == 42


def test_numbers_follow_yaml_1_2(write) -> None:
    got = values(write("model: {path: m}\ntraining: {learning_rate: 2e-4, epochs: 1}\n"))
    assert got["training.learning_rate"] == 2e-4
    with pytest.raises(ConfigError, match="learning_rate"):
        values(write("model: {path: m}\ntraining: {learning_rate: '2e-4'}\n"))


def test_fault_dtype_and_load_in_4bit_read_by_nothing(write) -> None:
    got = values(write("model: {path: m, dtype: bf16, load_in_4bit: true, use_lora: true}\n"))
    assert got["model.dtype"] == "bfloat16"
    assert got["quantization.load_in_4bit"] is True
    # and full fine-tuning of a 4-bit base is refused, where it would have been silently something else
    with pytest.raises((ConfigError, ConfigErrors), match="use_lora"):
        values(write("model: {path: m, load_in_4bit: true}\n"))
    with pytest.raises(ConfigError, match="float12"):
        values(write("model: {path: m, dtype: float12}\n"))


def test_tags_of_python_objects_are_unsafe(write) -> None:
    with pytest.raises(UnsafeError, match=r"config.yaml:2"):
        values(write("model:\n  path: !!python/object/apply:os.system ['true']\n"))
