"""Too long retrieval rows: documents are cut, never the question, the instruction or the answer."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunesmith.config.schema import DataSection
from tunesmith.data.examples import ExampleBuilder, build_examples
from tunesmith.data.ledger import Ledger
from tunesmith.data.masking import IGNORE_INDEX, TooLongError
from tunesmith.data.prepare_rag import PROMPT, prepare_rag
from tunesmith.data.rag import document_spans, keep_documents
from tunesmith.data.row import Row
from tunesmith.data.rows import read_rows
from tunesmith.errors import DataError

words = st.lists(st.text("abcdefghij", min_size=1, max_size=6), min_size=1, max_size=30).map(" ".join)
short_words = st.lists(st.text("abcdefghij", min_size=1, max_size=6), min_size=1, max_size=8).map(" ".join)
any_text = st.text(min_size=1, max_size=60).filter(str.strip)


def row_of(query: str, answer: str, passages: list[str]) -> dict[str, Any]:
    values: dict[str, Any] = {
        "query": query,
        "answers": [answer],
        "passages": passages,
        "prompt": "",
        "context_spans": [],
    }
    for number, passage in enumerate(passages, start=1):
        values["prompt"] += f"[{number}] "
        start = len(values["prompt"])
        values["prompt"] += passage + "\n"
        values["context_spans"].append([start, start + len(passage)])
    values["prompt"] += f"\nQuestion: {query}\nAnswer:"
    return values


def section(max_length: int, **more: Any) -> DataSection:
    settings = {"format": "rag", "too_long": "truncate_prompt", "columns": {"completion": "answers"}}
    return DataSection(max_length=max_length, **(settings | more))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["stories_tokenizer", "mistral_tokenizer", "gpt2_tokenizer"])
def test_question_instruction_and_answer_survive_whole(kind: str, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(kind)
    seen = {"whole": 0, "cut": 0, "refused": 0}

    @settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
    @given(
        query=short_words,
        answer=short_words,
        instruction=short_words,
        passages=st.lists(words, min_size=1, max_size=4),
        max_length=st.integers(20, 500),
        stated=st.booleans(),
    )
    def survives(query: str, answer: str, instruction: str, passages: list[str], max_length: int, stated: bool) -> None:
        query, answer, instruction = f"q {query} ?", f"x {answer} y", f"INSTRUCTION {instruction} ."
        values = row_of(query, answer, [f"{text} ." for text in passages])
        if not stated:
            del values["context_spans"]
        more = {"instruction": instruction, "instruction_in_prompt": kind == "mistral_tokenizer"}
        builder = ExampleBuilder(tokenizer, section(max_length, **more))
        ledger = Ledger()
        spans = document_spans(values)
        bare = Row({**values, "prompt": keep_documents(values["prompt"], spans, 0)}, "rows", 1)
        least = ExampleBuilder(tokenizer, section(100_000, **more)).example(bare)
        assert least is not None
        if spans and len(least.input_ids) > max_length:
            with pytest.raises(TooLongError) as caught:
                builder.example(Row(values, "rows", 1), ledger)
            assert caught.value.needed == len(least.input_ids)
            seen["refused"] += 1
            return
        if not spans:  # unstated, and every document stands there twice
            assert not stated
            return
        example = builder.example(Row(values, "rows", 1), ledger)
        assert example is not None
        assert len(example.input_ids) <= max_length
        text = " ".join(tokenizer.decode(example.input_ids).split())
        for part in (query, answer, instruction):
            assert " ".join(part.split()) in text
        assert text.count("Question:") == 1
        learnt = tokenizer.decode([label for label in example.labels if label != IGNORE_INDEX])
        assert " ".join(answer.split()) in " ".join(learnt.split())
        seen["cut" if example.cut else "whole"] += 1
        assert (example.cut == "documents") == (example.full_length > max_length)
        assert ledger.account("rows").cut == ({"documents": ["rows:1"]} if example.cut else {})

    survives()
    assert all(seen.values()), seen


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    query=any_text,
    instruction=any_text,
    passages=st.lists(st.one_of(any_text, st.just("same"), st.just("Question: same")), min_size=1, max_size=5),
    share=st.floats(0, 1),
    between=st.sampled_from(["\n", "\n\n", " | ", ", Passage 7: ", " and then "]),
    stated=st.booleans(),
)
def test_only_documents_leave_a_prompt(
    query: str, instruction: str, passages: list[str], share: float, between: str, stated: bool
) -> None:
    prompt, spans = f"{instruction}\n", []
    for passage in passages:
        spans.append([len(prompt), len(prompt) + len(passage)])
        prompt += passage + between
    prompt += f"Question: {query}"
    values = {"query": query, "passages": passages, "prompt": prompt}
    if stated:
        values["context_spans"] = spans
    found = document_spans(values)
    assert found == sorted(found)
    assert all(end <= start for (_, end), (start, _) in pairwise(found))
    cut = keep_documents(prompt, found, round(share * sum(end - start for start, end in found)))
    assert query.strip() in cut
    assert cut.endswith(prompt[found[-1][1] :] if found else prompt)
    if stated:
        assert cut.startswith(f"{instruction}\n")
    assert len(cut) <= len(prompt)


def test_the_last_documents_go_first_and_take_their_labels_along() -> None:
    values = row_of("Who?", "Anna", ["Anna lives here.", "Ben lives there.", "Carla is away."])
    spans = document_spans(values)
    assert keep_documents(values["prompt"], spans, 1000) == values["prompt"]
    assert (
        keep_documents(values["prompt"], spans, 16 + 10)
        == "[1] Anna lives here.\n[2] Ben lives\n\nQuestion: Who?\nAnswer:"
    )
    assert keep_documents(values["prompt"], spans, 16) == "[1] Anna lives here.\n\nQuestion: Who?\nAnswer:"
    assert keep_documents(values["prompt"], spans, 0) == "[1] \n\nQuestion: Who?\nAnswer:"


def test_one_joined_text_of_passages_is_found() -> None:
    joined = "Anna lives here.\nBen lives there."
    values = {"query": "Who?", "positive_passages": joined, "prompt": f"{joined}\n\nWho?"}
    assert document_spans(values) == [(0, len(joined))]


def test_spans_of_another_prompt_are_not_believed() -> None:
    values = row_of("Who?", "Anna", ["Anna lives here.", "Ben lives there."])
    values["prompt"] = "Read: " + values["prompt"]
    assert document_spans(values) == [(10, 26), (31, 47)]


def test_a_prompt_without_its_documents_is_an_error(mistral_tokenizer: Any) -> None:
    values = {"query": "q", "answers": ["a"], "positive_passages": ["not in there"], "prompt": "word " * 200}
    with pytest.raises(DataError, match="rows:1: longer than max_length 50, and no text of"):
        ExampleBuilder(mistral_tokenizer, section(50)).example(Row(values, "rows", 1))


def test_an_answer_in_a_list_is_its_first_and_is_counted(mistral_tokenizer: Any) -> None:
    rows = [Row(row_of("q", "a", ["p"]) | {"answers": answers}, "rows", 1) for answers in (["one"], ["one", "two"])]
    ledger = Ledger()
    builder = ExampleBuilder(mistral_tokenizer, section(500))
    examples = build_examples(rows, builder, ledger)
    assert [builder.reference(row) for row in rows] == ["one", "one"]
    assert examples[0].input_ids == examples[1].input_ids
    assert ledger.account("rows").list_answers == 1


@pytest.mark.parametrize("answers", [None, [], [None], [""], "", "missing"])
def test_an_answer_that_is_null_or_missing_names_its_row(mistral_tokenizer: Any, answers: Any) -> None:
    values = row_of("q", "a", ["p"]) | {"answers": answers}
    if answers == "missing":
        del values["answers"]
    with pytest.raises(DataError, match=r"file.jsonl:7"):
        ExampleBuilder(mistral_tokenizer, section(500)).example(Row(values, "file.jsonl", 7))


def test_long_real_rows_are_cut(real_data: Path, mistral_tokenizer: Any) -> None:
    """PubMedQA and HotpotQA rows of up to 2,000 tokens, within 256."""
    for name in ("rag_pubmedqa/pqal_train500.json", "rag_hotpot/dev20.jsonl"):
        prepared = prepare_rag(str(real_data / name), prompt=PROMPT)
        rows = [Row(values, name, number) for number, values in enumerate(prepared.rows[:20], start=1)]
        ledger = Ledger()
        builder = ExampleBuilder(mistral_tokenizer, section(256))
        examples = build_examples(rows, builder, ledger)
        assert len(examples) == 20
        assert len(ledger.account(name).cut["documents"]) >= 15
        for row, example in zip(rows, examples, strict=True):
            text = " ".join(mistral_tokenizer.decode(example.input_ids).split())
            assert len(example.input_ids) <= 256
            assert " ".join(row.values["query"].split()) in text
            assert example.cut is None or len(example.input_ids) > 230  # no more is cut than has to be


def test_rows_of_the_recipe_are_read_back(tmp_path: Path) -> None:
    recipe = Path(__file__).resolve().parents[3] / "recipes" / "rag"
    for name in ("asqa-prefix-train.jsonl", "asqa-raft-cot-train.jsonl"):
        rows = read_rows(str(recipe / name))
        assert len(rows) == 120
        assert all(len(document_spans(row.values)) == 3 for row in rows)
