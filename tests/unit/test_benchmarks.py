"""The comparison of training steps at a tiny shape: every side trains the same, and the tables are written."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks import (
    gpu,
    gpu_side,
    loops,
    peer_side,
    peers,
    prepare,
    real_use,
    record,
    start,
    start_side,
    training,
    training_side,
)
from benchmarks.real_size import mistral_7b
from benchmarks.turns import Turn, alternating, take
from datasets import Dataset
from peft import PeftModel
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from tunesmith.cli.main import main
from tunesmith.model.blocks import read_across_rows
from tunesmith.model.source import locate


def test_all_sides_train_the_same_and_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = locate("nano-mistral", None)
    job = training.prepare(tmp_path, "synthetic", 2, tokenizer, "tiny", group_by_prefix=True)
    assert len(job["batches"]) == 2
    found: dict[str, list[dict[str, Any]]] = {}
    for side in ("loop unpadded", "loop padded", "tunesmith", "Trainer", "TRL", "TRL, labelled positions only"):
        given, measured = tmp_path / "job.json", tmp_path / "result.json"
        given.write_text(json.dumps(job | {"side": side}))
        monkeypatch.setattr(sys, "argv", ["side", str(given), str(measured)])
        training_side.main()
        found[side] = [json.loads(measured.read_text())]
        assert found[side][0]["peak"] > 2**20
        assert len(found[side][0]["seconds"]) == 1
    training.check_losses(found)
    result = {
        "work": "synthetic", "method": "LoRA", "steps": 2, "rounds": 1, "scale": "tiny", "tokens_a_step": 10.0,
        "batch_size": 4,
        "sides": {side: training.summary(turns) for side, turns in found.items()},
    }  # fmt: skip
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{record.BEGIN}\nold\n{record.END}\nafter\n")
    for name, path in {"RESULTS": "RESULTS.md", "KEPT": "results.json", "README": "README.md"}.items():
        monkeypatch.setattr(record, name, tmp_path / path)
    record.publish("Another comparison", [["| other |"]], "Somehow.", {})
    record.publish("Training steps: synthetic", [training.table(result)], training.how(result), result, in_readme=True)
    assert "| other |" in (tmp_path / "RESULTS.md").read_text()
    assert "| loop unpadded |" in (tmp_path / "RESULTS.md").read_text()
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "| tunesmith |" in text
    assert "old" not in text


@pytest.mark.parametrize("method", ["QLoRA", "full"])
def test_other_ways_of_training_are_the_same_on_all_sides(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_across_rows()  # else the loop and TRL train on other numbers, where bitsandbytes reads narrow rows wrongly
    job = training.prepare(tmp_path, "synthetic", 2, locate("nano-mistral", None), "tiny", method=method)
    found = {}
    for side in ("loop unpadded", "tunesmith", "TRL"):
        given, measured = tmp_path / "job.json", tmp_path / "result.json"
        given.write_text(json.dumps(job | {"side": side}))
        monkeypatch.setattr(sys, "argv", ["side", str(given), str(measured)])
        training_side.main()
        found[side] = [json.loads(measured.read_text())]
    training.check_losses(found)


def test_a_peer_gets_the_tokens_and_the_adapter_of_all_sides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' Trainer stands for one, by the interpreter of these tests."""
    job = training.prepare(tmp_path, "synthetic", 2, locate("nano-mistral", None), "tiny")
    job |= {"adapter": training._draw_adapter(job), "lora": training_side.LORA}

    def trained(job: dict[str, Any], folder: Path) -> list[float]:
        model = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32), job["adapter"], is_trainable=True
        )
        arguments = TrainingArguments(**training_side.arguments(job) | {"output_dir": str(folder)})
        rows = Dataset.from_list(peer_side._rows(job))
        trainer = Trainer(model=model, args=arguments, train_dataset=rows, data_collator=loops.padded)
        trainer.train()
        return [line["loss"] for line in trainer.state.log_history if "loss" in line]

    found = {}
    monkeypatch.setitem(peer_side.SIDES, "a peer", trained)
    for side, run in {"loop unpadded": training_side.main, "a peer": peer_side.main}.items():
        given, measured = tmp_path / "job.json", tmp_path / "result.json"
        given.write_text(json.dumps(job | {"side": side}))
        monkeypatch.setattr(sys, "argv", ["side", str(given), str(measured)])
        run()
        found[side] = [json.loads(measured.read_text())]
        assert found[side][0]["peak"] > 2**20
    training.check_losses(found)


