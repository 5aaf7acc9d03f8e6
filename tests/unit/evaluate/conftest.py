"""Real data made by others, and a small pretrained model, for the tests of evaluation."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real test data; tests that need it are skipped where it is not there."""
    folder = Path(os.environ.get("TUNESMITH_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("the real test data is not here (TUNESMITH_DATA)")
    return folder


@pytest.fixture(scope="session")
def stories(shared_data: Path) -> tuple[Any, Any]:
    """The small pretrained story model in float32, and its tokenizer."""
    folder = shared_data / "model_stories260k" / "hf"
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), AutoTokenizer.from_pretrained(folder)
