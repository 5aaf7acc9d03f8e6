"""A checkpoint that is quantized already is refused with what to do, and that works."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from tiny_models import build, configure, write_tokenizer
from tunesmith.config.schema import ModelSection
from tunesmith.errors import ModelError
from tunesmith.model.whole import open_checked

FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic", "fmt": "e4m3"}


def write_fp8(folder: Path) -> dict[str, torch.Tensor]:
    """A small model as DeepSeek and Qwen publish theirs: projections in 8 bits, with a scale for each block."""
    build("mistral").save_pretrained(folder)
    write_tokenizer(folder, bos_token="<s>", eos_token="</s>")
    weights = load_file(folder / "model.safetensors")
    stored = {}
    for name, weight in weights.items():
        stored[name] = weight.bfloat16()
        if "proj" in name:
            scale = weight.abs().max() / 448
            stored[name] = (weight / scale).to(torch.float8_e4m3fn)
            stored[name.replace(".weight", ".weight_scale_inv")] = scale.reshape(1, 1)
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    configure(folder, quantization_config=FP8)
    return weights


def test_fp8_is_refused_with_a_command_that_writes_it_in_16_bits(tmp_path: Path, monkeypatch) -> None:
    folder = tmp_path / "model"
    weights = write_fp8(folder)
    with pytest.raises(ModelError, match=r"quantized format already \(fp8\)") as caught:
        open_checked(ModelSection(model_name_or_path=str(folder)))
    assert "\n" not in caught.value.line()
    command = shlex.split(str(caught.value.remedy).partition(": ")[2])
    assert command[:2] == ["python", "-c"]
    monkeypatch.chdir(tmp_path)
    exec(command[2], {})
    open_checked(ModelSection(model_name_or_path=str(tmp_path / "model-bf16")))
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model-bf16").state_dict()
    assert all((plain[name].float() - weight).abs().max() < 0.01 for name, weight in weights.items())


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"quant_method": "mxfp4"}, "Mxfp4Config"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "load_in_4bit"),
        ({"quant_method": "gptq", "bits": 4}, "unquantized original"),
        ({"load_in_8bit": True}, "load_in_8bit"),
    ],
)
def test_every_format_is_refused_in_one_line(told: dict[str, Any], words: str, models_folder: Path, tmp_path) -> None:
    folder = tmp_path / "model"
    AutoConfig.from_pretrained(models_folder / "mistral").save_pretrained(folder)
    (folder / "model.safetensors").write_bytes((models_folder / "mistral" / "model.safetensors").read_bytes())
    configure(folder, quantization_config=told)
    with pytest.raises(ModelError, match="quantized format already") as caught:
        open_checked(ModelSection(model_name_or_path=str(folder)))
    assert words in str(caught.value.remedy)
    assert caught.value.exit_code == 4