def test_a_peer_that_is_not_there_is_named_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "ENVIRONMENTS", tmp_path)
    assert peers.installed() == []
    assert set(peers.PEERS) == set(peer_side.SIDES)
    assert peers.python_of("TRL") == sys.executable
    assert peers.versions(["TRL"]) == ""
    assert "axolotl 0.19" in peers.versions(["TRL", "Axolotl"])
    with pytest.raises(SystemExit, match="python -m benchmarks --install Axolotl"):
        training.compare("synthetic", ["Axolotl"], rounds=1, steps=2, tokenizer=locate("nano-mistral", None))
    told = tmp_path / "axolotl" / peers.INSTALLED
    told.parent.mkdir()
    told.write_text("torch==2.13.0\naxolotl==0.1\n")  # of an earlier version
    assert peers.installed() == []
    told.write_text(peers._said("Axolotl"))
    assert peers.installed() == ["Axolotl"]
    assert peers.python_of("Axolotl") == str(tmp_path / "axolotl" / "bin" / "python")
    with pytest.raises(SystemExit, match="LoRA alone"):
        training.compare("synthetic", ["Axolotl"], rounds=1, steps=2, tokenizer="", method="full")


def test_turns_that_have_ended_are_not_taken_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []

    def turn(job: dict[str, Any]) -> dict[str, Any]:
        taken.append(job["side"])
        return {"losses": [1.0], "seconds": [1.0], "peak": 1}

    monkeypatch.setattr(training, "run", turn)
    for _ in range(2):
        training.compare(
            "synthetic", ["one", "two"], rounds=1, steps=1, tokenizer=locate("nano-mistral", None), scale="tiny",
            kept=tmp_path / "turns",
        )  # fmt: skip
    assert taken == ["one", "two"]


def test_turns_alternate_and_are_processes_of_their_own(tmp_path: Path) -> None:
    assert [side for _, side in alternating(["a", "b"], 2)] == ["a", "b", "b", "a"]
    with pytest.raises(SystemExit, match=r"mine ended with 1:(.|\n)*No module named"):
        take("benchmarks.nothing", {"folder": str(tmp_path), "side": "mine"})


def test_sides_that_train_otherwise_are_not_compared() -> None:
    with pytest.raises(SystemExit, match="two has other losses"):
        training.check_losses({"one": [{"losses": [1.0, 2.0]}], "two": [{"losses": [1.0, 2.001]}]})


