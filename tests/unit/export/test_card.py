"""The model card says what the records say, and nothing of the machine it was written on."""

from __future__ import annotations

from typing import Any

import yaml

from tunesmith.export.card import Records, clean, render

RUN: dict[str, Any] = {
    "settings": {
        "model.model_name_or_path": "some-one/some-model",
        "training.learning_rate": 2e-4,
        "training.seed": 42,
        "training.output_dir": "/home/somebody/run",
        "tracking.wandb_project": "secret project",
    },
    "origins": {
        "training.learning_rate": "config.py:3",
        "training.seed": "default",
        "training.output_dir": "config.py:4",
        "tracking.wandb_project": "config.py:5",
    },
    "command": "python -m tunesmith train /home/somebody/config.py --output_dir /home/somebody/run",
    "finished": "2026-01-02T03:04:05+00:00",
    "model": {
        "trainable": 1000,
        "total": 20000,
        "held": "4-bit nf4 with LoRA",
        "precision": "bfloat16",
        "precision_reason": "x",
    },
    "data": {
        "train_rows": 90,
        "eval_rows": 10,
        "train_tokens": 4321,
        "trained_share": 0.25,
        "dropped": 3,
        "cut": 2,
    },
    "plan": {"global_batch_size": 8},
    "result": {"steps": 12, "metrics": {"loss": 0.5, "eval_loss": 0.75}},
    "versions": {"torch": "2.13.0"},
}
ACCOUNT = {"read": 95, "kept": 90, "dropped": {"too_long": ["a:1", "a:2", "a:3"]}, "cut": {}, "tokens": 4321}
LEDGER = {"training": {"sources": {"/home/somebody/rows.jsonl": ACCOUNT, "own-er/set/part[train]": ACCOUNT}}}
EVALUATION = {
    "task": "nli",
    "num_examples": 10,
    "accuracy": 0.8,
    "macro_f1": 0.75,
    "mean_new_tokens": 12.5,
    "confidence": {"accuracy": [0.5, 1.0]},
}


def front_matter(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---\n")[1])


def test_card_holds_what_the_records_say() -> None:
    card = render(Records(RUN, LEDGER, EVALUATION), "adapter")
    for said in (
        "90 training rows and 10 evaluation rows",
        "4,321 tokens of training rows, of which 25.0% carry loss",
        "3 rows were dropped and 2 cut",
        "3 too\\_long",
        "| training.learning\\_rate | 0.0002 |",
        "| eval\\_loss | 0.75 |",
        "| accuracy | 0.8000 | 0.5000 to 1.0000 |",
        "| macro\\_f1 | 0.7500 | not computed |",
        "1,000 of 20,000 weights (4-bit nf4 with LoRA)",
        "python -m tunesmith train .../config.py --output_dir .../run",
        "torch 2.13.0",
        "AutoPeftModelForCausalLM",
    ):
        assert said in card, said
    for unsaid in ("/home", "somebody", "secret project", "training.seed", "output\\_dir |", "12.5"):
        assert unsaid not in card, unsaid
    matter = front_matter(card)
    assert matter["base_model"] == "some-one/some-model"
    assert matter["base_model_relation"] == "adapter"
    assert matter["datasets"] == ["own-er/set"]
    assert "license" not in matter
    (result,) = matter["model-index"][0]["results"]
    assert result["metrics"] == [{"type": "accuracy", "value": 0.8}, {"type": "macro_f1", "value": 0.75}]


def test_what_was_not_measured_is_said() -> None:
    card = render(Records(RUN | {"data": RUN["data"] | {"eval_rows": 0}}), "full")
    assert "were not evaluated: no figure says how good they are" in card
    assert "No rows were held out during training" in card
    assert "model-index" not in front_matter(card)
    assert "Proof of the merge" not in card
    assert "AutoPeft" not in card


def test_a_folder_without_records_still_has_a_card() -> None:
    card = render(Records({}), "merged")
    assert "No record of the data is here" in card
    assert "Every setting" not in card
    assert front_matter(card)["library_name"] == "transformers"


def test_base_on_this_machine_is_no_base_on_the_hub(tmp_path) -> None:
    run = RUN | {"settings": RUN["settings"] | {"model.model_name_or_path": str(tmp_path / "my-base")}}
    card = render(Records(run), "merged")
    assert "base_model" not in front_matter(card)
    assert ".../my-base" in card
    assert str(tmp_path) not in card


def test_values_cannot_break_out_of_their_place() -> None:
    evil = "a\n\n# title <script>x</script> | cell\x1b[31m `code` [link](x)"
    assert "\n" not in clean(evil)
    assert "\x1b" not in clean(evil)
    assert "\\<script\\>" in clean(evil)
    assert "\\|" in clean(evil)
    assert "```" not in clean("```", code=True)
    card = render(Records(RUN | {"command": "x ```\n# title"}, LEDGER, EVALUATION | {"task": evil}), "adapter")
    assert "\n# title" not in card
    front_matter(card)
