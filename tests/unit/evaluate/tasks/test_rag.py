"""Questions over documents: answers, and the passages they cite, on real data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tunesmith.data.prepare_rag import prepare_rag, read_questions
from tunesmith.data.row import Row
from tunesmith.errors import DataError
from tunesmith.evaluate.tasks import RagTask
from tunesmith.evaluate.tasks.rag import supporting_passages


def test_references_and_figures(row: Callable[..., Row]) -> None:
    task = RagTask()
    reference = task.reference(
        row(answers=["Paris, France", None, ""], **{"answer-short": [["Paris"], ["France", "FR"], []]}), "ignored"
    )
    assert reference == {"answers": ["Paris, France"], "groups": [["Paris"], ["France", "FR"]]}
    assert task.reference(row(), "Reasons. <ANSWER>: Rome") == {"answers": ["Rome"], "groups": [["Rome"]]}
    with pytest.raises(DataError, match=r"rows\.jsonl:3"):
        task.reference(row(answers=[]), None)
    scored = [task.score_answer(output, reference) for output in ("<ANSWER>: paris france", "I think it is Paris", "")]
    found = task.figures(scored)
    assert found["exact_match"] == pytest.approx(1 / 3)
    assert found["f1"] == pytest.approx((1.0 + 2 / 7 + 0.0) / 3)
    assert found["string_exact_match"] == pytest.approx((1.0 + 0.5 + 0.0) / 3)
    assert 1 / 3 < found["rouge_l"] < found["f1"] + 0.1
    assert "citation_precision" not in found


@pytest.mark.parametrize(
    ("values", "completion", "supporting"),
    [
        ({"passages": ["a", "b", "c"], "positive_passages": ["c", "a"]}, "see [2]", [1, 3]),
        ({"passages": ["a", "b"], "positive_passages": ["c"]}, "see [2]", None),  # the prompt holds distractors alone
        ({"passages": ["a"], "positive_passages": ["a"]}, "no citation", None),  # nothing tells passages apart
        ({"passages": ["a", "b"], "positive_passages": ["a", "b"]}, "see [2].", [2]),
        ({}, "It is so [3][1].", [1, 3]),
        ({}, "It is so.", None),
        ({}, None, None),
    ],
)
def test_which_passages_support_an_answer(
    values: dict[str, object], completion: str | None, supporting: list[int] | None
) -> None:
    assert supporting_passages(values, completion) == supporting


@pytest.mark.parametrize(
    ("output", "precision", "recall"),
    [
        ("Rome [1][3].", 1.0, 1.0),
        ("Rome [1].", 1.0, 0.5),
        ("Rome [1, 2].", 0.5, 0.5),
        ("By Documents 1 and 3 and source [9]: Rome", 2 / 3, 1.0),
        ("Rome.", 0.0, 0.0),
        ("", 0.0, 0.0),
    ],
)
def test_citation_precision_and_recall(row: Callable[..., Row], output: str, precision: float, recall: float) -> None:
    task = RagTask()
    reference = task.reference(
        row(answers=["Rome"], passages=["a", "b", "c"], positive_passages=["a", "c"]), completion=None
    )
    scores = task.score_answer(output, reference).scores
    assert scores["citation_precision"] == pytest.approx(precision)
    assert scores["citation_recall"] == recall


def test_rows_that_say_nothing_of_support_are_left_out_of_the_mean(row: Callable[..., Row]) -> None:
    task = RagTask()
    references = [task.reference(row(), "Rome [1]."), task.reference(row(), "Rome.")]
    figures = task.figures([task.score_answer("Rome [1].", reference) for reference in references])
    assert figures["exact_match"] == figures["citation_precision"] == figures["citation_recall"] == 1.0


def test_alce_answers_cite_themselves_and_hold_no_marks(real_data: Path, row: Callable[..., Row]) -> None:
    questions = read_questions(str(real_data / "rag_alce_asqa_prompts" / "asqa_default.json"))
    assert len(questions) == 4
    task = RagTask()
    outputs = [question.answers[0] for question in questions]
    references = [task.reference(row(), output) for output in outputs]
    assert [reference["supporting"] for reference in references] == [[1, 3], [2, 3], [1, 2], [1, 2]]
    assert not any("[" in reference["answers"][0] for reference in references)
    figures = task.figures([task.score_answer(*pair) for pair in zip(outputs, references, strict=True)])
    assert set(figures.values()) == {1.0}
    without = [output.replace("[", "(").replace("]", ")") for output in outputs]
    bare = task.figures([task.score_answer(*pair) for pair in zip(without, references, strict=True)])
    assert bare["citation_precision"] == bare["citation_recall"] == 0.0
    assert bare["rouge_l"] > 0.9


@pytest.mark.parametrize(
    ("source", "number", "recall"),
    [("rag_xquad_en/xquad.en.part1.json", 500, 1.0), ("rag_hotpot/dev20.jsonl", 20, 0.5)],
)
def test_the_projects_own_chains_of_thought_cite_what_supports_them(
    real_data: Path, source: str, number: int, recall: float
) -> None:
    """A chain quotes one passage; a HotpotQA question is supported by two."""
    prepared = prepare_rag(str(real_data / source), chain_of_thought=True, seed=3)
    rows = [Row(values, source, line) for line, values in enumerate(prepared.rows, start=1)]
    assert len(rows) >= number
    task = RagTask()
    references = [task.reference(row, row.values["generated_answer"]) for row in rows]
    assert all(reference["supporting"] for reference in references)
    figures = task.figures(
        [
            task.score_answer(row.values["generated_answer"], reference)
            for row, reference in zip(rows, references, strict=True)
        ]
    )
    assert figures["exact_match"] == figures["f1"] == figures["citation_precision"] == 1.0
    assert recall <= figures["citation_recall"] <= 1.0
    turned = [*rows[1:], rows[0]]
    shuffled = [
        task.score_answer(other.values["generated_answer"], reference)
        for other, reference in zip(turned, references, strict=True)
    ]
    assert task.figures(shuffled)["exact_match"] < 0.15
    assert task.figures(shuffled)["citation_precision"] < 0.6


@pytest.mark.parametrize(
    ("output", "kind"),
    [
        ("It is Rome, they say", "right answer among other words"),
        ("Old Paris", "another answer"),
        ("New York", "partly right"),
    ],
)
def test_kinds_of_mistakes(row: Callable[..., Row], output: str, kind: str) -> None:
    task = RagTask()
    reference = task.reference(row(answers=["Rome" if "right" in kind and "other" in kind else "New Amsterdam"]), None)
    assert task.mistake(task.score_answer(output, reference)) == kind
