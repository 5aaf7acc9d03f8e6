"""Memory estimates against what real models, optimizers and runs take."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from helpers import resolved_from
from tunesmith.config.resolve import Resolved
from tunesmith.errors import ConfigError
from tunesmith.model import memory
from tunesmith.model.device import CPU, here
from tunesmith.model.load import load_model
from tunesmith.model.memory import GIB, BatchShape, Memory, device_memory, estimate, formulas, optimizer_bytes, skeleton
from tunesmith.model.memory.activations import activations
from tunesmith.model.memory.formulas import CUDA_CONTEXT
from tunesmith.model.memory.shapes import packed_bytes
from tunesmith.model.parameters import trainable_parameters
from tunesmith.model.precision import Precision, choose_precision

FLOAT32 = Precision("float32", "test")
SMALL = BatchShape(2, 16, 8)
LORA: dict[str, Any] = {"lora_r": 4, "target_modules": "all-linear"}
KINDS = ("llama", "mistral", "gpt2")
WAYS: dict[str, dict[str, Any]] = {
    "full": {"use_lora": False},
    "lora": LORA,
    "dora": LORA | {"use_dora": True},
    "4 bits": LORA | {"load_in_4bit": True},
    "8 bits": LORA | {"load_in_8bit": True},
    "pissa": LORA | {"init_lora_weights": "pissa"},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", WAYS)
def test_parameters_are_those_of_the_real_model(kind: str, way: str, settings: Callable[..., Resolved]) -> None:
    resolved = settings(kind, **WAYS[way])
    real = load_model(resolved, FLOAT32, here(resolved))
    estimated = estimate(resolved, FLOAT32, SMALL, cuda=False)
    assert (estimated.trainable, estimated.parameters) == trainable_parameters(real)
    shapes = {name: tuple(parameter.shape) for name, parameter in skeleton(resolved, FLOAT32).named_parameters()}
    assert shapes.keys() == {name for name, _ in real.named_parameters()}
    if "bits" not in way:
        assert estimated.weights == sum(p.numel() * p.element_size() for p in real.parameters())


def test_modules_trained_whole_are_counted(settings: Callable[..., Resolved]) -> None:
    resolved = settings("mistral", target_modules=["q_proj"], modules_to_save=["lm_head"], layers_to_transform=[1])
    estimated = estimate(resolved, FLOAT32, SMALL, cuda=False)
    assert (estimated.trainable, estimated.parameters) == trainable_parameters(
        load_model(resolved, FLOAT32, here(resolved))
    )


@pytest.mark.parametrize("double", [True, False])
def test_four_bit_weights_take_what_the_library_stores(double: bool, settings: Callable[..., Resolved]) -> None:
    from bitsandbytes.nn import Linear4bit

    resolved = settings("mistral", **LORA, load_in_4bit=True, bnb_4bit_use_double_quant=double)
    real = load_model(resolved, FLOAT32, here(resolved))
    layers = [module for module in real.modules() if isinstance(module, Linear4bit)]
    assert len(layers) == 14
    packed = 0
    for layer in layers:
        state = layer.weight.quant_state
        packed += (
            layer.weight.numel() * layer.weight.element_size() + state.absmax.numel() * state.absmax.element_size()
        )
        packed += state.state2.absmax.numel() * 4 if double else 0
    held = {id(layer.weight) for layer in layers}
    plain = sum(p.numel() * p.element_size() for p in real.parameters() if id(p) not in held)
    assert estimate(resolved, FLOAT32, SMALL, cuda=False).weights == packed + plain


def test_scales_are_the_documented_share() -> None:
    weight = torch.empty(4096, 4096, device="meta")
    count = weight.numel()
    assert packed_bytes(weight, eight=False, double=False) / count == pytest.approx(0.5 + 4 / 64)
    assert packed_bytes(weight, eight=False, double=True) / count == pytest.approx(0.5 + 1 / 64 + 4 / 64 / 256)
    assert packed_bytes(weight, eight=True, double=True) == count + 4 * 4096


@pytest.mark.parametrize(
    "optim",
    ["adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop", "adamw_8bit", "paged_adamw_8bit",
     "lion_32bit", "lion_8bit", "ademamix"],
)  # fmt: skip
def test_optimizer_states_are_those_of_the_real_optimizer(optim: str, models_folder: Path) -> None:
    from transformers import Trainer, TrainingArguments

    model = torch.nn.Sequential(torch.nn.Linear(64, 80), torch.nn.Linear(80, 96))
    arguments = TrainingArguments(output_dir=str(models_folder / "out"), optim=optim, use_cpu=True, report_to="none")
    optimizer_class, keywords = Trainer.get_optimizer_cls_and_kwargs(arguments)
    optimizer = optimizer_class(model.parameters(), **keywords)
    model(torch.ones(2, 64)).square().sum().backward()
    optimizer.step()
    real = 0
    tables = 0
    for parameter in model.parameters():
        for name, value in optimizer.state[parameter].items():
            if name.startswith("qmap"):
                tables += 1  # 256 numbers that all tensors share
            elif torch.is_tensor(value) and value.numel() > 1:
                real += value.numel() * value.element_size()
    assert (tables > 0) == ("8bit" in optim)
    assert sum(optimizer_bytes(optim, parameter) for parameter in model.parameters()) == real


def deep_model(kind: str, folder: Path) -> Path:
    """A model with five layers, so that more layers are estimated than are traced."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 5, "num_attention_heads": 4}
    common = {"vocab_size": 96, "max_position_embeddings": 128, "num_key_value_heads": 2}
    model = {
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**sizes, **common)),
        "mistral": lambda: MistralForCausalLM(MistralConfig(**sizes, **common, sliding_window=None)),
        "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=96, n_embd=64, n_layer=5, n_head=4, n_positions=128)),
    }[kind]()
    model.save_pretrained(folder / kind)
    return folder / kind


