"""Figures against published definitions and against scikit-learn used independently."""

from __future__ import annotations

import random
import re
import string
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from tunesmith.data.prepare_rag import read_questions
from tunesmith.evaluate.metrics import (
    RougeL,
    class_codes,
    classification_metrics,
    exact_match,
    macro_f1_of_counts,
    normalize_text,
    string_exact_match,
    token_f1,
)

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


LABELS = ("sports", "world", "science")


@settings(max_examples=40)
@given(st.lists(st.tuples(st.sampled_from(LABELS), st.sampled_from([*LABELS, None])), min_size=1, max_size=30))
def test_macro_f1_of_counts_is_that_of_all_figures(pairs: list[tuple[str, str | None]]) -> None:
    gold, answers = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    truth, said = class_codes(answers, gold, LABELS)
    counts = sk.confusion_matrix(truth, said, labels=range(4))[:3]
    found = classification_metrics(answers, gold, LABELS)
    assert macro_f1_of_counts(np.asarray(counts)) == pytest.approx(found["macro_f1"], abs=1e-12)
    assert found["confusion_matrix"]["counts"] == counts.tolist()
    if None not in answers:
        assert found["macro_f1"] == pytest.approx(sk.f1_score(gold, answers, average="macro", zero_division=0))


# --- the published scripts, written again plainly


def squad_normalize(text: str) -> str:
    text = "".join(character for character in text.lower() if character not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def squad_f1(prediction: str, truth: str) -> float:
    """``f1_score`` of SQuAD v1.1's evaluate-v1.1.py."""
    prediction_tokens, truth_tokens = squad_normalize(prediction).split(), squad_normalize(truth).split()
    same = sum((Counter(prediction_tokens) & Counter(truth_tokens)).values())
    if same == 0:
        return 0.0
    precision, recall = same / len(prediction_tokens), same / len(truth_tokens)
    return 2 * precision * recall / (precision + recall)


def alce_string_match(output: str, groups: Sequence[Sequence[str]]) -> float:
    """``compute_str_em`` of ALCE's eval.py for one row."""
    found = [any(squad_normalize(short) in squad_normalize(output) for short in group) for group in groups]
    return float(np.mean(found))


def test_em_f1_and_string_match_are_those_of_the_published_scripts_over_xquad(real_data: Path) -> None:
    questions = read_questions(str(real_data / "rag_xquad_en" / "xquad.en.part1.json"))
    assert len(questions) > 500
    rng = random.Random(1)
    exact = overlapping = 0
    for question in questions:
        gold = question.answers[0]
        passage = question.positives[0].split()
        begin = rng.randrange(len(passage))
        outputs = [gold, f"The {gold.upper()}!", f"{gold} {passage[begin]}", " ".join(passage[begin : begin + 6])]
        for output in outputs:
            truths = [*question.answers, rng.choice(questions).answers[0]]
            assert exact_match(output, truths) == any(squad_normalize(output) == squad_normalize(one) for one in truths)
            assert token_f1(output, truths) == pytest.approx(max(squad_f1(output, truth) for truth in truths))
            groups = [[truths[0]], truths[1:]]
            assert string_exact_match(output, groups) == alce_string_match(output, groups)
            exact += exact_match(output, truths)
            overlapping += 0 < token_f1(output, truths) < 1
    assert len(questions) * 2 <= exact < len(questions) * 3
    assert overlapping > len(questions) / 2


@given(st.text(), st.text())
def test_word_overlap_is_symmetric_and_between_0_and_1(one: str, other: str) -> None:
    assert token_f1(one, [other]) == token_f1(other, [one])
    assert 0 <= token_f1(one, [other]) <= 1
    assert token_f1(one, [one]) == 1
