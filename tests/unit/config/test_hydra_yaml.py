"""Hydra configurations: composition, override grammar, names, origins, and everything that is refused."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tunesmith import notices
from tunesmith.config.environment import READABLE
from tunesmith.config.load import detect_dialect, load
from tunesmith.config.readers import hydra_yaml
from tunesmith.config.readers.hydra_compose import compose, split_sweep
from tunesmith.config.resolve import Resolved, resolve
from tunesmith.errors import ConfigError, TunesmithError, UnsafeError

PROJECT = Path(__file__).resolve().parents[3]
CONFIGS = PROJECT / "recipes" / "rag" / "configs"

MODEL = "model:\n  model_name_or_path: nano-mistral\n"


def write(folder: Path, text: str, name: str = "c.yaml") -> Path:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return file


def read(file: Path, *overrides: str) -> Resolved:
    return resolve(hydra_yaml.read(file, overrides))


# What document 4 says


def test_values_of_the_document() -> None:
    resolved = load(CONFIGS / "training.yaml")
    expected: dict[str, Any] = {
        "model.model_name_or_path": "microsoft/Phi-3-mini-128k-instruct",
        "quantization.load_in_4bit": False,
        "quantization.load_in_8bit": True,
        "adapter.use_lora": True,
        "adapter.bias": "none",
        "adapter.fan_in_fan_out": False,
        "adapter.lora_alpha": 16,
        "adapter.lora_dropout": 0.1,
        "adapter.peft_type": "LORA",
        "adapter.lora_r": 16,
        "adapter.target_modules": ["qkv_proj"],
        "adapter.task_type": "CAUSAL_LM",
        "adapter.use_rslora": True,
        "data.completion_start": "<|assistant|>",
        "data.instruction_in_prompt": False,
        "data.max_length": 4000,
        "training.output_dir": "./trained_models/",
        "training.bf16": False,
        "training.fp16": False,
        "training.gradient_accumulation_steps": 2,
        "training.batching": "auto",
        "training.learning_rate": 1e-4,
        "training.logging_steps": 10,
        "training.lr_scheduler_type": "cosine",
        "training.max_steps": -1,
        "training.num_train_epochs": 1,
        "training.per_device_train_batch_size": 1,
        "training.optim": "paged_adamw_8bit",
        "training.remove_unused_columns": True,
        "training.save_steps": 20000,
        "training.save_total_limit": 1,
        "training.warmup_ratio": 0.03,
        "training.weight_decay": 0.001,
        "tracking.report_to": [],
        "data.template": None,
        "data.train_data": None,
        "data.columns": {},
        "training.resume_from_checkpoint": None,
        "data.limit": None,
        "data.shuffle_seed": None,
        "data.dev_split": 0.0,
        "training.push_to_hub": False,
        "tracking.use_wandb": None,
        "tracking.experiment": None,
        "tracking.wandb_entity": None,
        "data.format": "rag",
    }
    values = resolved.values()
    assert {path: values[path] for path in expected} == expected
    assert len(expected) == 46
    assert values["data.instruction"].endswith("ragfit/processing/prompts/prompt_instructions/qa.txt")


def test_a_file_that_says_little_gets_the_documented_defaults(tmp_path: Path) -> None:
    resolved = read(write(tmp_path, "model:\n  model_name_or_path: some/model\ntrain:\n"))
    assert resolved.config.training.learning_rate == 1e-4
    assert resolved.config.data.max_length == 4000
    assert resolved.config.adapter.use_lora is False
    assert resolved.origins["training.learning_rate"] == "default of Hydra configs (document 4)"


def test_every_default_is_a_known_name() -> None:
    for name in hydra_yaml.DEFAULTS:
        assert name in hydra_yaml.NAMES
    assert len(hydra_yaml.DEFAULTS) == 19


@pytest.mark.parametrize(
    ("line", "path", "value"),
    [
        ("model.torch_dtype=bfloat16", "model.dtype", "bfloat16"),
        ("model.torch_dtype=torch.float16", "model.dtype", "float16"),
        ("model.device_map=cpu", "model.device_map", "cpu"),
        ("model.trust_remote_code=true", "model.trust_remote_code", True),
        ("model.instruction_in_prompt=true", "data.instruction_in_prompt", True),
        ("model.lora.layers_to_transform=[0,1]", "adapter.layers_to_transform", [0, 1]),
        ("model.lora.layers_pattern=layers", "adapter.layers_pattern", "layers"),
        ("train.group_by_length=true", "training.batching", "length_grouped"),
        ("train.evaluation_strategy=epoch", "training.eval_strategy", "epoch"),
        ("train.evaluation_strategy=no", "training.eval_strategy", "no"),
        ("train.learning_rate=1e-4", "training.learning_rate", 1e-4),
        ("train.report_to=wandb", "tracking.report_to", ["wandb"]),
        ("train.report_to=none", "tracking.report_to", []),
        ("train.max_grad_norm=0.5", "training.max_grad_norm", 0.5),
        ("dev_split=0.1", "data.dev_split", 0.1),
        ("shuffle=7", "data.shuffle_seed", 7),
        ("shuffle=false", "data.shuffle_seed", None),
        ("limit=5", "data.limit", 5),
        ("input_key=my_prompt", "data.columns", {"prompt": "my_prompt"}),
        ("output_key=answers", "data.columns", {"completion": "answers"}),
        ("resume_checkpoint=latest", "training.resume_from_checkpoint", "latest"),
        ("use_wandb=true", "tracking.use_wandb", True),
        ("experiment=context", "tracking.experiment", "context"),
        ("wandb_entity=team", "tracking.wandb_entity", "team"),
        ("hfhub_tag=me/model", "training.hub_model_id", "me/model"),
        ("hfhub_tag=me/model", "training.push_to_hub", True),
        ("template=t.txt", "data.template", "t.txt"),
        ("+evaluation.generate=true", "evaluation.generate", True),
        ("model.lora=null", "adapter.use_lora", False),
        ("train.save_total_limit=null", "training.save_total_limit", None),
        ("model.quantization_config._target_=transformers.BitsAndBytesConfig", "quantization.load_in_4bit", False),
        ("model.quantization_config.load_in_4bit=true", "quantization.load_in_4bit", True),
        (
            "model.quantization_config.bnb_4bit_compute_dtype=bfloat16",
            "quantization.bnb_4bit_compute_dtype",
            "bfloat16",
        ),
    ],
)
def test_a_key_does_what_it_says(line: str, path: str, value: Any) -> None:
    resolved = read(CONFIGS / "training.yaml", line if line.startswith("+") else f"++{line}")
    assert resolved.values()[path] == value
    if path != "quantization.load_in_4bit":
        assert resolved.origins[path] == "command line"


def test_a_number_in_scientific_notation_is_a_number(tmp_path: Path) -> None:
    """Known fault: plain YAML reads ``1e-4`` as a text."""
    file = write(tmp_path, MODEL + "train:\n  learning_rate: 1e-4\n  weight_decay: 1E-3\n")
    assert read(file).config.training.learning_rate == 1e-4
    assert read(file, "train.learning_rate=2e-5").config.training.learning_rate == 2e-5


def test_a_dev_split_that_is_missing_or_null_holds_nothing_out(tmp_path: Path) -> None:
    """Known fault: ``dev_split`` missing raised, and null held out a quarter in silence."""
    for text in ("train:\n", "train:\ndev_split:\n", "train:\ndev_split: null\n"):
        assert read(write(tmp_path, MODEL + text)).config.data.dev_split == 0.0


def test_report_to_left_empty_means_no_reporting(tmp_path: Path) -> None:
    config = read(write(tmp_path, MODEL + "train:\n  report_to:\n")).config
    assert config.tracking.trackers() == []


def test_detected_by_content() -> None:
    files = sorted(CONFIGS.rglob("*.yaml"))
    assert [detect_dialect(file) for file in files] == ["hydra"] * 3


def test_prompt_files_are_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    instruction = load(CONFIGS / "paper" / "training-asqa.yaml").config.data.instruction
    assert instruction is not None
    assert Path(instruction).is_file()


# Composition and grammar


LAYERS = {
    "main.yaml": "defaults:\n  - base/common\n  - size: small\n  - _self_\n\ntrain:\n  seed: 5\n",
    "base/common.yaml": "# @package _global_\ndefaults:\n  - deepest\nmodel:\n  model_name_or_path: nano-mistral\n",
    "base/deepest.yaml": "# @package _global_\ntrain:\n  seed: 1\n  weight_decay: 0.5\n  logging_steps: 3\n",
    "size/small.yaml": "# @package train\nper_device_train_batch_size: 2\n",
    "size/large.yaml": "# @package train\nper_device_train_batch_size: 64\n",
}


@pytest.fixture
def layered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, text in LAYERS.items():
        write(tmp_path, text, name)
    return tmp_path / "main.yaml"


def test_defaults_over_several_levels_keep_file_and_line(layered: Path) -> None:
    resolved = read(layered)
    assert resolved.config.training.seed == 5
    assert resolved.config.training.weight_decay == 0.5
    assert resolved.config.training.per_device_train_batch_size == 2
    assert resolved.origins["training.seed"] == "main.yaml:7"
    assert resolved.origins["training.weight_decay"] == "base/deepest.yaml:4"
    assert resolved.origins["training.per_device_train_batch_size"] == "size/small.yaml:2"
    assert resolved.origins["model.model_name_or_path"] == "base/common.yaml:5"


def test_a_group_is_chosen_on_the_command_line(layered: Path) -> None:
    resolved = read(layered, "size=large", "train.seed=9")
    assert resolved.config.training.per_device_train_batch_size == 64
    assert resolved.origins["training.per_device_train_batch_size"] == "size/large.yaml:2"
    assert resolved.origins["training.seed"] == "command line"


def test_adding_forcing_and_removing(layered: Path) -> None:
    resolved = read(layered, "+train.max_steps=3", "++train.max_grad_norm=2.0", "~train.weight_decay")
    assert resolved.config.training.max_steps == 3
    assert resolved.config.training.max_grad_norm == 2.0
    assert resolved.config.training.weight_decay == 0.001  # the document's, now that the file's is gone
    assert not resolved.explicit("training.weight_decay")


def test_a_key_that_is_not_there_needs_a_plus(layered: Path) -> None:
    with pytest.raises(ConfigError, match=r"use \+train.max_steps=3"):
        read(layered, "train.max_steps=3")


def test_interpolation_and_resolvers(tmp_path: Path) -> None:
    text = MODEL + (
        "train:\n  output_dir: runs/${experiment}\n  run_name: ${oc.select:nothing,plain}\n  seed: ${oc.decode:'7'}\n"
        "experiment: context\n"
    )
    config = read(write(tmp_path, text), "experiment=other").config
    assert (config.training.output_dir, config.tracking.run_name, config.training.seed) == ("runs/other", "plain", 7)


def test_dicts_and_lists_on_the_command_line() -> None:
    resolved = read(
        CONFIGS / "training.yaml", "model.lora={r: 4, target_modules: [q_proj]}", "+train.lr_scheduler_kwargs={a: 1}"
    )
    assert resolved.config.adapter.lora_r == 4
    assert resolved.config.adapter.target_modules == ["q_proj"]
    assert resolved.config.adapter.use_rslora is True
    assert resolved.config.training.lr_scheduler_kwargs == {"a": 1}
    assert resolved.origins["adapter.lora_r"] == "command line"
    assert resolved.origins["adapter.use_rslora"].endswith("training.yaml:21")


def test_what_hydra_warns_of_is_a_notice(tmp_path: Path) -> None:
    notices.clear()
    write(tmp_path, MODEL, "base.yaml")
    read(write(tmp_path, "defaults:\n  - base\ntrain:\n"))
    assert any("missing `_self_`" in text for text in notices.collected())


def test_a_sweep_is_every_combination() -> None:
    jobs = split_sweep(["train.seed=1,2", "limit=range(1,3)", "shuffle=3"], {"train.weight_decay": "0.1,0.2"})
    assert len(jobs) == 8
    assert jobs[0] == ["train.weight_decay=0.1", "train.seed=1", "limit=1", "shuffle=3"]


# What is wrong is said with its place


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (MODEL + "train:\n  lerning_rate: 1\n", r"c.yaml:4: unknown setting 'train.lerning_rate'.*train.learning_rate"),
        (MODEL + "train:\n  lora_r: 1\n", r"c.yaml:4: unknown setting 'train.lora_r'"),
        (MODEL + "  learning_rate: 1\n", r"c.yaml:3: unknown setting 'model.learning_rate'"),
        (MODEL + "train:\n  seed: many\n", r"c.yaml:4: .*seed = 'many'"),
        (MODEL + "train:\n  seed: ???\n", r"c.yaml:4: train.seed.*[Mm]issing"),
        (MODEL + "train:\n  run_name: ${nothing.there}\n", r"c.yaml:4: train.run_name.*not found"),
        (MODEL + "train:\n  seed: 1\n  seed: 2\n", r"c.yaml:5: key 'seed' stands twice"),
        (MODEL + "train: [\n", r"c.yaml:4: not valid YAML"),
        ("defaults:\n  - nowhere\n" + MODEL, r"[Cc]ould not (load|find) 'nowhere'"),
        (MODEL + "train:\n  run_name: ${oc.nothing:1}\n", r"c.yaml:4: .*oc.nothing"),
    ],
)
def test_mistakes_name_their_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, said: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=said) as caught:
        read(write(tmp_path, text))
    assert caught.value.exit_code == 2


def test_a_wrong_name_of_a_configuration_lists_what_is_there() -> None:
    with pytest.raises(ConfigError, match="there are small, training"):
        compose(CONFIGS, "trainin")
    with pytest.raises(ConfigError, match="no such configuration folder"):
        compose(CONFIGS / "nowhere", "training")


# What is refused


MARKER = "canary_of_tunesmith"
REFUSED_TARGETS = ("os.system", "torch.load", "pandas.read_pickle", "builtins.eval", "subprocess.run", MARKER + ".run")


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module that leaves a file behind when anything imports it."""
    trace = tmp_path / "imported"
    write(tmp_path, f"open({str(trace)!r}, 'w').close()\ndef run(*a, **k):\n    pass\n", f"{MARKER}.py")
    monkeypatch.syspath_prepend(str(tmp_path))
    return trace


