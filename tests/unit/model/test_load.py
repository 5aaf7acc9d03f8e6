"""Models of every kind of fine-tuning: loaded, one step taken, what is trained moves and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from tunesmith.config.resolve import Resolved
from tunesmith.errors import ModelError
from tunesmith.model.device import CPU, Device, Machine, here
from tunesmith.model.load import inference_device, load_base, load_model, on_device
from tunesmith.model.parameters import trainable_parameters
from tunesmith.model.precision import Precision, align_types, choose_precision

Settings = Callable[..., Resolved]
Batch = dict[str, torch.Tensor]
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

KINDS: dict[str, dict[str, Any]] = {
    "full": {"use_lora": False},
    "full bf16": {"use_lora": False, "bf16": True},
    "lora": {},
    "lora bf16": {"bf16": True},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "dora bf16": {"use_dora": True, "bf16": True},
    "pissa": {"init_lora_weights": "pissa"},
    "pissa niter bf16": {"init_lora_weights": "pissa_niter_4", "bf16": True},
    "olora": {"init_lora_weights": "olora"},
    "gaussian": {"init_lora_weights": "gaussian"},
    "all-linear": {"target_modules": "all-linear"},
    "one layer": {"layers_to_transform": [1]},
    "biases": {"kind": "gpt2", "bias": "all", "target_modules": ["c_attn"], "fan_in_fan_out": True},
    "biases bf16": {"kind": "gpt2", "bias": "all", "target_modules": ["c_attn"], "bf16": True},
    "head whole bf16": {"modules_to_save": ["lm_head", "embed_tokens"], "bf16": True},
    "nf4": {"load_in_4bit": True},
    "nf4 bf16": {"load_in_4bit": True, "bf16": True},
    "nf4 dora": {"load_in_4bit": True, "use_dora": True},
    "nf4 head whole bf16": {"load_in_4bit": True, "bf16": True, "modules_to_save": ["lm_head"]},
    "nf4 gpt2": {"kind": "gpt2", "load_in_4bit": True, "target_modules": ["c_attn", "c_proj"]},
    "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": False},
    "int8": {"load_in_8bit": True},
    "int8 bf16": {"load_in_8bit": True, "bf16": True},
}
EQUAL_UP_TO_ROUNDING = {
    "pissa": "moves a part of the base into the adapter",
    "pissa niter bf16": "the same",
    "olora": "the same",
    "dora": "divides weights by their norm and multiplies them by it again",
    "dora bf16": "the same",
    "nf4 dora": "the same",
    "head whole bf16": "holds the embedding in float32, where the base holds it in bfloat16",
}


def one_step(model: torch.nn.Module, precision: Precision, batch: Batch, seed: int = 3) -> float:
    """Forward and backward as the trainer does it; the loss."""
    torch.manual_seed(seed)
    model.train()
    with precision.autocast("cpu"):
        loss = model(**batch).loss
    loss.backward()
    return loss.item()


def load(settings: Settings, **values: Any) -> tuple[Any, Precision]:
    resolved = settings(**values)
    precision = choose_precision(resolved, here(resolved))
    torch.manual_seed(0)
    return load_model(resolved, precision, here(resolved)), precision


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_trained_weight_gets_a_gradient_and_no_other_moves(
    kind: str, checkpointing: bool, settings: Settings, batch: Batch
) -> None:
    model, precision = load(settings, gradient_checkpointing=checkpointing, **KINDS[kind])
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    assert trained
    assert bool(frozen) == (not kind.startswith("full"))
    assert {p.dtype for p in trained.values()} == {torch.float32}
    optimizer = torch.optim.SGD(trained.values(), lr=0.1)
    one_step(model, precision, batch)
    assert [name for name, p in trained.items() if p.grad is None] == []
    optimizer.step()
    optimizer.zero_grad()
    one_step(model, precision, batch)  # with B away from zero, A gets its gradient as well
    assert [name for name, p in trained.items() if p.grad is None or not p.grad.abs().sum() > 0] == []
    optimizer.step()
    after = dict(model.named_parameters())
    assert [name for name, value in frozen.items() if not torch.equal(after[name], value)] == []


@pytest.mark.parametrize("kind", KINDS)
def test_checkpointing_changes_no_number(kind: str, settings: Settings, batch: Batch) -> None:
    results = []
    for checkpointing in (False, True):
        model, precision = load(settings, gradient_checkpointing=checkpointing, lora_dropout=0.1, **KINDS[kind])
        loss = one_step(model, precision, batch)
        results.append((loss, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
        layers = [part for part in model.modules() if getattr(part, "gradient_checkpointing", False)]
        assert bool(layers) == checkpointing
    (loss, gradients), (other_loss, others) = results
    assert loss == other_loss
    assert gradients.keys() == others.keys()
    assert [name for name in gradients if not torch.equal(gradients[name], others[name])] == []


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.startswith("full")])
def test_fresh_adapter_changes_nothing(kind: str, settings: Settings, batch: Batch) -> None:
    model, precision = load(settings, **KINDS[kind])
    model.eval()
    with torch.no_grad(), precision.autocast("cpu"):
        adapted = model(batch["input_ids"]).logits
        plain = load(settings, **(KINDS[kind] | {"init_lora_weights": True}))[0].eval()
        with plain.disable_adapter():
            original = plain(batch["input_ids"]).logits
    if kind in EQUAL_UP_TO_ROUNDING:
        torch.testing.assert_close(adapted, original, atol=2e-2 if precision.bf16 else 1e-5, rtol=0)
    else:
        assert torch.equal(adapted, original)


@pytest.mark.parametrize(
    "kind", ["lora bf16", "biases bf16", "head whole bf16", "nf4 bf16", "nf4 head whole bf16", "int8 bf16"]
)
def test_answers_outside_of_autocast_as_well(kind: str, settings: Settings, batch: Batch) -> None:
    model, precision = load(settings, **KINDS[kind])
    model.eval()
    with torch.no_grad():
        outside = model(batch["input_ids"]).logits
        with precision.autocast("cpu"):
            inside = model(batch["input_ids"]).logits
    torch.testing.assert_close(outside.float(), inside.float(), atol=3e-2, rtol=0)


@pytest.mark.parametrize("odd", ["lm_head", "norm", "embed_tokens"])
def test_a_part_in_float32_among_bfloat16_fails_without_and_works_with_alignment(
    odd: str, models_folder: Path, batch: Batch
) -> None:
    model = AutoModelForCausalLM.from_pretrained(models_folder / "mistral", dtype=torch.bfloat16)
    expected = model(batch["input_ids"]).logits.float()
    for name, part in model.named_modules():
        if odd in name.rpartition(".")[2]:
            part.float()
    with pytest.raises(RuntimeError, match="dtype"):
        model(batch["input_ids"])
    assert align_types(model) > 0
    torch.testing.assert_close(model(batch["input_ids"]).logits.float(), expected, atol=3e-2, rtol=0)


@pytest.mark.parametrize("kind", ["lora", "nf4 bf16", "head whole bf16"])
def test_trainer_still_sees_that_the_model_takes_loss_arguments(kind: str, settings: Settings, tmp_path: Path) -> None:
    model, _ = load(settings, gradient_checkpointing=True, **KINDS[kind])
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[])
    assert Trainer(model=model, args=arguments).model_accepts_loss_kwargs is True


def test_number_of_trained_weights(settings: Settings) -> None:
    full, _ = load(settings, use_lora=False)
    trainable, total = trainable_parameters(full)
    assert trainable == total == sum(p.numel() for p in full.parameters())
    quantized, _ = load(settings, load_in_4bit=True, lora_r=4)
    # r x (in + out) of q, k, v and o (64 x 64, or 64 x 32 with half as many key heads) in 2 layers
    own = 2 * 4 * (128 + 96 + 96 + 128)
    assert trainable_parameters(quantized) == (own, total + own)


def test_model_is_ready_for_training(settings: Settings) -> None:
    model, _ = load(settings, lora_r=4)
    assert isinstance(model, PeftModel)
    assert model.config.use_cache is False
    assert model.config._attn_implementation == "sdpa"
    assert model.peft_config["default"].r == 4


def test_missing_model_is_an_error_of_the_model(settings: Settings, tmp_path: Path) -> None:
    resolved = settings(model_name_or_path=str(tmp_path / "none"))
    with pytest.raises(ModelError, match="no such model folder"):
        load_model(resolved, choose_precision(resolved, here(resolved)), here(resolved))


def test_broken_weights_are_an_error_of_the_model(settings: Settings, models_folder: Path, tmp_path: Path) -> None:
    for file in (models_folder / "llama").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    resolved = settings(model_name_or_path=str(tmp_path))
    with pytest.raises(ModelError, match="cannot be read as safetensors") as caught:
        load_model(resolved, choose_precision(resolved, here(resolved)), here(resolved))
    assert caught.value.exit_code == 4


PLACED = Device("cuda", {"": 0}, use_cpu=False, visible=None, spread=False, reason="test")


class Elsewhere(Device):
    """A device that stands for an accelerator on machines without one: torch's meta device, which holds no values."""

    def __str__(self) -> str:
        return "meta"


