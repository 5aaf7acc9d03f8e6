"""A file of chats, the embedded model and what ``init --data`` proposes: no other edit, and held-out rows are answered.

That a table of texts and labels comes as far is README's walk, see ``tests/docs/test_readme.py``.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from tunesmith import notices
from tunesmith.cli.main import main

SOUNDS = {"cat": "meow", "dog": "woof", "cow": "moo", "duck": "quack", "pig": "oink", "sheep": "baa"}
ASKED = (
    "What does the {} say?", "Tell me the sound of a {}.", "Which noise does a {} make?", "How does my {} sound?",
    "What would a {} tell us?", "Do you know what {}s say?", "I hear a {}. What does it say?",
)  # fmt: skip


def chats() -> list[dict[str, list[dict[str, str]]]]:
    """40 questions, each once; what a held-out one asks was answered in other words."""
    pairs = [
        (asked.format(animal), f"The {animal} says {sound}.") for asked in ASKED for animal, sound in SOUNDS.items()
    ]
    random.Random(3).shuffle(pairs)
    return [
        {"dialogue": [{"from": "human", "value": asked}, {"from": "gpt", "value": said}]} for asked, said in pairs[:40]
    ]


def test_forty_chats_reach_a_measured_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    notices.clear()
    Path("chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chats()), encoding="utf-8")
    assert main(["init", "--data", "chats.jsonl", "first", "--yes"]) == 0
    monkeypatch.chdir("first")
    capsys.readouterr()
    assert main(["train", "config.yaml"]) == 0
    printed = capsys.readouterr()
    assert printed.out == "run\n"
    assert printed.err.endswith(
        "next\n  tunesmith evaluate run --baseline\n  tunesmith merge run run-merged\n  tunesmith chat run\n"
        "  tunesmith report run\n"
    )
    assert main(["evaluate", "run", "--json"]) == 0
    metrics = json.loads(capsys.readouterr().out)
    assert (metrics["task"], metrics["num_examples"]) == ("exact", 8)
    assert metrics["exact_match"] > 0.9
