from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tunesmith import notices
from tunesmith.config.schema import DataSection
from tunesmith.data.examples import CHUNK_ROWS, ExampleBuilder, build_examples
from tunesmith.data.ledger import Ledger
from tunesmith.data.masking import IGNORE_INDEX
from tunesmith.data.nli import nli_answer, nli_text
from tunesmith.data.row import Row
from tunesmith.data.rows import read_rows
from tunesmith.errors import DataError, DataErrors


def pair(line: int, completion: Any = " a", prompt: str = "q") -> Row:
    return Row({"prompt": prompt, "completion": completion}, "f.jsonl", line)


def test_the_reference_encodings_of_mistral_are_reproduced(real_data: Path, mistral_tokenizer: Any) -> None:
    golden = read_rows(str(real_data / "tok_mistral" / "golden_v3_chat.jsonl"))
    forced = DataSection(template="chat", columns={"prompt": "user", "completion": "assistant"})
    builder = ExampleBuilder(mistral_tokenizer, forced.model_copy(update={"format": "prompt_completion"}))
    examples = build_examples(golden, builder, Ledger())
    assert len(examples) == len(golden) == 48
    for row, example in zip(golden, examples, strict=True):
        assert example.input_ids == row.values["full_ids"]
        assert builder.prompt(row).input_ids == row.values["prompt_ids"]
        num_prompt = len(row.values["prompt_ids"])
        assert example.labels == [IGNORE_INDEX] * num_prompt + row.values["full_ids"][num_prompt:]
        assert builder.reference(row) == row.values["assistant"]


def test_a_prepared_text_row_equals_the_untemplated_row(mistral_tokenizer: Any, stories_tokenizer: Any) -> None:
    values = {"premise": "A man.", "hypothesis": "A cat?", "thought_process": "step 1: né", "predicted_label": 0}
    text = Row({"text": nli_text("A man.", "A cat?", "step 1: né", 0), "id": 5}, "text.jsonl", 1)
    untemplated = Row(values, "nli.jsonl", 1)
    for tokenizer in (mistral_tokenizer, stories_tokenizer):
        builder = ExampleBuilder(tokenizer, DataSection())
        first, second = builder.example(text), builder.example(untemplated)
        assert first is not None
        assert second is not None
        assert (first.input_ids, first.labels) == (second.input_ids, second.labels)
        assert builder.prompt(text).input_ids == builder.prompt(untemplated).input_ids
        bare = Row({"premise": "A man.", "hypothesis": "A cat?", "label": "1"}, "source.csv", 2)
        assert builder.prompt(bare).input_ids == builder.prompt(text).input_ids
        assert builder.reference(bare) == nli_answer("", 1)


def test_the_trap_of_two_begin_tokens(mistral_tokenizer: Any) -> None:
    row = Row({"text": nli_text("P", "H", "t", 1)}, "f", 1)
    assert mistral_tokenizer(row.values["text"]).input_ids[:2] == [1, 1]
    example = ExampleBuilder(mistral_tokenizer, DataSection()).example(row)
    assert example is not None
    assert example.input_ids.count(1) == 1
    assert example.labels.count(2) == 1
    assert example.labels[-1] == 2


def test_formats_are_detected_per_source_and_said(stories_tokenizer: Any) -> None:
    notices.clear()
    builder = ExampleBuilder(stories_tokenizer, DataSection())
    assert builder.format_of(pair(1)) == "prompt_completion"
    assert builder.format_of(Row({"text": "x"}, "g.jsonl", 1)) == "text"
    assert "g.jsonl: rows are read as text" in notices.collected()


def test_columns_are_renamed_for_prompts_references_and_examples(stories_tokenizer: Any) -> None:
    data = DataSection(format="rag", columns={"prompt": "ask", "completion": "answers"})
    builder = ExampleBuilder(stories_tokenizer, data)
    row = Row({"ask": "q", "answers": ["a", "b"], "query": "x"}, "f", 1)
    ledger = Ledger()
    assert builder.example(row, ledger) is not None
    assert builder.reference(row) == "a"
    assert builder.prompt(row).row is not None
    assert ledger.to_dict()["sources"]["f"]["list_answers"] == 1