@pytest.mark.parametrize("target", REFUSED_TARGETS)
@pytest.mark.parametrize("place", ["model", "model.lora", "model.quantization_config", "train", "data_file"])
def test_a_target_outside_of_the_table_is_refused(canary: Path, target: str, place: str) -> None:
    value = f"++{place}={{_target_: {target}}}" if place == "data_file" else f"++{place}._target_={target}"
    with pytest.raises(UnsafeError, match=r"is not in the table") as caught:
        read(CONFIGS / "training.yaml", value)
    assert caught.value.exit_code == 7
    assert caught.value.where == "command line"
    assert "ragfit.models.hf.HFTrain" in caught.value.line() or place != "model"
    assert not canary.exists()
    assert MARKER not in sys.modules


def test_a_target_in_a_file_is_refused_with_its_line(
    tmp_path: Path, canary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for target in REFUSED_TARGETS:
        file = write(tmp_path, f"model:\n  _target_: {target}\n  model_name_or_path: nano-mistral\ntrain:\n")
        with pytest.raises(UnsafeError, match=r"c.yaml:2: _target_ .*allowed here: ragfit.models.hf.HFTrain"):
            read(file)
    assert not canary.exists()


@pytest.mark.parametrize("key", ["_partial_", "_args_", "_recursive_", "_convert_"])
def test_hydras_other_words_for_creating_objects_are_refused(key: str) -> None:
    for place in ("model", "model.lora", "train"):
        with pytest.raises(UnsafeError, match=key):
            read(CONFIGS / "training.yaml", f"+{place}.{key}=[1]")


def test_refusing_a_target_imports_nothing_heavy(tmp_path: Path) -> None:
    """Neither the named modules nor any library that could run them is loaded when the answer comes."""
    file = write(tmp_path, "model:\n  _target_: torch.load\n  model_name_or_path: pandas.read_pickle\ntrain:\n")
    script = (
        "import sys\nfrom tunesmith.cli.main import main\n"
        f"code = main(['config', {str(file)!r}])\n"
        "print(code, sorted({'torch', 'pandas', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "7 []"


@pytest.mark.parametrize(
    "text",
    [
        f"hydra:\n  callbacks:\n    c:\n      _target_: {MARKER}.run\n",
        f"hydra:\n  launcher:\n    _target_: {MARKER}.run\n",
        f"hydra:\n  searchpath:\n    - pkg://{MARKER}\n",
        "hydra:\n  searchpath:\n    - ${oc.env:HOME}\n",
        "hydra:\n  job:\n    env_copy: [SECRET_OF_TEST]\n",
        "train:\n  run_name: ${oc.env:SECRET_OF_TEST}\n",
        "train:\n  run_name: ${oc.env:SECRET_OF_TEST,nothing}\n",
        "train:\n  run_name: x${oc.env:${experiment}}\nexperiment: SECRET_OF_TEST\n",
        "hydra:\n  job:\n    env_copy: [SECRET_OF_TEST]\ntrain:\n  run_name: ${hydra.job.env_set.SECRET_OF_TEST}\n",
        "train: !!python/object/apply:os.system ['true']\n",
    ],
)
def test_files_that_reach_for_code_or_secrets(
    tmp_path: Path, canary: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("SECRET_OF_TEST", "swordfish")
    with pytest.raises(UnsafeError) as caught:
        read(write(tmp_path, MODEL + text))
    assert "swordfish" not in caught.value.line()
    assert not canary.exists()


def test_variables_of_the_environment_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    file = write(
        tmp_path, MODEL + "train:\n  output_dir: ${oc.env:SCRATCH}/runs\n  run_name: ${oc.env:SLURM_JOB_ID,none}\n"
    )
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert read(file).config.training.output_dir == "/scratch/me/runs"
    assert not any("KEY" in name or "TOKEN" in name for name in READABLE)
    from omegaconf import OmegaConf

    assert OmegaConf.create({"a": "${oc.env:SCRATCH}"}).a == "/scratch/me"  # the resolver is itself again
    monkeypatch.setenv("OTHER_OF_TEST", "x")
    assert OmegaConf.create({"a": "${oc.env:OTHER_OF_TEST}"}).a == "x"


def test_a_file_cannot_permit_code_to_itself(tmp_path: Path) -> None:
    with pytest.raises(UnsafeError, match="allow_remote_code cannot be set in a file"):
        read(write(tmp_path, MODEL + "  allow_remote_code: true\ntrain:\n"))


def test_trust_remote_code_in_a_file_is_no_permission(tmp_path: Path) -> None:
    config = read(write(tmp_path, MODEL + "  trust_remote_code: true\ntrain:\n")).config
    assert config.model.trust_remote_code is True
    assert config.model.allow_remote_code is False


# Classes of installed packages


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package as pip would have installed it: importable, with an entry point of our group."""
    trace = tmp_path / "plugin-imported"
    write(
        tmp_path, f"open({str(trace)!r}, 'w').close()\ndef Mine(resolved, precision):\n    return 'model'\n", "lab.py"
    )
    info = "lab-1.0.dist-info"
    write(tmp_path, "Metadata-Version: 2.1\nName: lab\nVersion: 1.0\n", f"{info}/METADATA")
    write(tmp_path, "[tunesmith.models]\nmine = lab:Mine\n", f"{info}/entry_points.txt")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "lab", raising=False)
    importlib.invalidate_caches()
    return trace


@pytest.mark.parametrize("target", ["mine", "lab.Mine"])
def test_an_installed_package_may_add_a_model_class(installed: Path, target: str) -> None:
    resolved = read(CONFIGS / "training.yaml", f"model._target_={target}")
    assert resolved.config.model.model_class == "mine"
    assert not installed.exists()  # reading a configuration imports nothing
    from tunesmith.model.plugins import model_class

    assert model_class("mine")(resolved, None) == "model"
    assert installed.exists()


def test_a_class_that_is_not_offered_is_not_imported(installed: Path) -> None:
    with pytest.raises(UnsafeError, match=r"allowed here: .*mine"):
        read(CONFIGS / "training.yaml", "model._target_=lab.Other")
    assert not installed.exists()


def test_a_class_named_under_its_setting_must_be_installed_too() -> None:
    from tunesmith.model.plugins import model_class

    with pytest.raises(TunesmithError, match=r"os\.system"):
        model_class("os.system")
