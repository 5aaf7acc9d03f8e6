"""A small pretrained model for the tests of evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


@pytest.fixture(scope="session")
def stories(real_data: Path) -> tuple[Any, Any]:
    """The small pretrained story model in float32, and its tokenizer."""
    folder = real_data / "model_stories260k" / "hf"
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), AutoTokenizer.from_pretrained(folder)