def test_wrong_rows_are_told_by_cause(stories_tokenizer: Any) -> None:
    rows = [pair(line, completion=5 if line > 3 else " a") for line in range(1, 40)]
    with pytest.raises(DataErrors) as caught:
        build_examples(rows, ExampleBuilder(stories_tokenizer, DataSection()), Ledger())
    (line,) = caught.value.lines()
    assert line.startswith("f.jsonl:4: ")
    assert line.endswith("(and 35 more: 5, 6, 7 ...)")


def test_too_long_rows_are_counted_to_the_end(stories_tokenizer: Any) -> None:
    rows = [pair(line, completion=" a" * line) for line in range(1, 41)]
    lengths = [
        len(example.input_ids)
        for example in build_examples(rows, ExampleBuilder(stories_tokenizer, DataSection()), Ledger())
    ]
    builder = ExampleBuilder(stories_tokenizer, DataSection(max_length=lengths[9]))
    with pytest.raises(DataErrors) as caught:
        build_examples(rows, builder, Ledger())
    lines = caught.value.lines()
    assert len(lines) == 2
    assert lines[0].startswith(f"f.jsonl:11: {lengths[10]} tokens, max_length is {lengths[9]}")
    assert "30 rows are longer" in lines[-1]
    assert f"max_length: {lengths[-1]} fits them all" in lines[-1]


@pytest.mark.parametrize("policy", ["drop", "truncate_prompt", "truncate_completion"])
def test_everything_cut_or_dropped_is_in_the_ledger(stories_tokenizer: Any, policy: Any) -> None:
    rows = [
        pair(line, prompt=f"{line:02d} Say it again: " * (8 if line % 3 == 0 else 1), completion=" word" * 9)
        for line in range(30)
    ]
    whole = build_examples(rows, ExampleBuilder(stories_tokenizer, DataSection()), Ledger())
    limit = max(len(example.input_ids) for example in whole) - 5
    ledger = Ledger()
    examples = build_examples(
        rows, ExampleBuilder(stories_tokenizer, DataSection(max_length=limit, too_long=policy, max_dropped=0.5)), ledger
    )
    longer = [example.origin for example in whole if len(example.input_ids) > limit]
    account = ledger.to_dict()["sources"]["f.jsonl"]
    assert len(longer) == 10
    assert account["read"] == 30
    assert account["kept"] == len(examples)
    assert account["longest"] == limit + 5
    assert account["tokens"] == sum(len(example.input_ids) for example in examples)
    assert account["trained_tokens"] == sum(label != IGNORE_INDEX for example in examples for label in example.labels)
    expected = {"drop": ({}, {"too_long": longer})}.get(policy, ({policy: longer}, {}))
    assert (account["cut"], account["dropped"]) == expected
    assert json.loads(json.dumps(ledger.to_dict())) == ledger.to_dict()


def test_empty_completions_follow_their_policy(stories_tokenizer: Any) -> None:
    rows = [pair(1), pair(2, completion=" \n"), pair(3)]
    with pytest.raises(DataError, match=r"f\.jsonl:2: the completion is empty"):
        build_examples(rows, ExampleBuilder(stories_tokenizer, DataSection()), Ledger())
    ledger = Ledger()
    dropping = ExampleBuilder(stories_tokenizer, DataSection(empty_completion="drop", max_dropped=0.5))
    assert [example.origin for example in build_examples(rows, dropping, ledger)] == ["f.jsonl:1", "f.jsonl:3"]
    assert ledger.to_dict()["total"]["dropped"] == {"empty_completion": 1}
    keeping = ExampleBuilder(stories_tokenizer, DataSection(empty_completion="keep"))
    kept = keeping.example(pair(2, completion=""))
    assert kept is not None
    assert [label for label in kept.labels if label != IGNORE_INDEX] == [2]
    with pytest.raises(DataError, match=r"no examples are left of 1 rows \(dropped: 1 empty_completion\)"):
        build_examples(rows[1:2], dropping, Ledger())


