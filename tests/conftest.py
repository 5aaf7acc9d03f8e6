"""What every test may ask for: real data, real tokenizers and a small real model, found outside the project."""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import hypothesis
import pytest

import order
import own_warnings
import ready_python
from tunesmith.train import garbage

own_warnings.install()
# commands are printed by their plain names
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TUNESMITH_CACHE"] = tempfile.mkdtemp(prefix="tunesmith-tests-")  # nobody's own cache is read or filled
atexit.register(shutil.rmtree, os.environ["TUNESMITH_CACHE"], ignore_errors=True)

ready_python.prepare()

# The same examples at every run, and no clock: a slow machine must not fail a test. HYPOTHESIS_RANDOM=1 explores.
hypothesis.settings.register_profile(
    "steady",
    deadline=None,
    derandomize=os.environ.get("HYPOTHESIS_RANDOM") != "1",
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.function_scoped_fixture],
)
hypothesis.settings.load_profile("steady")

PROJECT = Path(__file__).resolve().parents[1]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """What is imported is not imported or searched again: to look for garbage among the half a million objects of the
    libraries takes a third of a second, and a merge's proof starts a Python of its own, which takes ten."""
    if "trl" in sys.modules:
        garbage.freeze()
        freeze_more()
    proof = sys.modules.get("tunesmith.export.proof")
    if proof is not None:  # the process that opens a merged model has its imports behind it
        proof.sys = SimpleNamespace(executable=ready_python.python())


_imported = 0
"""Modules that there were when objects were last frozen."""


def freeze_more() -> None:
    """Freeze what was imported since: matplotlib, DeepSpeed or a kind of model alone are tens of thousands of objects,
    which every training in this process would search again."""
    global _imported
    if len(sys.modules) >= _imported + 20:
        gc.collect()
        gc.freeze()
        _imported = len(sys.modules)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order.slowest_first(items)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real test data: ``TUNESMITH_DATA``, else ``../shared/data`` beside the project."""
    folder = Path(os.environ.get("TUNESMITH_DATA") or PROJECT.parent / "shared" / "data")
    if not (folder / "README.md").is_file():
        reason = f"no real test data at {folder}; set TUNESMITH_DATA to its folder"
        if os.environ.get("CI", "").lower() in ("1", "true"):
            pytest.fail(reason)
        pytest.skip(reason)
    return folder


@pytest.fixture(scope="session")
def stories_model(real_data: Path) -> Path:
    """Folder of a small real pretrained model of the Llama architecture, with its tokenizer."""
    return real_data / "model_stories260k" / "hf"


@pytest.fixture(scope="session")
def mistral_tokenizer(real_data: Path):
    """The Mistral v3 tokenizer with its [INST] template."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(real_data / "tok_mistral" / "hf_v3")


@pytest.fixture(scope="session")
def gpt2_tokenizer(real_data: Path):
    """The GPT-2 tokenizer: no begin token of its own, no pad token, no template."""
    from transformers import GPT2Tokenizer

    return GPT2Tokenizer.from_pretrained(real_data / "tok_gpt2" / "hf")


@pytest.fixture(scope="session")
def stories_tokenizer(stories_model: Path):
    """The tokenizer of ``stories_model``: begin and end token, no pad token, no template."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(stories_model)


@pytest.fixture(params=["mistral", "gpt2", "stories"])
def tokenizer(request: pytest.FixtureRequest):
    """Each of the three real tokenizers in turn."""
    return request.getfixturevalue(f"{request.param}_tokenizer")
