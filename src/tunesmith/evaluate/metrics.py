"""Figures of merit from answers and references, by their published definitions.

It reads no text for meaning (``answers`` does) and knows no model. scikit-learn and rouge-score do the arithmetic where
they have it, and are imported only when used.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any


def classification_metrics(
    predicted: Sequence[int | None], gold: Sequence[int], labels: Sequence[int]
) -> dict[str, Any]:
    """Accuracy, macro and per-class figures and the confusion matrix of label answers.

    An unreadable answer (None) is wrong: it lowers accuracy and its class's recall, and has a column of its own in the
    confusion matrix. Macro averages run over the labels that occur among references or answers; a figure without
    support is 0.

    Returns:
        accuracy, macro_precision, macro_recall, macro_f1, majority_share (accuracy of always answering the commonest
        reference), per_class {label: precision, recall, f1, support}, and confusion_matrix with ``labels`` (references,
        one row of counts each), ``columns`` (answers) and ``counts``.
    """
    from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support

    unreadable = min(labels) - 1
    answers = [unreadable if answer is None else answer for answer in predicted]
    seen = [label for label in labels if label in set(gold) | set(answers)]
    precision, recall, f1, support = precision_recall_fscore_support(
        gold, answers, labels=list(labels), average=None, zero_division=0.0
    )
    macro = precision_recall_fscore_support(gold, answers, labels=seen, average="macro", zero_division=0.0)
    matrix = confusion_matrix(gold, answers, labels=[*labels, unreadable])
    return {
        "accuracy": float(accuracy_score(gold, answers)),
        "macro_precision": float(macro[0]),
        "macro_recall": float(macro[1]),
        "macro_f1": float(macro[2]),
        "majority_share": max(Counter(gold).values()) / len(gold),
        "per_class": {
            str(label): {
                "precision": float(precision[position]),
                "recall": float(recall[position]),
                "f1": float(f1[position]),
                "support": int(support[position]),
            }
            for position, label in enumerate(labels)
        },
        "confusion_matrix": {
            "labels": list(labels),
            "columns": [*labels, "unreadable"],
            "counts": matrix[: len(labels)].tolist(),
        },
    }


def normalize_text(text: str) -> str:
    """Lower case, without ASCII punctuation, the articles a, an, the, and extra white space (SQuAD v1.1 evaluation)."""
    unpunctuated = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", unpunctuated).split())


def exact_match(answer: str, references: Sequence[str]) -> bool:
    """Whether the normalised answer equals one of the normalised references (Rajpurkar et al. 2016)."""
    return any(normalize_text(answer) == normalize_text(reference) for reference in references)


def token_f1(answer: str, references: Sequence[str]) -> float:
    """Best overlap of words with one reference: harmonic mean of precision and recall (Rajpurkar et al. 2016)."""
    return max((_token_f1(answer, reference) for reference in references), default=0.0)


def _token_f1(answer: str, reference: str) -> float:
    answer_words, reference_words = normalize_text(answer).split(), normalize_text(reference).split()
    if not answer_words or not reference_words:
        # Without words there is no overlap to measure; nothing against nothing agrees (the SQuAD 2.0 convention).
        return float(answer_words == reference_words)
    shared = sum((Counter(answer_words) & Counter(reference_words)).values())
    return 2 * shared / (len(answer_words) + len(reference_words))


def string_exact_match(answer: str, groups: Sequence[Sequence[str]]) -> float:
    """Share of groups of which one short answer stands in the answer, both normalised (STR-EM, Gao et al. 2023)."""
    if not groups:
        return 0.0
    text = normalize_text(answer)
    shorts = [[normalize_text(short) for short in group] for group in groups]
    return sum(any(short and short in text for short in group) for group in shorts) / len(shorts)


class RougeL:
    """ROUGE-L F1 against the best reference (Lin 2004), words stemmed."""

    def __init__(self) -> None:
        from rouge_score.rouge_scorer import RougeScorer

        self._scorer = RougeScorer(["rougeL"], use_stemmer=True)

    def __call__(self, answer: str, references: Sequence[str]) -> float:
        scores = (self._scorer.score(reference, answer)["rougeL"].fmeasure for reference in references)
        return float(max(scores, default=0.0))


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean of at least one value."""
    return sum(values) / len(values)