def test_completion_start_of_a_template_is_an_error_when_it_never_occurs(mistral_tokenizer: Any) -> None:
    rows = [Row({"question": "q", "answer": "think. So: 5"}, "f", line) for line in range(1, 4)]
    example = ExampleBuilder(mistral_tokenizer, DataSection(completion_start="So:")).example(rows[0])
    assert example is not None
    assert mistral_tokenizer.decode([label for label in example.labels if label != IGNORE_INDEX]) == "5</s>"
    with pytest.raises(DataErrors) as caught:
        build_examples(rows, ExampleBuilder(mistral_tokenizer, DataSection(completion_start="Nie:")), Ledger())
    (line,) = caught.value.lines()
    assert line.startswith("f:1: ")
    assert line.endswith("(and 2 more: 2, 3)")
    assert "token ids [" in line


def test_chunks_change_nothing(stories_tokenizer: Any) -> None:
    builder = ExampleBuilder(stories_tokenizer, DataSection())
    rows = [pair(line, completion=f" number {line}") for line in range(CHUNK_ROWS + 3)]
    together = build_examples(rows, builder, Ledger())
    assert len(together) == CHUNK_ROWS + 3
    assert together == [builder.example(row) for row in rows]


def test_real_rows_of_four_kinds(real_data: Path, stories_tokenizer: Any, mistral_tokenizer: Any) -> None:
    files = {
        "reason_gsm8k/train.jsonl": ({}, 200),
        "instruct_selfinstruct/seed_tasks.jsonl": ({"columns": {"prompt": "instruction", "completion": "name"}}, 175),
        "rag_nq_open/NQ-open.efficientqa.dev.1.1.jsonl": (
            {"format": "rag", "columns": {"prompt": "question", "completion": "answer"}}, 200),
        "reason_aqua/dev.json": ({"columns": {"answer": "rationale"}}, 200),
    }  # fmt: skip
    for name, (settings, number) in files.items():
        rows = read_rows(str(real_data / name))[:number]
        for tokenizer in (stories_tokenizer, mistral_tokenizer):
            builder = ExampleBuilder(tokenizer, DataSection(max_length=4096, **settings))
            examples = build_examples(rows, builder, Ledger())
            assert len(examples) == number
            for row, example in zip(rows, examples, strict=True):
                prompt = builder.prompt(row).input_ids
                assert example.input_ids[: example.num_prompt_tokens] == prompt
                assert example.input_ids.count(1) == 1
                assert example.labels[-1] == 2


def test_generation_stops_where_training_ended(real_data: Path, tmp_path: Path, mistral_tokenizer: Any) -> None:
    from transformers import AutoTokenizer

    template = tmp_path / "chatml.jinja"
    template.write_text(
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    tokenizer = AutoTokenizer.from_pretrained(real_data / "model_stories260k" / "hf")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|end|>", "<|user|>", "<|assistant|>"]})
    row = Row({"question": "q", "answer": "a"}, "f", 1)
    builder = ExampleBuilder(tokenizer, DataSection(template=str(template)))
    example = builder.example(row)
    assert example is not None
    assert builder.stop_token_ids(row) == [tokenizer.convert_tokens_to_ids("<|end|>"), 2]
    assert example.labels[-1] == builder.stop_token_ids(row)[0]
    for other in (pair(1), Row({"text": "[INST] q [/INST] a"}, "t", 1), row):
        assert ExampleBuilder(mistral_tokenizer, DataSection()).stop_token_ids(other) == [2]