def test_first_steps_are_compared_from_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one process; the numbers are those of turns after each other, so only their shape is looked at."""
    job = training.prepare(tmp_path, "synthetic", 2, locate("nano-mistral", None), "tiny", group_by_prefix=False)
    found = {}
    for side in (training.OURS, training.MARK):
        given, measured = tmp_path / "job.json", tmp_path / "result.json"
        given.write_text(json.dumps(job | {"side": side}))
        monkeypatch.setattr(sys, "argv", ["side", str(given), str(measured)])
        start_side.main()
        found[side] = json.loads(measured.read_text())
        assert found[side]["first"]["cpu"] < found[side]["last"]["cpu"] <= start_side.cpu_seconds()
    training.check_losses({side: [turn] for side, turn in found.items()})

    monkeypatch.setattr(start, "prepare", lambda *_, **__: job)

    def take(_module: str, given: dict[str, Any]) -> Turn:
        marks = {"first": {"cpu": 10.0 if given["side"] == training.MARK else 11.0, "at": 112.0}}
        measured = marks | {"losses": found[given["side"]]["losses"], "last": {"cpu": 20.0, "at": 118.0}}
        return Turn(measured, began=100.0, ended=120.0, cpu=21.0)

    monkeypatch.setattr(start, "take", take)
    result = start.compare(
        "synthetic", list(found), rounds=2, steps=2, tokenizer="", scale="tiny", write=lambda _: None
    )
    lines = start.table(result)
    assert lines[2] == "| tunesmith | 11.0 (11.0 - 11.0) | 1.10x | 12.0 | 1.0 | 2.0 | 21.0 |"
    assert lines[3].startswith("| loop unpadded | 10.0 (10.0 - 10.0) | 1.00x |")
    assert "2 turns" in start.how(result)


def test_preparation_is_shown_as_rows_grow() -> None:
    turn = {"seconds": 1.0, "cpu_seconds": 0.9, "peak_mib": 800.0}
    lines = prepare.table_of_growth({"1000": {"made": turn, "taken": turn}})
    assert lines[2] == "| 1,000 | 1.00 | 0.90 | 800 | 1.00 | 0.90 | 800 |"
    side = {"rows_per_second": 9000.0, "spread": [8000.0, 9500.0], "rows_per_cpu_second": 9500.0, "peak_mib": 700.0}
    compared = {
        "rows": 30000, "tokens": 900, "rounds": 3, prepare.OURS: side, prepare.THEIRS: side,
        "ratio_rows_per_second": 2.5, "ratio_rows_per_cpu_second": 2.6,
    }  # fmt: skip
    assert prepare.table(compared)[-1] == "| tunesmith is faster | 2.50x | 2.60x | |"


def test_a_model_of_real_size_is_used_by_commands_that_work(
    tmp_path: Path, stories_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Here with a small one and in this process: settings and arguments are those of the large one."""

    def run(command: list[str], log: Path) -> tuple[float, float, int]:
        assert main(command[3:]) == 0, command
        assert real_use.own_memory(os.getpid()) > 2**20
        return 1.0, 2.0, 3 * 2**30

    monkeypatch.setattr(real_use, "measured", run)
    real_use.main([str(stories_model), "--work", str(tmp_path / "work")])
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[0] for line in table] == [
        "| command", "| check", "| two steps and save", "| resume and one step", "| merge with proof"
    ]  # fmt: skip
    assert (tmp_path / "work" / "merged" / "proof.json").is_file()


def test_steps_of_a_small_model_where_there_is_no_gpu() -> None:
    """Every side and way of the comparison on GPUs, with float32 on the CPU, in this process."""
    result = gpu.compare([48], rounds=1, steps=2, layers=2, tokens=96, turn=gpu_side.measure, write=lambda _: None)
    assert list(result["cells"]) == ["LoRA, 48 tokens", "QLoRA NF4, 48 tokens"]
    lines = gpu.table(result)
    assert len(lines) == 2 + 4
    assert all(found["tokens_a_second"] > 0 for sides in result["cells"].values() for found in sides.values())
    assert "no recomputation" in gpu.how(result)


def test_mfu_counts_what_training_needs() -> None:
    """Of Mistral-7B about four operations for each of its 7.1 billion numbers that a token is multiplied with."""
    config = mistral_7b()
    needed = gpu.flops_a_token(config, 2048)
    assert 7.0e9 < gpu._matrices(config) < 7.2e9
    assert 4 * 7.1e9 < needed < 4.4 * 7.2e9
    found = gpu._summary([{"seconds": [1.0, 1.0], "peak": 2**30}], 20_000, needed, "NVIDIA H100 80GB HBM3")
    assert found["mfu"] == pytest.approx(20_000 * needed / 989.4e12)
    assert gpu._summary([{"seconds": [1.0], "peak": 1}], 1, needed, "CPU")["mfu"] is None
