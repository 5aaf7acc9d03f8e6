from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tunesmith import notices
from tunesmith.config.schema import DataSection
from tunesmith.data.examples import ExampleBuilder
from tunesmith.data.nli import nli_text
from tunesmith.data.rows import Row
from tunesmith.data.selection import hold_out, leaks, load_rows, refuse_leaks, shuffled
from tunesmith.errors import DataError

ROWS = [Row({"prompt": f"q{line}", "completion": "a"}, "train.jsonl", line) for line in range(1, 21)]


def test_holding_out_is_seeded_and_loses_nothing() -> None:
    train, held = hold_out(ROWS, 0.25, seed=3)
    assert len(held) == 5
    assert sorted([*train, *held], key=lambda row: row.line) == ROWS
    assert hold_out(ROWS, 0.25, seed=3) == (train, held)
    assert hold_out(ROWS, 0.25, seed=4) != (train, held)
    assert [row.line for row in held] == sorted(row.line for row in held)
    assert len(hold_out(ROWS, 0.001, seed=3)[1]) == 1
    with pytest.raises(DataError, match="leaves none to train on"):
        hold_out(ROWS[:1], 0.5, seed=3)


def test_shuffling_is_seeded() -> None:
    assert shuffled(ROWS, 1) == shuffled(ROWS, 1) != ROWS
    assert sorted(shuffled(ROWS, 1), key=lambda row: row.line) == ROWS


def test_load_rows_shuffles_limits_and_holds_out(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text("".join(f'{{"prompt": "q{n}", "completion": "a"}}\n' for n in range(20)))
    train, held = load_rows(DataSection(train_data=str(path), limit=10, dev_split=0.2, shuffle_seed=7, eval_limit=1))
    assert (len(train), len(held)) == (8, 1)
    assert load_rows(DataSection(train_data=str(path)))[1] == []
    whole, evaluated = load_rows(DataSection(train_data=str(path), eval_data=str(path), eval_limit=3))
    assert (len(whole), [row.line for row in evaluated]) == (20, [1, 2, 3])
    with pytest.raises(DataError, match="train_data"):
        load_rows(DataSection())


def test_leaks_are_found_across_spelling_and_format(mistral_tokenizer: Any) -> None:
    builder = ExampleBuilder(mistral_tokenizer, DataSection())
    train = [
        Row({"text": nli_text("A cafe\u0301  man.", "H one", "t", 0)}, "train.jsonl", 91),
        Row({"text": nli_text("Other.", "H", "t", 0)}, "train.jsonl", 92),
    ]
    held = [
        Row({"premise": "Unseen.", "hypothesis": "H"}, "eval.jsonl", 3),
        Row({"premise": "A café man.", "hypothesis": "H\none"}, "eval.jsonl", 4),
    ]
    assert leaks(train, held, builder) == [("eval.jsonl:4", "train.jsonl:91")]
    assert leaks(train, held[:1], builder) == []


def test_leaks_of_texts_without_marker(stories_tokenizer: Any) -> None:
    builder = ExampleBuilder(stories_tokenizer, DataSection(loss_on="all"))
    rows = [Row({"text": text}, "t", line) for line, text in enumerate(("once upon", "a time"), 1)]
    assert leaks(rows, rows[1:], builder) == [("t:2", "t:2")]


def test_leaks_are_refused_unless_allowed() -> None:
    found = [(f"e:{line}", f"t:{line}") for line in range(1, 9)]
    with pytest.raises(DataError, match=r"8 evaluation prompts .* e:1 = t:1, .* and 3 more; .*allow_leak"):
        refuse_leaks(found, allow=False)
    notices.forget()
    refuse_leaks(found, allow=True)
    assert any("allow_leak is set" in text for text in notices.said())
    refuse_leaks([], allow=False)