def kept_for_backward(model: torch.nn.Module, precision: Precision, mask: torch.Tensor) -> int:
    """Bytes that autograd keeps in a real forward pass, parameters not counted."""
    kept: list[torch.Tensor] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    model.train()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), precision.autocast("cpu"):
        model(input_ids=mask, attention_mask=mask, logits_to_keep=1, use_cache=False)
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in kept}
    return sum(size for pointer, size in storages.items() if pointer not in parameters)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["full", "lora", "dora", "4 bits"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rows", [1, 3])
def test_activations_are_what_autograd_keeps(kind: str, way: str, dtype: Any, rows: int, tmp_path: Path) -> None:
    folder = deep_model(kind, tmp_path)
    resolved = resolved_from(model_name_or_path=str(folder), train_data="x", lora_dropout=0.1, **WAYS[way])
    precision = Precision(dtype, "test")
    kept = activations(skeleton(resolved, precision), resolved, precision, BatchShape(rows, 100, 50))
    mask = torch.ones(rows, 100, dtype=torch.long)
    mask[1:, 80:] = 0
    real = kept_for_backward(load_model(resolved, precision, here(resolved)), precision, mask)
    assert kept.held == pytest.approx(real, rel=0.03)


@pytest.fixture
def few_logits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Memory]:
    """Estimates of a model of 96 words whose one-pass loss makes the logits of 20 positions at once."""
    monkeypatch.setattr(formulas, "CHUNK_LOGITS", 96 * 20)
    folder = deep_model("llama", tmp_path)

    def call(rows: int, precision: Precision = FLOAT32, *, spread: bool = False, **more: Any) -> Memory:
        resolved = resolved_from(model_name_or_path=str(folder), train_data="x", **more)
        return estimate(resolved, precision, BatchShape(rows, 100, 50), cuda=False, num_processes=2, spread=spread)

    return call


