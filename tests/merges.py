"""Runs to merge, what their merges are asked, and how far their answers are off."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tunesmith.config.resolve import Resolved
from tunesmith.export import proof
from tunesmith.export.asked import ask
from tunesmith.export.merge import write_merged
from tunesmith.export.save import save_model
from tunesmith.model.device import here
from tunesmith.model.load import load_model, model_spec
from tunesmith.model.precision import choose_precision
from tunesmith.model.tokenizer import load_tokenizer

Settings = Callable[..., Resolved]


def random_questions(vocabulary: int = 96) -> proof.Questions:
    generator = torch.Generator().manual_seed(5)
    prompts = [torch.randint(4, vocabulary - 6, (40,), generator=generator).tolist() for _ in range(25)]
    return proof.Questions(prompts, [str(number) for number in range(25)], "random tokens", [2], max_new_tokens=4)


def run_folder(settings: Settings, folder: Path, **values: Any) -> Path:
    """A run whose adapter moved as far as a short training moves it."""
    resolved = settings(**values)
    precision = choose_precision(resolved, here(resolved))
    torch.manual_seed(0)
    model = load_model(resolved, precision, here(resolved))
    for name, parameter in model.named_parameters():
        if "lora_B" in name and parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.02)
        elif parameter.requires_grad and "lora_" not in name:
            parameter.data += 0.01 * torch.randn_like(parameter)
    save_model(model, load_tokenizer(resolved.config.model), folder, resolved.config.model)
    record = {"settings": resolved.values(), "origins": resolved.origins}
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def compared(run: Path, folder: Path, questions: proof.Questions, dtype: Any = "float32", base: Any = "trained"):
    """How far the answers of a merge are off, without a new process, which costs seconds; the noise, and the ledger."""
    folder.mkdir()
    how = model_spec(run, device_map="cpu")
    asked = ask(how, base, dtype, questions, folder)
    merged = folder / "merged"
    merged.mkdir()
    ledger = write_merged(how, merged, dtype=dtype, base=base, max_shard_size="2GB", held=asked.held)
    return proof.difference(asked.reading, proof.read_merged(merged, folder)), asked.noise, ledger


def plain_adapter(model: Any, run: Path, base: Path) -> Path:
    """The adapter, moved from its start, as PEFT saves it."""
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(run)
    values = json.loads((run / "adapter_config.json").read_text()) | {"base_model_name_or_path": str(base)}
    (run / "adapter_config.json").write_text(json.dumps(values))
    for file in base.glob("token*"):
        (run / file.name).write_bytes(file.read_bytes())
    return run
