"""A small pretrained model for the tests of evaluation."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tunesmith.data.nli import nli_text


@pytest.fixture(scope="session")
def stories(real_data: Path) -> tuple[Any, Any]:
    """The small pretrained story model in float32, and its tokenizer."""
    folder = real_data / "model_stories260k" / "hf"
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), AutoTokenizer.from_pretrained(folder)


@pytest.fixture
def esnli(real_data: Path, tmp_path: Path) -> Path:
    """24 real rows as fine-tuning texts."""
    rows = []
    with (real_data / "nli_esnli" / "esnli_dev.csv").open(encoding="utf-8", newline="") as stream:
        for number, values in enumerate(csv.DictReader(stream)):
            label = int(values["label"] == "entailment")
            text = nli_text(values["premise"], values["hypothesis"], values["explanation_1"][:40], label)
            rows.append({"text": text, "id": number})
            if len(rows) == 24:
                break
    path = tmp_path / "esnli.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