META = Elsewhere(**{field.name: getattr(PLACED, field.name) for field in fields(Device)})


def test_a_plug_ins_model_is_moved_to_where_the_run_computes(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolved = settings("llama", model_class="test")
    made = load_base(resolved, Precision("float32", "test"), CPU)
    made.hf_device_map = {"": "cpu"}
    monkeypatch.setattr("tunesmith.model.load.model_class", lambda name: lambda resolved, precision: made)
    stays = load_model(resolved, Precision("float32", "test"), CPU)
    assert {parameter.device.type for parameter in stays.parameters()} == {"cpu"}
    moved = load_model(resolved, Precision("float32", "test"), META)
    assert {parameter.device.type for parameter in moved.parameters()} == {"meta"}
    assert moved.hf_device_map == {"": torch.device("meta")}


@pytest.mark.parametrize("obstacle", ["quantization_method", "hf_device_map"])
def test_a_plug_ins_model_that_cannot_be_moved_is_refused(settings: Settings, obstacle: str) -> None:
    model = load_base(settings("llama"), Precision("float32", "test"), CPU)
    setattr(model, obstacle, {"a": 0, "b": 1} if obstacle == "hf_device_map" else "bitsandbytes")
    with pytest.raises(ModelError, match="the model is on cpu, the run computes on meta") as caught:
        on_device(model, META)
    assert caught.value.exit_code == 4
    assert on_device(model, CPU) is model


def test_a_model_that_only_answers_is_spread_where_one_device_does_not_hold_it(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights are counted in the format in which they are held: 4 bytes, 2 bytes, or packed."""
    spread = replace(PLACED, device_map="auto", spread=True)
    resolved, four = settings("llama", use_lora=False), settings("llama", load_in_4bit=True, lora_r=1)
    count = sum(parameter.numel() for parameter in load_base(resolved, Precision("float32", "test"), CPU).parameters())
    half = Precision("bfloat16", "test")
    for size, case, precision, fits in (
        (4.5 * count, resolved, Precision("float32", "test"), False),
        (5.5 * count, resolved, Precision("float32", "test"), True),
        (2.2 * count, resolved, half, False),
        (2.8 * count, resolved, half, True),
        (2.0 * count, four, half, True),
    ):
        machine = Machine(2, True, (int(size) - 1, int(size)), ("a", "b"))
        monkeypatch.setattr("tunesmith.model.load.seen", lambda machine=machine: machine)
        found = inference_device(case, precision, spread, precision.torch_dtype)
        assert (found.spread, found.device_map) == ((False, {"": 0}) if fits else (True, "auto")), size
    assert inference_device(resolved, half, CPU) is CPU


def test_small_real_model_is_quantized_and_takes_a_step(stories_model: Path, settings: Settings) -> None:
    batch = {"input_ids": torch.tensor([[1, 403, 407, 261, 378]]), "labels": torch.tensor([[1, 403, 407, 261, 378]])}
    model, precision = load(settings, model_name_or_path=str(stories_model), load_in_4bit=True)
    assert one_step(model, precision, batch) < 6.3  # ln 512 = 6.24: no worse than knowing nothing
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
