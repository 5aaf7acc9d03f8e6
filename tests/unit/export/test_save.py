"""Saved models: complete, readable by plain PEFT and transformers, and refused when somebody tampered with them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from tiny_models import build, configure
from tunesmith import assets, notices
from tunesmith.config.resolve import Resolved
from tunesmith.errors import ModelError, StorageError, UnsafeError
from tunesmith.export.save import loadable_base, save_model
from tunesmith.model.cache_setting import cache_as_in_base, switch_cache_off
from tunesmith.model.device import here
from tunesmith.model.fingerprint import fingerprint
from tunesmith.model.load import load_for_inference, load_model
from tunesmith.model.precision import choose_precision
from tunesmith.model.tokenizer import load_tokenizer

Settings = Callable[..., Resolved]
IDS = torch.tensor([[5, 9, 33, 60, 17, 21, 40]])

KINDS: dict[str, dict[str, Any]] = {
    "full": {"use_lora": False},
    "full tied": {"use_lora": False, "kind": "llama"},
    "full bf16": {"use_lora": False, "bf16": True},
    "lora": {},
    "lora bf16": {"bf16": True},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "biases": {"kind": "gpt2", "bias": "all", "target_modules": ["c_attn"]},
    "biases bf16": {"kind": "gpt2", "bias": "all", "target_modules": ["c_attn"], "bf16": True},
    "whole modules bf16": {"bf16": True, "modules_to_save": ["lm_head", "embed_tokens"]},
    "nf4": {"load_in_4bit": True},
    "nf4 bf16": {"load_in_4bit": True, "bf16": True},
    "int8": {"load_in_8bit": True},
}


def trained(settings: Settings, folder: Path, **values: Any) -> tuple[Any, Resolved]:
    """A model a few steps away from its start, saved into ``folder`` with the record of its run."""
    resolved = settings(**values)
    precision = choose_precision(resolved, here(resolved))
    torch.manual_seed(0)
    model = load_model(resolved, precision, here(resolved))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for _ in range(3):
        with precision.autocast("cpu"):
            model.train()(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    save_model(model, load_tokenizer(resolved.config.model), folder, resolved.config.model)
    record = {"settings": resolved.values(), "origins": resolved.origins}
    (folder / "run.json").write_text(json.dumps(record))
    return model.eval(), resolved


def answer(model: Any, resolved: Resolved) -> torch.Tensor:
    with torch.no_grad(), choose_precision(resolved, here(resolved)).autocast("cpu"):
        return model(IDS).logits


@pytest.mark.parametrize("kind", KINDS)
def test_saved_run_answers_bit_for_bit_as_the_trained_model(kind: str, settings: Settings, tmp_path: Path) -> None:
    model, resolved = trained(settings, tmp_path / "run", **KINDS[kind])
    again = load_for_inference(tmp_path / "run")
    assert again.precision.dtype == choose_precision(resolved, here(resolved)).dtype
    assert torch.equal(answer(again.model, resolved), answer(model, resolved))
    assert not any(parameter.requires_grad for parameter in again.model.parameters())
    assert not again.model.training


@pytest.mark.parametrize("kind", ["full", "lora", "nf4"])
def test_folder_holds_what_is_needed_and_no_pickle(kind: str, settings: Settings, tmp_path: Path) -> None:
    trained(settings, tmp_path / "run", **KINDS[kind])
    names = {path.name for path in (tmp_path / "run").iterdir()} - {"run.json", "chat_template.jinja"}
    own = (
        {"model.safetensors", "config.json"} if kind == "full" else {"adapter_model.safetensors", "adapter_config.json"}
    )
    assert names == own | {"tokenizer.json", "tokenizer_config.json", "generation_config.json"}
    AutoTokenizer.from_pretrained(tmp_path / "run")
    GenerationConfig.from_pretrained(tmp_path / "run")
    if kind == "full":
        assert json.loads((tmp_path / "run" / "config.json").read_text())["use_cache"] is True


@pytest.mark.parametrize("used", [True, False])
def test_the_configuration_says_of_the_cache_what_the_base_says(used: bool, settings: Settings, tmp_path: Path) -> None:
    """Training switches it off, and every save happens in the middle of one."""
    base = shutil.copytree(settings().config.model.model_name_or_path, tmp_path / "base")
    configure(base, use_cache=used)
    model, _ = trained(settings, tmp_path / "run", use_lora=False, model_name_or_path=str(base))
    assert json.loads((tmp_path / "run" / "config.json").read_text())["use_cache"] is used
    assert model.config.use_cache is False


def test_a_configuration_that_says_nothing_of_a_cache_is_saved_so() -> None:
    model = build("llama")
    saved = []
    del model.config.use_cache
    switch_cache_off(model)
    with cache_as_in_base(model):
        saved.append("use_cache" in vars(model.config))
    assert (saved, model.config.use_cache) == ([False], False)


def test_chat_template_travels_along(settings: Settings, tmp_path: Path) -> None:
    resolved = settings()
    tokenizer = load_tokenizer(resolved.config.model)
    tokenizer.chat_template = "{{ messages[0].content }}"
    save_model(
        load_model(resolved, choose_precision(resolved, here(resolved)), here(resolved)),
        tokenizer,
        tmp_path,
        resolved.config.model,
    )
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == "{{ messages[0].content }}"


@pytest.mark.parametrize("kind", ["lora", "rslora", "dora"])
def test_plain_peft_opens_the_adapter(kind: str, settings: Settings, tmp_path: Path) -> None:
    model, resolved = trained(settings, tmp_path, **KINDS[kind])
    named = json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert named == resolved.config.model.model_name_or_path
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(named), str(tmp_path)).eval()
    assert torch.equal(answer(plain, resolved), answer(model, resolved))


@pytest.mark.parametrize("values", [{}, {"use_rslora": True}, {"use_dora": True}, {"modules_to_save": ["lm_head"]}])
@pytest.mark.parametrize("initial", ["pissa", "pissa_niter_4", "olora"])
def test_adapter_that_moved_the_base_is_saved_for_the_untouched_one(
    initial: str, values: dict[str, Any], settings: Settings, tmp_path: Path
) -> None:
    model, resolved = trained(settings, tmp_path, init_lora_weights=initial, lora_r=4, **values)
    base = AutoModelForCausalLM.from_pretrained(resolved.config.model.model_name_or_path)
    plain = PeftModel.from_pretrained(base, str(tmp_path)).eval()
    assert plain.peft_config["default"].r == 8
    torch.testing.assert_close(answer(plain, resolved), answer(model, resolved), atol=1e-4, rtol=0)
    torch.testing.assert_close(
        answer(load_for_inference(tmp_path).model, resolved), answer(model, resolved), atol=1e-4, rtol=0
    )


def test_not_finite_weights_are_not_saved_and_leave_the_old_ones(settings: Settings, tmp_path: Path) -> None:
    model, resolved = trained(settings, tmp_path)
    before = (tmp_path / "adapter_model.safetensors").read_bytes()
    next(p for p in model.parameters() if p.requires_grad is False)  # the base is frozen
    next(p for name, p in model.named_parameters() if "lora_A" in name).data[0, 0] = float("nan")
    with pytest.raises(StorageError, match="not finite"):
        save_model(model, load_tokenizer(resolved.config.model), tmp_path, resolved.config.model)
    assert (tmp_path / "adapter_model.safetensors").read_bytes() == before
    assert not (tmp_path / ".saving").exists()


def test_folder_that_cannot_be_written(settings: Settings, tmp_path: Path) -> None:
    resolved = settings()
    (tmp_path / "file").write_text("")
    model = load_model(resolved, choose_precision(resolved, here(resolved)), here(resolved))
    with pytest.raises(StorageError, match="cannot be saved"):
        save_model(model, load_tokenizer(resolved.config.model), tmp_path / "file", resolved.config.model)


def drop(tensors: dict[str, torch.Tensor]) -> None:
    tensors.pop(min(tensors))


def rename(tensors: dict[str, torch.Tensor]) -> None:
    name = min(tensors)
    tensors[name.replace("layers.0", "layers.00")] = tensors.pop(name)


def add(tensors: dict[str, torch.Tensor]) -> None:
    tensors["base_model.model.extra.lora_A.weight"] = torch.zeros(1)


def empty(tensors: dict[str, torch.Tensor]) -> None:
    tensors.clear()


def reshape(tensors: dict[str, torch.Tensor]) -> None:
    tensors[min(tensors)] = tensors[min(tensors)][:0]


def poison(tensors: dict[str, torch.Tensor]) -> None:
    tensors[min(tensors)][0, 0] = float("inf")


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (drop, "1 missing"),
        (rename, "1 missing .* 1 unexpected"),
        (add, "1 unexpected"),
        (empty, "16 missing"),
        (reshape, "shape"),
        (poison, "not finite"),
    ],
)
def test_tampered_adapter_is_refused(
    tamper: Callable[[dict[str, torch.Tensor]], None], message: str, settings: Settings, tmp_path: Path
) -> None:
    trained(settings, tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    tamper(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=message) as caught:
        load_for_inference(tmp_path)
    assert caught.value.exit_code == 4


def test_adapter_file_that_is_cut_missing_or_a_pickle(settings: Settings, tmp_path: Path) -> None:
    trained(settings, tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match="cannot be read"):
        load_for_inference(tmp_path)
    path.unlink()
    with pytest.raises(ModelError, match="has no adapter_model"):
        load_for_inference(tmp_path)
    torch.save({}, tmp_path / "adapter_model.bin")
    with pytest.raises(UnsafeError, match="pickle"):
        load_for_inference(tmp_path)


@pytest.fixture
def sibling(models_folder: Path, tmp_path: Path) -> Path:
    """A base of the same shape with other weights."""
    folder = tmp_path / "sibling"
    shutil.copytree(models_folder / "mistral", folder)
    weights = load_file(folder / "model.safetensors")
    save_file({name: value * 1.01 for name, value in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_adapter_on_another_base_is_refused(settings: Settings, tmp_path: Path, sibling: Path) -> None:
    trained(settings, tmp_path / "run")
    with pytest.raises(ModelError, match="another base"):
        load_for_inference(tmp_path / "run", base=str(sibling))


def test_adapter_without_a_fingerprint_is_loaded_aloud(settings: Settings, tmp_path: Path, clean_notices: None) -> None:
    trained(settings, tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    save_file(load_file(path), path, metadata={"format": "pt"})
    load_for_inference(tmp_path)
    assert any("which base" in text for text in notices.collected())


def test_adapter_folder_without_a_record_finds_its_base(settings: Settings, tmp_path: Path) -> None:
    model, resolved = trained(settings, tmp_path)
    (tmp_path / "run.json").unlink()
    assert torch.equal(answer(load_for_inference(tmp_path).model, resolved), answer(model, resolved))


def test_checkpoint_folder_uses_the_record_of_its_run(settings: Settings, tmp_path: Path) -> None:
    model, resolved = trained(settings, tmp_path, load_in_4bit=True)
    model.save_pretrained(str(tmp_path / "checkpoint-3"))  # as the trainer writes it
    again = load_for_inference(tmp_path / "checkpoint-3")
    assert again.model.is_loaded_in_4bit
    assert again.tokenizer_folder == str(tmp_path)
    assert torch.equal(answer(again.model, resolved), answer(model, resolved))


def record_precision(folder: Path, dtype: str) -> None:
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(record | {"model": {"precision": dtype}}))


def test_precision_that_the_run_chose_is_used_again(settings: Settings, tmp_path: Path) -> None:
    trained(settings, tmp_path)
    record_precision(tmp_path, "bfloat16")  # chosen by a machine that computes in it
    again = load_for_inference(tmp_path)
    assert (again.precision.dtype, again.weight_dtype) == ("bfloat16", torch.bfloat16)


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for what a cpu lacks")
def test_run_of_another_machine_is_used_with_its_weights_and_the_arithmetic_of_this_one(
    settings: Settings, tmp_path: Path, clean_notices: None
) -> None:
    model, resolved = trained(settings, tmp_path, fp16=True)
    record_precision(tmp_path, "float16")
    record = json.loads((tmp_path / "run.json").read_text())
    record["settings"] |= {"model.device_map": "cuda:1", "launch.gpu_id": 1}
    (tmp_path / "run.json").write_text(json.dumps(record))
    again = load_for_inference(tmp_path)
    assert (again.precision.dtype, again.weight_dtype) == ("float32", torch.float16)
    assert any("float16" in text and "float32" in text for text in notices.collected())
    weight = again.model.get_parameter("base_model.model.model.layers.0.mlp.up_proj.weight")
    original = model.get_parameter("base_model.model.model.layers.0.mlp.up_proj.weight")
    assert torch.equal(weight, original.half().float())
    torch.testing.assert_close(answer(again.model, resolved), answer(model, resolved), atol=1e-2, rtol=0)


def test_base_inside_the_package_is_named_by_its_folder() -> None:
    assert loadable_base("nano-mistral") == str(assets.embedded_model("nano-mistral"))
    assert loadable_base("some-one/some-model") == "some-one/some-model"


def test_fingerprint_knows_weights_and_shape_but_no_trifles(models_folder: Path, sibling: Path, tmp_path: Path) -> None:
    original = fingerprint(models_folder / "mistral")
    assert fingerprint(sibling) != original
    copy = tmp_path / "copy"
    shutil.copytree(models_folder / "mistral", copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"use_cache": False, "transformers_version": "9"}))
    assert fingerprint(copy) == original
    (copy / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    assert fingerprint(copy) != original
    sharded = tmp_path / "sharded"
    AutoModelForCausalLM.from_pretrained(models_folder / "mistral").save_pretrained(sharded, max_shard_size="50KB")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    assert fingerprint(sharded) == original
