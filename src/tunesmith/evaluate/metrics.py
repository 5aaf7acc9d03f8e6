"""Figures of merit from answers and references, by their published definitions.

It reads no text for meaning (``answers`` does) and knows no model. scikit-learn and rouge-score do the arithmetic where
they have it, and are imported only when used.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Label = int | str


def classification_metrics(
    predicted: Sequence[Label | None], gold: Sequence[Label], labels: Sequence[Label]
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

    truth, answers = class_codes(predicted, gold, labels)
    codes = list(range(len(labels)))
    seen = sorted({*truth, *answers} - {len(labels)})
    precision, recall, f1, support = precision_recall_fscore_support(
        truth, answers, labels=codes, average=None, zero_division=0.0
    )
    macro = precision_recall_fscore_support(truth, answers, labels=seen, average="macro", zero_division=0.0)
    matrix = confusion_matrix(truth, answers, labels=[*codes, len(labels)])
    return {
        "accuracy": float(accuracy_score(truth, answers)),
        "macro_precision": float(macro[0]),
        "macro_recall": float(macro[1]),
        "macro_f1": float(macro[2]),
        "majority_share": max(Counter(gold).values()) / len(gold),
        "per_class": {
            str(label): {
                "precision": float(precision[code]),
                "recall": float(recall[code]),
                "f1": float(f1[code]),
                "support": int(support[code]),
            }
            for code, label in enumerate(labels)
        },
        "confusion_matrix": {
            "labels": list(labels),
            "columns": [*labels, "unreadable"],
            "counts": matrix[: len(labels)].tolist(),
        },
    }


def class_codes(
    predicted: Sequence[Label | None], gold: Sequence[Label], labels: Sequence[Label]
) -> tuple[list[int], list[int]]:
    """References and answers as positions in ``labels``; an unreadable answer is one past the last."""
    code = {label: position for position, label in enumerate(labels)}
    return [code[label] for label in gold], [len(labels) if label is None else code[label] for label in predicted]


def macro_f1_of_counts(counts: NDArray[np.int64]) -> float:
    """Macro F1, as ``classification_metrics`` means it, of a confusion matrix [labels, labels + 1]."""
    right = counts.diagonal()
    said_or_true = counts.sum(axis=1) + counts[:, :-1].sum(axis=0)
    occurs = said_or_true > 0
    return float((2 * right[occurs] / said_or_true[occurs]).mean())


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
