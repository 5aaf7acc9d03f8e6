"""Small real models for the tests of models: random weights, saved as anyone's model is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tiny_models import VOCABULARY, build, write_tokenizer
from tunesmith import notices
from tunesmith.config.draft import DEFAULT
from tunesmith.config.permissions import permissions_of
from tunesmith.config.resolve import Resolved, from_values


@pytest.fixture
def clean_notices() -> None:
    """Nothing has been said yet."""
    notices.clear()


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., None]:
    """``make_tokenizer(folder, **special)``, see ``write_tokenizer``."""
    return write_tokenizer


@pytest.fixture(scope="session")
def models_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the models ``llama`` (tied head), ``mistral`` (own head) and ``gpt2``, each with its tokenizer."""
    home = tmp_path_factory.mktemp("models")
    for kind in ("llama", "mistral", "gpt2"):
        build(kind).save_pretrained(home / kind)
        write_tokenizer(home / kind, bos_token="<s>", eos_token="</s>")
    return home


@pytest.fixture
def settings(models_folder: Path) -> Callable[..., Resolved]:
    """Resolved settings for one of the small models; keywords are flat names, ``written`` marks what somebody wrote."""

    def make(kind: str = "mistral", written: tuple[str, ...] = (), **values: Any) -> Resolved:
        paths = from_values({"model.model_name_or_path": "x"}).origins
        full = {next(path for path in paths if path.endswith(f".{name}")): value for name, value in values.items()}
        full = {"model.model_name_or_path": str(models_folder / kind)} | full
        origins = {path: ("config.py:3" if path.rpartition(".")[2] in written else DEFAULT) for path in full}
        return from_values(full, origins, permissions=permissions_of(full))

    return make


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    """Two rows of ids with labels, [2, 12]."""
    ids = torch.randint(4, VOCABULARY - 2, (2, 12), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "labels": ids.clone()}
