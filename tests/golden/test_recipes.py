"""The first steps of each recipe's own configuration, against numbers that were written down.

A change that is not meant to change numbers must leave these as they are. ``make golden`` writes them anew; the reason
belongs into the commit that carries the new file.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tunesmith import notices
from tunesmith.cli import init
from tunesmith.cli.main import main

GOLDEN = Path(__file__).with_name("recipes.json")
FIGURES = ("step", "epoch", "loss", "grad_norm", "learning_rate", "eval_loss")

COMMON = [
    "--max_steps=4",
    "--per_device_train_batch_size=2",
    "--gradient_accumulation_steps=2",
    "--logging_steps=1",
    "--eval_strategy=steps",
    "--eval_steps=4",
    "--save_strategy=no",
    "--no_generate",
    "--no_load_best_model_at_end",
    "--early_stopping_patience=null",
    "--warmup_steps=1",
    "--output_dir=out",
]
PADDED = "--batching=padded"
"""The layout of the numbers: an adapter's dropout draws for each token, so another layout draws other masks."""
CASES: dict[str, tuple[str, list[str]]] = {
    "nli_cot": ("nli_cot", [PADDED]),
    "nli_cot-nf4": ("nli_cot", ["--load_in_4bit", PADDED]),
    "reasoning": ("reasoning", [PADDED]),
    "rag": ("rag", [PADDED]),
    "sft-full": ("sft", ["--no_use_lora", PADDED]),
    "sft-full-auto": ("sft", ["--no_use_lora"]),
    "sft-lora-unpadded": ("sft", ["--use_lora", "--batching=unpadded"]),
}


SAME_AS = {"sft-full-auto": "sft-full"}
"""Cases that must give another one's numbers: without dropout, the layout changes the cost of a step alone."""


def measure(case: str, folder: Path) -> dict[str, Any]:
    """The logged figures of a case, and the files of its run folder."""
    recipe, more = CASES[case]
    init.NUM_TRAIN, init.NUM_HELDOUT = 60, 20
    init.lay(recipe, folder / case)
    here = Path.cwd()
    os.chdir(folder / case)
    try:
        notices.clear()
        code = main(["train", init.RECIPES[recipe].config, *COMMON, *more])
        lines = Path("out/metrics.jsonl").read_text(encoding="utf-8").splitlines()
        files = sorted(path.relative_to("out").as_posix() for path in Path("out").rglob("*") if path.is_file())
    finally:
        os.chdir(here)
    logged = [{key: entry[key] for key in FIGURES if key in entry} for entry in map(json.loads, lines)]
    return {"exit_code": code, "files": files, "logged": [entry for entry in logged if len(entry) > 2]}


@pytest.mark.parametrize("case", CASES)
def test_first_steps_are_as_written_down(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(init, "NUM_TRAIN", init.NUM_TRAIN)  # put back what measure() sets
    monkeypatch.setattr(init, "NUM_HELDOUT", init.NUM_HELDOUT)
    found = measure(case, tmp_path)
    if os.environ.get("UPDATE_GOLDEN") == "1" and case not in SAME_AS:
        kept = json.loads(GOLDEN.read_text(encoding="utf-8")) if GOLDEN.is_file() else {}
        GOLDEN.write_text(json.dumps(kept | {case: found}, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        return
    expected = json.loads(GOLDEN.read_text(encoding="utf-8"))[SAME_AS.get(case, case)]
    assert found["exit_code"] == expected["exit_code"] == 0
    assert found["files"] == expected["files"]
    assert len(found["logged"]) == len(expected["logged"]) >= 5
    for ours, theirs in zip(found["logged"], expected["logged"], strict=True):
        # other CPUs sum in another order; a changed mask, scale or schedule shows in the third digit
        assert ours == pytest.approx(theirs, rel=2e-4)


def test_every_recipe_has_a_case() -> None:
    assert {recipe for recipe, _ in CASES.values()} == set(init.RECIPES)
    assert set(json.loads(GOLDEN.read_text(encoding="utf-8"))) == set(CASES) - set(SAME_AS)
