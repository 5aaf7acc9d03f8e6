"""Dockerfile, requirements, ignore list and compose file agree with the project and with each other."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import yaml

PROJECT = Path(__file__).resolve().parents[3]
DOCUMENT_2 = """torch transformers peft trl datasets accelerate bitsandbytes sentencepiece protobuf wandb""".split()


def names_of(lines: list[str]) -> set[str]:
    return {re.split(r"[<>=\[ ;]", line)[0].lower() for line in lines if line and not line.startswith(("#", "-"))}


def test_the_image_installs_what_document_2_lists_and_what_tunesmith_needs():
    requirements = names_of((PROJECT / "requirements.txt").read_text().splitlines())
    needed = names_of(tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["dependencies"])
    assert needed <= requirements
    assert set(DOCUMENT_2) <= requirements
    locked = names_of((PROJECT / "constraints.txt").read_text().splitlines())
    assert requirements <= locked  # every version is that of the lock
    assert len(requirements) >= 20


def test_the_dockerfile_copies_only_what_the_ignore_list_lets_through():
    text = (PROJECT / "Dockerfile").read_text()
    copied = {word for line in re.findall(r"^COPY (.*)$", text, flags=re.MULTILINE) for word in line.split()[:-1]}
    allowed = {
        line[1:] for line in (PROJECT / ".dockerignore").read_text().splitlines() if re.fullmatch(r"![\w.]+", line)
    }
    assert copied == allowed
    assert all((PROJECT / name).exists() for name in copied)
    ignored = (PROJECT / ".dockerignore").read_text().split()
    assert "*" in ignored
    assert "**/.env" in ignored
    assert re.search(r"^ARG BASE_IMAGE=nvidia/cuda:", text, flags=re.MULTILINE)
    assert text.index("USER trainer") < text.index("CMD")


def test_compose_trains_and_shows_the_curves():
    compose = yaml.safe_load((PROJECT / "compose.yaml").read_text())
    train, board = compose["services"]["train"], compose["services"]["tensorboard"]
    assert train["image"] == board["image"] == "mistral-nli-ft"
    assert train["command"][:2] == ["python", "train/train_sft.py"]
    assert train["command"][-2:] == ["--report_to", "tensorboard"]
    assert board["command"][0] == "tensorboard"
    # the run folder is written below the very folder that TensorBoard reads
    (models,) = [mount for mount in train["volumes"] if mount.endswith("/recipes/nli_cot/models")]
    assert models.rpartition(":")[0] + ":/models:ro" in board["volumes"]
    for secret in ("HF_TOKEN", "WANDB_API_KEY"):
        assert train["environment"][secret] is None  # by name, the value stays with the shell
