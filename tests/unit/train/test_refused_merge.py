"""A merge that is refused at the end of a run costs the merged model and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from helpers import run_training, story_rows
from tunesmith.errors import NumericsError
from tunesmith.evaluate.subject import find_subject
from tunesmith.export import proof


def test_refused_merge_leaves_a_finished_run(
    stories_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proof, "read_in_a_new_process", proof.read_merged)
    monkeypatch.setattr(proof, "problems_of", lambda use, limits: ["it answers in another language"])
    with pytest.raises(NumericsError, match="another language") as caught:
        run_training(tmp_path, stories_model, story_rows(6), save_merged_model=True, max_steps=2, batching="padded")
    assert caught.value.exit_code == 5
    run = tmp_path / "run"
    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "finished"
    assert "another language" in record["merge_refused"]
    assert record["adapter"]["folder"] == "lora_weights"
    for name in ("README.md", "curves.png", "lora_weights/adapter_model.safetensors", "lora_weights/README.md"):
        assert (run / name).is_file(), name
    assert not list(run.glob("*.safetensors"))
    assert not (run / ".merged").exists()
    subject = find_subject(run)
    with torch.no_grad():
        assert torch.isfinite(subject.load().model(torch.tensor([[5, 6, 7]])).logits).all()
