"""Private names of libraries are still there and still asked: a renamed hook must not stop acting in silence."""

from __future__ import annotations

import logging
import re
import tomllib
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from transformers import AutoModelForCausalLM, LlamaConfig, MptConfig, PreTrainedModel, T5Config
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from tunesmith.config.schema import QuantizationSection
from tunesmith.errors import ModelError
from tunesmith.model import internals, quantize
from tunesmith.model.precision import Precision

PROJECT = Path(__file__).resolve().parents[3]
LIBRARIES = ("transformers", "trl", "peft", "accelerate", "datasets", "bitsandbytes")
TINY = {"num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "vocab_size": 16}


@pytest.fixture
def llama() -> PreTrainedModel:
    return AutoModelForCausalLM.from_config(LlamaConfig(**TINY), attn_implementation="sdpa")


def test_every_library_of_whom_private_names_are_used_has_an_upper_bound() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    bounds = {found.name: str(found.specifier) for found in map(Requirement, project["dependencies"])}
    assert [name for name in LIBRARIES if "<" not in bounds[name]] == []


def test_private_names_of_models_stand_in_one_file_and_are_listed() -> None:
    table = (PROJECT / "docs/decisions/private_api.md").read_text()
    pattern = re.compile(r"\._(?:attn|supports|can_set|keep_in|model_mapping|no_split)\w*")
    files = {
        path.name: pattern.findall(path.read_text())
        for path in (PROJECT / "src/tunesmith").rglob("*.py")
        if pattern.search(path.read_text())
    }
    assert list(files) == ["internals.py"]
    assert [name for name in files["internals.py"] if name.removesuffix("_strict").lstrip(".") not in table] == []


def test_the_attention_of_a_model_follows_its_setter(llama: PreTrainedModel) -> None:
    assert internals.attention_of(llama) == "sdpa"
    llama.set_attn_implementation("eager")
    assert internals.attention_of(llama) == "eager"


def test_which_architectures_have_sdpa() -> None:
    assert internals.supports_sdpa(LlamaConfig())
    assert not internals.supports_sdpa(MptConfig())
    assert internals.supports_sdpa(T5Config())  # no causal language model: whoever loads it decides


def test_an_architecture_that_takes_attention_functions_calls_a_registered_one(llama: PreTrainedModel) -> None:
    from transformers import AttentionInterface

    calls = []

    def counted(*arguments, **keywords):
        calls.append(1)
        return sdpa_attention_forward(*arguments, **keywords)

    assert internals.takes_attention_functions(llama)
    AttentionInterface.register("counted_sdpa", counted)
    llama.set_attn_implementation("counted_sdpa")
    llama(input_ids=torch.tensor([[1, 2, 3]]))
    assert len(calls) == TINY["num_hidden_layers"]
    mpt = AutoModelForCausalLM.from_config(MptConfig(d_model=16, n_heads=2, n_layers=1, vocab_size=16))
    assert not internals.takes_attention_functions(mpt)


def test_weights_that_stay_in_float32_are_known(llama: PreTrainedModel) -> None:
    assert not internals.names_kept_in_float32(llama, torch.float16)("model.layers.0.mlp.gate.weight")
    llama._keep_in_fp32_modules = {"mlp.gate"}
    assert internals.names_kept_in_float32(llama, torch.float16)("model.layers.0.mlp.gate.weight")
    assert not internals.names_kept_in_float32(llama, torch.bfloat16)("model.layers.0.mlp.gate.weight")
    llama._keep_in_fp32_modules_strict = {"mlp.gate"}
    assert internals.names_kept_in_float32(llama, torch.bfloat16)("model.layers.0.mlp.gate.weight")
    assert not internals.names_kept_in_float32(llama, torch.float32)("model.layers.0.mlp.gate.weight")


def test_bitsandbytes_asks_the_switch_that_keeps_one_4bit_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    from bitsandbytes.nn import Linear4bit

    class Watched(Linear4bit):
        asked = 0

        @property
        def support_avx512bf16_for_cpu(self) -> bool:
            type(self).asked += 1
            return self.held

        @support_avx512bf16_for_cpu.setter
        def support_avx512bf16_for_cpu(self, value: bool) -> None:
            self.held = value

    layer = Watched(64, 64, bias=False, compute_dtype=torch.float32).to("cpu").eval()
    layer.support_avx512bf16_for_cpu = True
    quantize.keep_one_4bit_kernel(torch.nn.Sequential(layer))
    assert layer.held is False
    Watched.asked = 0
    layer(torch.ones(1, 64))
    assert Watched.asked == 1


def test_a_bitsandbytes_without_the_switch_is_refused() -> None:
    from bitsandbytes.nn import Linear4bit

    layer = Linear4bit(64, 64)
    del layer.support_avx512bf16_for_cpu
    with pytest.raises(ModelError, match="4-bit kernel"):
        quantize.keep_one_4bit_kernel(torch.nn.Sequential(layer))


def test_bitsandbytes_logs_its_casts_where_we_quiet_them(caplog: pytest.LogCaptureFixture, clean_notices: None) -> None:
    from bitsandbytes.nn import Linear8bitLt

    logger = logging.getLogger("bitsandbytes.autograd._functions")
    before = logger.level
    layer = Linear8bitLt(64, 64, bias=False, has_fp16_weights=False).to("cpu").eval()
    try:
        logger.setLevel(logging.WARNING)  # its own: the command line quiets the package's
        layer(torch.ones(1, 64))
        assert "will be cast" in caplog.text
        caplog.clear()
        quantize.quantization_config(QuantizationSection(load_in_8bit=True), Precision("float32", "test"))
        layer(torch.ones(1, 64))
        assert caplog.text == ""
    finally:
        logger.setLevel(before)
