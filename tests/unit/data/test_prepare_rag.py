"""Processed retrieval rows from the embedded world and from real files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tunesmith.cli.main import main
from tunesmith.data.prepare_rag import Question, choose_passages, explain, parse_prompt, prepare_rag
from tunesmith.data.rag import document_spans
from tunesmith.errors import ConfigError, DataError
from tunesmith.evaluate.answers import read_span
from tunesmith.synthetic.rag import make_rag


@pytest.fixture
def world(tmp_path: Path) -> Path:
    rows, _ = make_rag(60, 5)
    file = tmp_path / "world.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def test_rows_keep_every_source_column(world: Path) -> None:
    sources = [json.loads(line) for line in world.read_text(encoding="utf-8").splitlines()]
    prepared = prepare_rag(str(world), num_passages=3)
    assert len(prepared.rows) == 60
    for source, row in zip(sources, prepared.rows, strict=True):
        assert source.items() <= row.items()
        assert set(row) - set(source) == {"prompt", "passages", "context_spans"}
        assert row["query"] in row["prompt"]
        assert len(row["passages"]) == 3
        assert row["positive_passages"][0] in row["passages"]
        assert [row["prompt"][start:end] for start, end in document_spans(row)] == row["passages"]


def test_the_seed_decides_the_order_and_nothing_else_does(world: Path) -> None:
    first, again, other = (prepare_rag(str(world), num_passages=3, seed=seed).rows for seed in (1, 1, 2))
    assert first == again
    assert [row["prompt"] for row in first] != [row["prompt"] for row in other]
    places = [row["passages"].index(row["positive_passages"][0]) for row in first]
    assert all(places.count(place) >= 10 for place in (0, 1, 2))  # shuffled: no place gives the answer away


@pytest.mark.parametrize(("share", "number"), [(0.0, 0), (0.5, 2), (1.0, 4)])
def test_the_share_of_distractors(share: float, number: int) -> None:
    import random

    question = Question("q", ["a"], list("abcdef"), list("uvwxyz"), None, {}, "here")
    chosen, borrowed = choose_passages(question, [], 4, share, False, random.Random(0))
    assert sum(text in question.negatives for text in chosen) == number
    assert (len(chosen), borrowed) == (4, 0)


def test_distractors_are_borrowed_from_other_rows(world: Path) -> None:
    prepared = prepare_rag(str(world), num_passages=8)
    assert prepared.counts["from_other_rows"] > 0
    assert prepared.counts["passages"] == 60 * 8
    for row in prepared.rows:
        assert len(set(row["passages"])) == 8


def test_rows_without_a_positive_are_counted(world: Path) -> None:
    prepared = prepare_rag(str(world), num_passages=3, without_positive=0.3, chain_of_thought=True)
    alone = [row for row in prepared.rows if row["positive_passages"][0] not in row["passages"]]
    assert 8 <= len(alone) == prepared.counts["without_positive"] <= 28
    assert all("None of the passages says it." in row["generated_answer"] for row in alone)


def test_chain_of_thought_cites_the_passage_that_answers(world: Path) -> None:
    prepared = prepare_rag(str(world), num_passages=4, chain_of_thought=True)
    assert prepared.counts["quoted"] == 60
    for row in prepared.rows:
        place = row["passages"].index(row["positive_passages"][0]) + 1
        assert row["generated_answer"].startswith(f"##Reason: Passage [{place}] says ##begin_quote##")
        quote = row["generated_answer"].split("##begin_quote##")[1].split("##end_quote##")[0]
        assert quote in row["positive_passages"][0]
        assert row["answers"][0] in quote
        assert read_span(row["generated_answer"]).value == row["answers"][0]


def test_an_answer_inside_a_longer_word_is_no_quote() -> None:
    question = Question("q", ["yes"], ["His eyes are blue."], [], None, {}, "here")
    assert explain(question, ["His eyes are blue."]) == ("This follows from [1].", False)


REAL = {
    "rag_hotpot/dev20.jsonl": (20, "answer"),
    "rag_pubmedqa/pqal_train500.json": (500, "final_decision"),
    "rag_xquad_en/xquad.en.part1.json": (632, "answers"),
    "rag_alce_asqa_prompts/asqa_default.json": (4, "answer"),
}


@pytest.mark.parametrize("name", REAL)
def test_real_files(real_data: Path, name: str) -> None:
    number, column = REAL[name]
    prepared = prepare_rag(str(real_data / name), chain_of_thought=True)
    assert prepared.counts["rows"] == len(prepared.rows) == number
    assert prepared.counts["passages"] == 5 * number
    assert prepared.counts["quoted"] + prepared.counts["without_quote"] == number
    for row in prepared.rows:
        assert column in row
        assert set(row["passages"]) & {text.strip() for text in row["positive_passages"]}
        assert row["prompt"].count(row["query"]) >= 1


def test_questions_without_passages(real_data: Path) -> None:
    file = str(real_data / "rag_nq_open" / "NQ-open.efficientqa.dev.1.1.jsonl")
    prepared = prepare_rag(file, prompt="Question: {question}", num_passages=0)
    assert len(prepared.rows) == 1800
    assert prepared.rows[0]["prompt"] == f"Question: {prepared.rows[0]['query']}"
    with pytest.raises(DataError, match=r"jsonl:1: no passage.*num_passages 0"):
        prepare_rag(file)


@pytest.mark.parametrize(
    ("prompt", "needs_context"), [("{context}", True), ("{question}", True), ("{question} {question} {context}", True),
                                  ("{question} {context}", False)]
)  # fmt: skip
def test_prompt_files_lacking_a_placeholder(prompt: str, needs_context: bool) -> None:
    with pytest.raises(ConfigError):
        parse_prompt(prompt, needs_context=needs_context)


def test_braces_in_texts_are_texts(tmp_path: Path) -> None:
    row = {"query": "What is {context}?", "answers": ["{question}"], "positive_passages": ["It is {question} {0}."]}
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row) + "\n", encoding="utf-8")
    (made,) = prepare_rag(str(file), prompt='{context} {"a": 1} {question}').rows
    assert made["prompt"] == '[1] It is {question} {0}. {"a": 1} What is {context}?'


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"answers": ["a"], "positive_passages": ["p"]}, "rows.jsonl:1: no question"),
        ({"query": "q", "answers": [], "positive_passages": ["p"]}, "rows.jsonl:1: no answer"),
        ({"query": "q", "answers": [None], "positive_passages": ["p"]}, "rows.jsonl:1: no answer"),
        ({"query": "q", "answers": ["a"], "positive_passages": []}, "rows.jsonl:1: no passage"),
    ],
)
def test_rows_that_lack_something_are_named(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=said):
        prepare_rag(str(file))


def test_the_verb(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.jsonl"
    arguments = ["data", "prepare", "rag", str(world), str(out), "--num_passages", "2", "--cot", "--json"]
    assert main(arguments) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["counts"]["rows"] == 60
    assert len(out.read_text(encoding="utf-8").splitlines()) == 60
    assert main(arguments) == 6
    assert main([*arguments, "--overwrite"]) == 0
    assert main(["data", "prepare", "rag", str(world), str(out), "--distractor_share", "2", "--overwrite"]) == 2
