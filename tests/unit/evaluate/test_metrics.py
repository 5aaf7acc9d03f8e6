"""Figures against published definitions and against scikit-learn used independently."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest
from sklearn import metrics as sk

from tunesmith.data.rows import Row
from tunesmith.errors import DataError
from tunesmith.evaluate.answers import Answer
from tunesmith.evaluate.metrics import (
    RougeL,
    classification_metrics,
    exact_match,
    normalize_text,
    string_exact_match,
    token_f1,
)
from tunesmith.evaluate.tasks import (
    TASKS,
    ExactTask,
    Judged,
    NliTask,
    RagTask,
    ReasoningTask,
    choose_task,
    detect_task,
)


def row(**values: object) -> Row:
    return Row(values, "rows.jsonl", 3)


# --- labels


def test_classification_equals_scikit_learn_on_readable_answers() -> None:
    rng = random.Random(0)
    gold = [rng.randint(0, 1) for _ in range(200)]
    answers = [label if rng.random() < 0.7 else 1 - label for label in gold]
    found = classification_metrics(answers, gold, (0, 1))
    assert found["accuracy"] == sk.accuracy_score(gold, answers)
    assert found["macro_f1"] == pytest.approx(sk.f1_score(gold, answers, average="macro"))
    assert found["macro_precision"] == pytest.approx(sk.precision_score(gold, answers, average="macro"))
    assert found["macro_recall"] == pytest.approx(sk.recall_score(gold, answers, average="macro"))
    assert found["per_class"]["1"]["f1"] == pytest.approx(sk.f1_score(gold, answers))
    assert found["per_class"]["0"]["support"] == gold.count(0)
    assert found["majority_share"] == max(gold.count(0), gold.count(1)) / 200
    matrix = found["confusion_matrix"]
    assert [counts[:2] for counts in matrix["counts"]] == sk.confusion_matrix(gold, answers).tolist()
    assert matrix["labels"] == [0, 1]
    assert matrix["columns"] == [0, 1, "unreadable"]


def test_an_unreadable_answer_is_wrong_and_has_its_own_column() -> None:
    found = classification_metrics([1, None, 0, None], [1, 1, 0, 0], (0, 1))
    assert found["accuracy"] == 0.5
    assert found["confusion_matrix"]["counts"] == [[1, 0, 1], [0, 1, 1]]
    assert found["per_class"]["1"] == {"precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3), "support": 2}
    assert found["macro_f1"] == pytest.approx(2 / 3)


def test_nothing_readable_scores_zero() -> None:
    found = classification_metrics([None, None], [1, 0], (0, 1))
    assert found["accuracy"] == found["macro_f1"] == 0.0


def test_macro_average_leaves_out_labels_that_never_occur() -> None:
    assert classification_metrics([1, 1], [1, 1], (0, 1))["macro_f1"] == 1.0


@pytest.mark.parametrize(
    ("values", "completion", "label"),
    [
        ({"label": "1"}, None, 1),
        ({"label": "entailment"}, None, 1),
        ({"label": "neutral"}, None, 0),
        ({"label": "contradiction"}, None, 0),
        ({"label": 0, "predicted_label": 1}, None, 0),
        ({"true_label": 1, "predicted_label": 0}, '{"predicted_label": 0}', 1),
        ({"true_label": False}, None, 0),
        ({"text": "..."}, '{"thought_process": "x", "predicted_label": 1}', 1),
    ],
)
def test_gold_label_of_a_row(values: dict[str, object], completion: str | None, label: int) -> None:
    assert NliTask().reference(row(**values), completion) == label


@pytest.mark.parametrize(("values", "completion"), [({"label": 2}, None), ({"label": "-"}, None), ({}, "no idea")])
def test_a_row_without_gold_label_is_named(values: dict[str, object], completion: str | None) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl:3"):
        NliTask().reference(row(**values), completion)


# --- words


def test_squad_normalisation_and_exact_match() -> None:
    assert normalize_text("  The  Quick, brown-fox! ") == "quick brownfox"
    assert exact_match("the Eiffel Tower.", ["Rome", "Eiffel tower"])
    assert not exact_match("Eiffel", ["Eiffel tower"])
    assert not exact_match("Eiffel", [])
    # "theatre" and "an" inside words are no articles
    assert normalize_text("A theatre and an Atlanta") == "theatre and atlanta"


def test_squad_token_f1() -> None:
    assert token_f1("in Paris France", ["Paris"]) == pytest.approx(0.5)
    assert token_f1("in Paris", ["London", "Paris"]) == pytest.approx(2 / 3)
    assert token_f1("cat cat dog", ["cat dog dog"]) == pytest.approx(2 / 3)  # counts matter
    assert token_f1("London", ["Paris"]) == 0.0
    assert token_f1("", ["Paris"]) == 0.0
    assert token_f1("the", ["a"]) == 1.0
    assert token_f1("anything", []) == 0.0


def test_string_exact_match_is_the_share_of_groups_contained() -> None:
    text = "It was built in 1889 by the company of Gustave Eiffel."
    assert string_exact_match(text, [["1889"], ["Gustave Eiffel", "G. Eiffel"]]) == 1.0
    assert string_exact_match(text, [["1890", "1889"], ["Rome"]]) == 0.5
    assert string_exact_match("", [["x"]]) == 0.0
    assert string_exact_match(text, []) == 0.0
    assert string_exact_match(text, [["The"]]) == 0.0  # nothing is left of it to look for


def test_rouge_l_is_the_longest_common_subsequence_of_words() -> None:
    rouge_l = RougeL()
    assert rouge_l("the cat sat", ["the cat sat"]) == 1.0
    # longest common subsequence of 3 words; precision 3/4, recall 3/5
    assert rouge_l("police kill the gunman", ["police killed the big gunman now"]) == pytest.approx(2 * 4 / (4 + 6))
    assert rouge_l("x", ["a", "x"]) == 1.0
    assert rouge_l("", ["a"]) == 0.0


def test_rag_references_and_figures() -> None:
    task = RagTask()
    reference = task.reference(
        row(answers=["Paris, France", None, ""], **{"answer-short": [["Paris"], ["France", "FR"], []]}), "ignored"
    )
    assert reference == {"answers": ["Paris, France"], "groups": [["Paris"], ["France", "FR"]]}
    assert task.reference(row(), "Reasons. <ANSWER>: Rome") == {"answers": ["Rome"], "groups": [["Rome"]]}
    with pytest.raises(DataError, match=r"rows\.jsonl:3"):
        task.reference(row(answers=[]), None)
    outputs = ["<ANSWER>: paris france", "I think it is Paris", ""]
    judged = []
    for output in outputs:
        answer = task.read(output)
        judged.append(Judged(answer, reference, task.correct(answer, reference)))
    found = task.score(judged)
    assert found["exact_match"] == pytest.approx(1 / 3)
    assert found["f1"] == pytest.approx((1.0 + 2 / 7 + 0.0) / 3)
    assert found["string_exact_match"] == pytest.approx((1.0 + 0.5 + 0.0) / 3)
    assert 1 / 3 < found["rouge_l"] < found["f1"] + 0.1


def test_exact_task() -> None:
    task = ExactTask()
    assert task.correct(task.read(" A dog. \n"), task.reference(row(), "dog"))
    assert not task.correct(task.read("a cat"), "dog")
    assert not task.correct(task.read(""), "dog")
    assert task.correct(task.read("[]"), "[]")
    assert not task.correct(task.read("()"), "[]")
    with pytest.raises(DataError, match=r"rows\.jsonl:3"):
        task.reference(row(), "  ")


# --- numbers


def test_gsm8k_gold_answers_score_one_and_shuffled_ones_nearly_zero(shared_data: Path) -> None:
    lines = (shared_data / "reason_gsm8k" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    solutions = [json.loads(line)["answer"] for line in lines]
    assert len(solutions) == 7473
    task = ReasoningTask()
    references = [task.reference(row(), solution) for solution in solutions]
    # an independent reading of the convention: the text after the mark, commas removed
    plain = [float(solution.split("####")[1].strip().replace(",", "")) for solution in solutions]
    assert [float(reference) for reference in references] == plain

    def score(outputs: list[str]) -> float:
        answers = [task.read(output) for output in outputs]
        judged = [Judged(a, r, task.correct(a, r)) for a, r in zip(answers, references, strict=True)]
        return float(task.score(judged)["exact_match"])

    assert score(solutions) == 1.0
    assert score([f"So the answer is ${float(number):,.2f}." for number in plain]) == 1.0
    shuffled = random.Random(0).sample(solutions, len(solutions))
    assert score(shuffled) < 0.03


def test_reasoning_reference_falls_back_to_columns_and_names_rows_without_number() -> None:
    task = ReasoningTask()
    assert task.reference(row(answer="#### 5"), None) == "5"
    with pytest.raises(DataError, match=r"rows\.jsonl:3.*no number"):
        task.reference(row(), "no number")


# --- choosing a task


@pytest.mark.parametrize(
    ("format_name", "values", "task"),
    [
        ("nli", {"premise": "p"}, "nli"),
        ("rag", {"prompt": "p"}, "rag"),
        ("text", {"text": '[INST] ... {"predicted_label": ...} [/INST] {"predicted_label": 0}'}, "nli"),
        ("question_answer", {"question": "q", "answer": "so\n#### 5"}, "reasoning"),
        ("prompt_completion", {"prompt": "p", "response": "hence \\boxed{5}"}, "reasoning"),
        ("prompt_completion", {"prompt": "p", "response": "hence. The answer is 5"}, "reasoning"),
        ("prompt_completion", {"prompt": "p", "completion": "a word"}, "exact"),
        ("messages", {"messages": [{"role": "user", "content": "5 apples"}]}, "exact"),
    ],
)
def test_the_task_follows_from_the_rows(format_name: str, values: dict[str, object], task: str) -> None:
    assert detect_task(format_name, [row(**values)] * 3).name == task
    assert choose_task("auto", format_name, [row(**values)]).name == task


def test_a_named_task_is_taken() -> None:
    assert Counter(choose_task(name, "text", []).name for name in TASKS) == Counter(TASKS.keys())
    assert len(TASKS) == 4
    with pytest.raises(Exception, match="scores nothing"):
        choose_task("none", "text", [])


@pytest.mark.parametrize("name", sorted(TASKS))
def test_unreadable_answers_are_never_correct(name: str) -> None:
    task = TASKS[name]()
    reference = {"answers": [""], "groups": [[""]]} if name == "rag" else "" if name != "nli" else 0
    assert not task.correct(Answer(None, "unreadable"), reference)