def test_a_frozen_head_makes_few_logits_at_once(
    few_logits: Callable[..., Memory], monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once, states, all_logits = 96 * 20 * 4, 3 * 50 * 64 * 4, 50 * 96 * 12
    assert [few_logits(rows, **LORA).loss for rows in (1, 2)] == [at_once + states, at_once + 2 * states]
    assert [few_logits(rows, use_lora=False).loss for rows in (1, 2)] == [all_logits, 2 * all_logits]
    others: list[dict[str, Any]] = [
        {"modules_to_save": ["lm_head"]}, {"precision": Precision("float16", "test")}, {"strategy": "fsdp2"},
        {"spread": True}, {"new_tokens": ["<a>"]},
    ]  # fmt: skip
    for more in others:
        assert few_logits(2, **LORA | more).loss == 2 * all_logits, more

    forward = LlamaForCausalLM.forward

    def capped(self: LlamaForCausalLM, **keywords: Any) -> Any:
        found = forward(self, **keywords)
        found.logits = torch.tanh(found.logits / 30) * 30
        return found

    monkeypatch.setattr(LlamaForCausalLM, "forward", capped)
    assert few_logits(2, **LORA).loss == 2 * all_logits


def test_an_evaluation_has_room_for_all_of_its_logits(few_logits: Callable[..., Memory]) -> None:
    many = {"per_device_train_batch_size": 1, "per_device_eval_batch_size": 1000, "eval_data": "y"}
    trains, judges = few_logits(1, **LORA, per_device_train_batch_size=1), few_logits(1, **LORA | many)
    assert judges.peak >= judges.weights + judges.optimizer + 1000 * 50 * 96 * 12 > 2 * (trains.peak - trains.overhead)
    assert few_logits(1, **LORA | many | {"eval_strategy": "no"}).peak - trains.peak < 2**20  # but for this process


MEASURE = """
import json, os, re, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from helpers import resolved_from, run_training
import datasets, peft, trl
import tunesmith.train.run
from tunesmith.model.memory import BatchShape, estimate
from tunesmith.model.device import here
from tunesmith.model.precision import choose_precision

def status(key):
    return int(re.search(key + r":\\s+(\\d+)", Path("/proc/self/status").read_text()).group(1)) * 1024

def measure(folder, settings):
    rows = [{"prompt": chr(97 + row) + "a" * 255, "completion": "b" * 254} for row in range(16)]
    small = {"max_steps": 1, "per_device_train_batch_size": 1}
    run_training(folder / "warm", folder.parent / "model", rows[:2], **settings | small)
    resolved = resolved_from(model_name_or_path=str(folder.parent / "model"), train_data="x", **settings)
    found = estimate(resolved, choose_precision(resolved, here(resolved)), BatchShape(8, 512, 256), cuda=False)
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    run_training(folder / "run", folder.parent / "model", rows, **settings)
    (folder / "found.json").write_text(json.dumps([found.peak - found.overhead, status("VmHWM") - before]))

for name, settings in json.loads(sys.argv[3]).items():
    child = os.fork()  # each has a memory of its own; what all import is imported once
    if not child:
        measure(Path(sys.argv[2], name), settings)
        os._exit(0)
    os.waitpid(child, 0)
"""
FACTOR = 1.4
"""How far the estimate may be from what a process takes, either way; allocators keep some of what is freed."""


PEAKS: dict[str, dict[str, Any]] = {
    "lora": {"lora_r": 8, "target_modules": "all-linear"},
    "full": {"use_lora": False},
    "checkpointing": {"use_lora": False, "gradient_checkpointing": True},
}
EACH = {
    "per_device_train_batch_size": 8, "max_steps": 2, "max_length": 512, "save_strategy": "no", "lora_dropout": 0.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def peaks(tmp_path_factory: pytest.TempPathFactory, make_tokenizer: Callable[..., None]) -> Path:
    """A folder for each way of ``PEAKS`` with the estimated and the measured peak of a real run, in bytes."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("the peak of a process is read from /proc")
    folder = tmp_path_factory.mktemp("peaks")
    config = LlamaConfig(
        hidden_size=256, intermediate_size=768, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=4,
        vocab_size=4096, max_position_embeddings=512,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    make_tokenizer(folder / "model", bos_token="<s>", eos_token="</s>")
    tests = str(Path(__file__).resolve().parents[2])
    ways = {name: settings | EACH for name, settings in PEAKS.items()}
    command = [sys.executable, "-c", MEASURE, tests, str(folder), json.dumps(ways)]
    exact = os.environ | {"MALLOC_MMAP_THRESHOLD_": "262144", "MALLOC_TRIM_THRESHOLD_": "262144"}  # freed is given back
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=exact)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("way", PEAKS)
def test_peak_of_a_real_run_on_the_cpu(way: str, peaks: Path) -> None:
    estimated, measured = json.loads((peaks / way / "found.json").read_text())
    assert estimated / FACTOR <= measured <= estimated * FACTOR, (estimated / 2**20, measured / 2**20)


@pytest.fixture
def seven_billion(tmp_path: Path) -> Path:
    """The configuration of a model of 7 billion parameters, without weights."""
    config = MistralConfig(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
        vocab_size=32000, max_position_embeddings=32768, sliding_window=None,
    )  # fmt: skip
    config.save_pretrained(tmp_path / "seven")
    return tmp_path / "seven"


def on_gpu(model: Path, batch: BatchShape, **settings: Any) -> Memory:
    resolved = resolved_from(model_name_or_path=str(model), train_data="x", max_length=4096, **settings)
    return estimate(resolved, BFLOAT16, batch, cuda=True)


def test_seven_billion_parameters_on_24_gigabytes(seven_billion: Path) -> None:
    batch = BatchShape(1, 2048, 1024)
    few = {"load_in_4bit": True, "gradient_checkpointing": True, "optim": "paged_adamw_8bit"}
    small = on_gpu(seven_billion, batch, **few)
    assert small.parameters - small.trainable == 7_241_732_096
    assert 3.8 * GIB < small.weights < 4.6 * GIB
    assert small.peak < 12 * GIB
    plain = on_gpu(seven_billion, batch, gradient_checkpointing=True)
    assert 13.4 * GIB < plain.weights < 13.7 * GIB
    assert plain.peak < 24 * GIB
    full = on_gpu(seven_billion, batch, use_lora=False, gradient_checkpointing=True)
    assert full.weights == full.gradients == full.optimizer // 2
    assert full.peak > 108 * GIB
    assert on_gpu(seven_billion, batch, **few, use_dora=True).peak > small.peak
    assert on_gpu(seven_billion, batch, load_in_4bit=True).peak > 2 * small.peak, "checkpointing saves most activations"


def test_remedies_are_the_mildest_that_do(seven_billion: Path) -> None:
    def advice(gib: float, batch: BatchShape, **settings: Any) -> tuple[str, ...]:
        resolved = resolved_from(model_name_or_path=str(seven_billion), train_data="x", max_length=4096, **settings)

        def fits(changed: Resolved, shape: BatchShape) -> bool:
            return estimate(changed, BFLOAT16, shape, cuda=True).peak <= gib * GIB

        assert not fits(resolved, batch)
        return memory.remedies(resolved, batch, fits)

    four = {"load_in_4bit": True, "per_device_train_batch_size": 8}
    assert advice(24, BatchShape(8, 1024, 512), **four) == ("gradient_checkpointing: true",)
    one = advice(40, BatchShape(8, 512, 256), gradient_checkpointing=False, per_device_train_batch_size=8)
    assert one == ("gradient_checkpointing: true",)
    several = advice(8, BatchShape(8, 1024, 512), gradient_checkpointing=True, per_device_train_batch_size=8)
    assert several[0].startswith("per_device_train_batch_size: 1 with gradient_accumulation_steps: 8")
    assert several[1] == "load_in_4bit: true"
    assert "use_lora: true" in advice(24, BatchShape(1, 512, 256), use_lora=False)[-1]
    assert advice(2, BatchShape(1, 512, 256), load_in_4bit=True) == ()


@pytest.mark.parametrize(
    ("text", "gib"),
    [("24GB", 24), ("24 GiB", 24), ("80g", 80), ("0.5gb", 0.5), ("RTX 3090", 24), ("A100", 80), ("A100-40GB", 40)],
)  # fmt: skip
def test_devices_by_size_or_name(text: str, gib: float) -> None:
    assert device_memory(text) == gib * GIB


@pytest.mark.parametrize("text", ["", "big", "24", "3091"])
def test_unknown_devices_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--gpu"):
        device_memory(text)


def test_memory_here_is_a_number_of_bytes(settings: Callable[..., Resolved]) -> None:
    assert GIB / 4 < memory.usable(here(settings("llama"))) < 2**50
    assert GIB / 4 < memory.usable(CPU) < 2**50
    assert memory.usable(replace(CPU, kind="cuda", memory=24 * GIB)) == 24 * GIB


def test_code_that_cannot_be_traced_is_estimated_by_rule(tmp_path: Path, clean_notices: None) -> None:
    from tunesmith import notices

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LlamaForCausalLM, "forward", lambda *_, **__: {}["shape"])
        resolved = resolved_from(model_name_or_path=str(deep_model("llama", tmp_path)), train_data="x", use_lora=False)
        found = estimate(resolved, choose_precision(resolved, here(resolved)), BatchShape(2, 64, 64), cuda=False)
    assert found.activations > 2 * 64 * 64 * 17 * 4 * 5
    assert any("rule of thumb" in notice for notice in notices.collected())


# several processes ----------------------------------------------------------------------------------------------------

BFLOAT16 = Precision("bfloat16", "test")


def parts(resolved: Resolved, precision: Precision, strategy: str, num_processes: int) -> tuple[float, float, float]:
    """Weights, gradients and states in bytes for each parameter."""
    found = estimate(resolved, precision, SMALL, cuda=False, num_processes=num_processes, strategy=strategy)
    return tuple(value / found.parameters for value in (found.weights, found.gradients, found.optimizer))


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("ddp", (4, 8, 8)),
        ("fsdp2", (1, 1, 2)),
        ("zero1", (2, 2, 3)),
        ("zero2", (2, 0.5, 3)),
        ("zero3", (0.5, 0.5, 3)),
        ("zero3-offload-cpu", (0, 0, 0)),
        ("zero3-offload-nvme", (0, 0, 0)),
    ],
)
def test_four_processes_share_as_the_formulas_say(
    strategy: str, expected: tuple[float, ...], settings: Callable[..., Resolved]
) -> None:
    """Full fine-tuning with AdamW in bfloat16: 16 bytes a weight, of which each strategy leaves another share."""
    assert parts(settings("mistral", use_lora=False), BFLOAT16, strategy, 4) == pytest.approx(expected, rel=1e-4)


def test_one_process_shares_with_nobody(settings: Callable[..., Resolved]) -> None:
    resolved = settings("mistral", use_lora=False)
    alone = {name: estimate(resolved, FLOAT32, SMALL, cuda=True, strategy=name) for name in ("ddp", "fsdp2", "zero3")}
    assert alone["ddp"] == alone["fsdp2"]
    assert alone["zero3"].optimizer == alone["ddp"].optimizer + alone["ddp"].weights


def test_adapters_leave_the_base_to_be_spread(settings: Callable[..., Resolved]) -> None:
    resolved = settings("mistral", **LORA)
    copies, spread = (
        estimate(resolved, BFLOAT16, SMALL, cuda=True, num_processes=8, strategy=name) for name in ("zero1", "zero3")
    )
    assert spread.weights == copies.weights // 8
    assert spread.optimizer == copies.optimizer == copies.trainable * 12 // 8


def test_what_is_whole_while_it_is_used_is_counted(settings: Callable[..., Resolved]) -> None:
    resolved = settings("mistral", use_lora=False)
    found = {
        name: estimate(resolved, BFLOAT16, SMALL, cuda=True, num_processes=4, strategy=name)
        for name in ("fsdp2", "zero2", "zero3")
    }
    # two layers and the parts outside of them are all that this model has
    gathered = 2 * found["zero2"].parameters
    for name in ("fsdp2", "zero3"):
        one = found[name]
        assert one.overhead >= CUDA_CONTEXT + gathered
        assert one.peak > one.weights + one.optimizer + gathered
    assert found["zero2"].overhead < CUDA_CONTEXT + gathered


def test_strategy_of_the_run_is_the_default(settings: Callable[..., Resolved]) -> None:
    resolved = settings("mistral", use_lora=False, strategy="zero2")
    assert estimate(resolved, FLOAT32, SMALL, cuda=True, num_processes=2) == estimate(
        settings("mistral", use_lora=False), FLOAT32, SMALL, cuda=True, num_processes=2, strategy="zero2"
    )
    with pytest.raises(ConfigError, match="known are ddp"):
        estimate(resolved, FLOAT32, SMALL, cuda=True, strategy="zero4")
