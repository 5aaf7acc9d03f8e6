"""Adapters of anybody: what is wrong in their files costs one line and little time, and nothing is imported."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tiny_models import change, configure, without
from tunesmith.model import adapter_config

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
A = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"


@pytest.fixture
def foreign(adapter: Path) -> Path:
    """The adapter as PEFT alone would have saved it: no marks of ours in its file, and no record."""
    tensors = load_file(adapter / WEIGHTS)
    save_file(tensors, adapter / WEIGHTS, metadata={"format": "pt"})
    (adapter / "run.json").unlink()
    return adapter


def test_foreign_adapter_is_used(foreign: Path, call) -> None:
    assert call("predict", foreign) == (0, "")


TENSORS: dict[str, tuple[Any, str]] = {
    "missing": (without(A), A),
    "renamed": (lambda t: t.update({A + "s": t.pop(A)}), A + "s"),
    "all renamed": (lambda t: {f"x.{name}": tensor for name, tensor in t.items()}, "x.base_model"),
    "left over": (lambda t: t.update({"x.lora_A.weight": t[A].clone()}), "x.lora_A.weight"),
    "integers": (lambda t: t.update({A: t[A].int()}), A),
    "empty": (lambda t: t.update({A: t[A][:0].clone()}), A),
    "another shape": (lambda t: t.update({A: t[A][:, :-1].clone()}), A),
    "no number": (lambda t: t.update({A: t[A] * float("nan")}), A),
    "nothing": (lambda t: {}, "missing"),
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_that_do_not_fit_are_named(name: str, foreign: Path, call) -> None:
    damage, named = TENSORS[name]
    change(foreign, damage, WEIGHTS)
    code, errors = call("predict", foreign)
    assert (code, named in errors) == (4, True), errors


SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"r": "8"}, "r is '8'"),
    ({"r": 0}, "r is 0"),
    ({"r": 10**9}, "rank 1000000000"),
    ({"r": 8}, "(8, 64)"),
    ({"rank_pattern": {"q_proj": 10**9}}, "rank 1000000000"),
    ({"rank_pattern": {"q_proj": "8"}}, "rank_pattern"),
    ({"lora_alpha": None}, "lora_alpha"),
    ({"lora_dropout": 2}, "lora_dropout"),
    ({"target_modules": 5}, "target_modules"),
    ({"target_modules": {"q_proj": 1}}, "target_modules"),
    ({"target_modules": "(q_proj"}, "no regular expression"),
    ({"target_modules": r"((\w|\.)*)*$$x"}, "does not end"),
    ({"alpha_pattern": {r"((\w|\.)*)*x": 1}}, "does not end"),
    ({"modules_to_save": "lm_head"}, "modules_to_save"),
    ({"bias": 3}, "bias"),
    ({"use_dora": "no"}, "use_dora"),
    ({"layers_to_transform": "1"}, "layers_to_transform"),
    ({"layer_replication": [[0, 10**9]]}, "layer_replication"),
    ({"init_lora_weights": 3}, "init_lora_weights"),
    ({"peft_type": "PROMPT_TUNING"}, "LoRA"),
    ({"peft_type": ["LORA"]}, "LoRA"),
    ({"task_type": "SEQ_CLS"}, "task_type"),
    ({"base_model_name_or_path": None}, "does not name its base"),
    ({"base_model_name_or_path": ["a"]}, "base_model_name_or_path"),
]


@pytest.mark.parametrize(("values", "named"), SETTINGS)
def test_settings_of_wrong_kinds_are_named_at_once(values, named: str, foreign: Path, call, monkeypatch) -> None:
    monkeypatch.setattr(adapter_config, "PATTERN_DEADLINE", 1.0)  # these patterns would take years
    configure(foreign, CONFIG, **values)
    code, errors = call("predict", foreign)
    assert (code, named in errors) == (4, True), errors
    assert len(errors.splitlines()) == 1


@pytest.mark.parametrize("text", ["[]", "{", "null", '"LORA"', "[" * 100_000])
def test_configuration_that_is_none(text: str, foreign: Path, call) -> None:
    (foreign / CONFIG).write_text(text)
    code, errors = call("predict", foreign)
    assert (code, CONFIG in errors) == (4, True), errors


def test_module_that_a_configuration_names_is_not_imported(foreign: Path, tmp_path: Path, call, monkeypatch) -> None:
    (tmp_path / "megatron_of_mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    configure(foreign, CONFIG, megatron_config={"a": 1}, megatron_core="megatron_of_mine")
    code, errors = call("predict", foreign)
    assert (code, "megatron_config" in errors) == (7, True), errors
    assert not (tmp_path / "ran").exists()


def test_pickled_adapter_is_refused_before_it_is_opened(foreign: Path, call) -> None:
    (foreign / WEIGHTS).rename(foreign / "adapter_model.bin")
    code, errors = call("predict", foreign)
    assert (code, "adapter_model.bin" in errors) == (7, True), errors


def test_rank_of_a_new_adapter_is_bounded_before_it_is_allocated(base: Path, call) -> None:
    code, errors = call("train", base, f"--lora_r={60_000}")
    assert (code, str(60_000) in errors) == (4, True), errors


def fingerprint_of_the_first_version(folder: Path) -> str:
    """Written down when there was no other: the configuration, then the first and the last tensor by name."""
    left_out = {
        "transformers_version", "dtype", "torch_dtype", "use_cache", "_name_or_path", "quantization_config", "auto_map",
        "architectures", "bos_token_id", "eos_token_id", "pad_token_id",
    }  # fmt: skip
    config = json.loads((folder / "config.json").read_text())
    text = json.dumps({key: value for key, value in config.items() if key not in left_out}, sort_keys=True)
    digest = hashlib.sha256(text.encode())
    tensors = load_file(folder / "model.safetensors")
    for name in (min(tensors), max(tensors)):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].numpy().tobytes())
    return digest.hexdigest()


def test_fingerprint_of_the_first_version_still_tells_bases_apart(base: Path, adapter: Path, call) -> None:
    """Adapters that were saved before every weight counted name their base by its first and last tensor."""

    old = fingerprint_of_the_first_version(base)
    tensors = load_file(adapter / WEIGHTS)
    save_file(tensors, adapter / WEIGHTS, metadata={"format": "pt", "base_fingerprint": old})
    assert call("predict", adapter) == (0, "")
    change(base, lambda t: t.update({"lm_head.weight": t["lm_head.weight"] + 1}))
    code, errors = call("predict", adapter)
    assert (code, "another base" in errors) == (4, True), errors
