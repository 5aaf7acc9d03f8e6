"""Which files are read, and what is cut of a row."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from helpers import write_rows
from row_faults import Call, answer, asked, refused
from tunesmith import notices
from tunesmith.cli.main import main


def test_held_out_files_are_never_trained(call: Call, tmp_path: Path) -> None:
    rows = [[{"prompt": f"q{number}", "completion": f"a{number}"}] for number in range(2)]
    folder, splits = tmp_path / "folder", tmp_path / "splits"
    for place, names in ((folder, ("data", "evaluation")), (splits, ("train", "test"))):
        place.mkdir()
        for name, held in zip(names, rows, strict=True):
            write_rows(place / f"{name}.jsonl", held)
    outcome = call(folder, num=9)
    assert (outcome.code, len(outcome.rows)) == (0, 1)
    assert outcome.rows[0]["source"].endswith("data.jsonl:1")
    refused(call(splits / "*.jsonl"), 3, "named after the split test", "list of names")


@pytest.mark.parametrize("verb", ["preview", "check"])
def test_tables_are_as_strict_as_json(call: Call, tmp_path: Path, verb: str) -> None:
    twice = pyarrow.table({"prompt": ["RIGHT"], "completion": ["b"], "p2": ["WRONG"]})
    twice = twice.rename_columns(["prompt", "completion", "prompt"])
    for table, words in ((twice, "'prompt' occurs twice"), (pyarrow.table({"prompt": ["a\0b"]}), "NUL")):
        pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
        refused(call(tmp_path / "rows.parquet", verb), 3, words)


def test_headers_and_system_message_are_not_cut(call: Call) -> None:
    rows = [
        {"messages": [{"role": "system", "content": "be kind"}, asked("one two three four five six"), answer("ok")]}
    ]
    settings = {"template": "chatml", "too_long": "truncate_prompt"}
    refused(call(rows, max_length=45, **settings), 3, "tokens remain when every earlier turn is left out")
    cut = call(rows, max_length=60, **settings)
    assert cut.code == 0
    assert "be kind" in cut.texts[0]
    assert cut.texts[0].count("<|im_start|>") == 3
    assert "one" not in cut.texts[0]
    assert any("lose the beginning of their prompt" in text for text in notices.collected())


def test_the_frame_of_a_text_template_is_not_cut(call: Call) -> None:
    rows = [{"prompt": "w0 " + "w " * 60, "completion": "done"}]
    template = "HEAD {query} => {output}"
    cut = call(rows, template=template, max_length=24, too_long="truncate_prompt")
    assert cut.code == 0
    assert cut.texts[0].startswith("<s>HEAD w w")
    assert cut.texts[0].endswith(" => done</s>")
    assert len(cut.rows[0]["tokens"]) in (23, 24)
    refused(call(rows, template=template, max_length=5, too_long="truncate_prompt"), 3, "tokens remain")


def test_every_cut_is_in_the_ledger_with_its_rule(call: Call, tmp_path: Path) -> None:
    chat = [{"messages": [asked("long " * 20), answer(), asked("q"), answer("z")]}]
    pair, text = [{"prompt": "w " * 60, "completion": "done " * 9}], [{"text": "word " * 100}]
    for rows, policy, rule, how in (
        (chat, "truncate_prompt", "turns", {}),
        (pair, "truncate_prompt", "truncate_prompt", {}),
        (pair, "truncate_completion", "truncate_completion", {"max_length": 70}),
        (text, "split", "split", {"loss_on": "all"}),
    ):
        given = {"max_length": 40, "too_long": policy, "save_strategy": "no"} | how
        assert call(rows, "train", **given).code == 0
        ledger = json.loads((tmp_path / "run" / "ledger.json").read_text())
        (account,) = ledger["training"]["sources"].values()
        assert account["cut"] == {rule: [f"{tmp_path / 'rows.jsonl'}:1"]}


def test_plain_texts_are_learnt_whole_and_asked_to_go_on(call: Call, tmp_path: Path) -> None:
    """No marker says where an answer begins, and none is needed: every token is learnt, and a text goes on."""
    rows = [{"text": "word " * 8}, {"text": "another text, of which every token is learnt"}]
    for verb in ("check", "preview", "train"):
        outcome = call(rows, verb, loss_on="all", save_strategy="no")
        assert outcome.code == 0, outcome
    contract = json.loads((tmp_path / "run" / "inference.json").read_text())
    assert contract["prompt"]["cut_after"] is None
    answers = tmp_path / "answers.jsonl"
    assert (
        main(["predict", str(tmp_path / "run"), str(tmp_path / "rows.jsonl"), str(answers), "--max_new_tokens=2"]) == 0
    )
    assert len(answers.read_text().splitlines()) == 2
