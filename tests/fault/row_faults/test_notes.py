"""All verbs say the same about rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from helpers import write_rows
from row_faults import CALL, Call, answer, asked, refused
from tunesmith import notices
from tunesmith.data.formats import FORMATS


@pytest.mark.parametrize("unknown", ["[UNK]", "[EOS]"])
def test_unknown_words_of_answers_are_said(call: Call, tmp_path: Path, unknown: str) -> None:
    words = "[EOS] [BOS] [UNK] the answer is : ? what".split()
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token=unknown))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token=unknown, bos_token="[BOS]", eos_token="[EOS]"
    ).save_pretrained(tmp_path / "words")
    known = {"prompt": "what is the answer ?", "completion": "the answer is the answer"}
    rows = [known, {"prompt": "what is the answer ?", "completion": "the answer is 42 the answer"}]
    found = call(rows, tokenizer_name_or_path=tmp_path / "words")
    if unknown == "[EOS]":
        refused(found, 3, "rows.jsonl:2", "end token")
        assert call([known], tokenizer_name_or_path=tmp_path / "words").code == 0
    else:
        assert found.code == 0
        assert any("rows.jsonl:2" in note and "[UNK]" in note for note in found.notes)


NOTED: dict[str, tuple[list[dict[str, Any]], dict[str, str]]] = {
    "a part that is left out": (CALL, {"template": "chatml", "unwritten": "report"}),
    "columns that are not read": ([{"prompt": "q", "completion": "a", "mood": "glad"}], {}),
    "words after the last answer": ([{"messages": [asked(), answer(), asked("r")]}], {}),
    "tokens without an end": ([{"input_ids": [5, 6, 7], "labels": [-100, 6, 7], "mood": "glad"}], {}),
    "everything at once": (
        [
            {"messages": [asked(), answer("a <s> b")], "weight": 2.0, "mood": "glad"},
            {"messages": [asked(), answer("a <s> b")], "weight": 2.0},
            {"messages": [asked("long " * 40), answer("z")]},
            {"messages": [asked("e"), answer(" ")]},
            {"messages": [asked("w"), answer("g")], "weight": 0},
        ],
        {"max_length": "60", "too_long": "truncate_prompt", "empty_completion": "drop", "max_dropped": "0.5"},
    ),
}


@pytest.mark.parametrize("name", NOTED)
def test_all_verbs_say_the_same_about_rows(call: Call, name: str) -> None:
    rows, how = NOTED[name]
    said: dict[str, list[str]] = {}
    for verb in ("check", "preview", "train"):
        outcome = call(rows, verb, **how)
        assert outcome.code == 0, outcome
        said[verb] = [text for text in notices.collected() if not text.startswith("attention: ")]  # of the model
    assert said["preview"] == said["check"] == said["train"]
    assert len(said["check"]) >= (7 if name == "everything at once" else 2)


EACH_FORMAT: dict[str, dict[str, Any]] = {
    "text": {"text": "[INST] q [/INST] a"},
    "prompt_completion": {"prompt": "q", "completion": "a"},
    "prompt_completion of messages": {"prompt": [asked()], "completion": [answer(note="N")], "tools": []},
    "nli": {"premise": "p", "hypothesis": "h", "thought_process": "t", "predicted_label": 1},
    "messages": {"messages": [asked(), answer(note="N"), asked("r")]},
    "sharegpt": {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a", "note": "N"}]},
    "alpaca": {"instruction": "q", "input": "", "output": "a", "history": [["e", "f"]]},
    "question_answer": {"question": "q", "answer": 42},
    "rag": {"prompt": "q", "query": "q", "answers": ["a", "b"], "completion": ["a", "b"]},
    "tokenized": {"input_ids": [5, 6, 7], "labels": [-100, 6, 7]},
}


def test_all_verbs_say_the_same_of_every_format(call: Call, tmp_path: Path) -> None:
    assert {name.partition(" ")[0] for name in EACH_FORMAT} == set(FORMATS)
    files = []
    for number, (name, row) in enumerate(EACH_FORMAT.items()):
        twice = {"mood": "glad", "weight": 2, **row}  # an equal row is worth a note, too
        files.append(write_rows(tmp_path / f"{number}_{name.replace(' ', '_')}.jsonl", [twice, twice]))
    said: dict[str, list[str]] = {}
    for verb in ("check", "preview", "train"):
        outcome = call([], verb, train_data=json.dumps(files), unwritten="report", max_length=400, max_duplicates=1)
        assert outcome.code == 0, outcome
        said[verb] = [text for text in notices.collected() if not text.startswith("attention: ")]  # of the model
    assert said["preview"] == said["check"] == said["train"]
    for file in files:
        assert f"{file}: columns that are not read: mood" in said["check"]
    assert sum("note of assistant turns" in text for text in said["check"]) == 1
    assert any("rows repeat an earlier one" in text for text in said["check"])
