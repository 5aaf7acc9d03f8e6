"""The questions over documents: the answer stands in the positive passage and in no way depends on order."""

from __future__ import annotations

import re

import pytest

from tunesmith.errors import DataError
from tunesmith.synthetic import rag
from tunesmith.synthetic import vocabulary as v

TRAIN, HELDOUT = rag.make_rag(800, 150, seed=0)


def test_the_answer_is_a_span_of_the_positive_passage_and_its_person_is_in_no_other() -> None:
    for row in TRAIN + HELDOUT:
        (passage,) = row["positive_passages"]
        (answer,) = row["answers"]
        assert row["answer-short"] == [[answer]]
        assert re.search(rf"\b{answer}\b", passage)
        (name,) = [name for name in v.NAMES if re.search(rf"\b{name}\b", row["query"])]
        assert name in passage
        assert 2 <= len(row["negative_passages"]) <= 4
        assert all(name not in other for other in row["negative_passages"])


def _fact_pairs(row: dict[str, object]) -> list[tuple[str, str]]:
    """Held-out pairs in the sentence that holds the answer."""
    answer, passage = row["answers"][0], row["positive_passages"][0]  # type: ignore[index]
    marker = {"town": "lives in", "job": "is a", "animal": "keeps", "fruit": "likes", "count": "has", "colour": "owns"}
    topic = str(row["topic"])
    (told,) = [s for s in passage.split(". ") if marker.get(topic, "waits") in s and str(answer) in s]
    return v.held_out_pairs([told])


def test_held_out_facts_are_never_asked_in_training() -> None:
    assert all(not _fact_pairs(row) for row in TRAIN)
    assert all(_fact_pairs(row) for row in HELDOUT)


def test_every_topic_is_asked() -> None:
    assert {row["topic"] for row in TRAIN} == set(rag.TOPICS)
    assert {row["topic"] for row in HELDOUT} == set(rag.HELD_OUT_TOPICS)


def test_the_same_seed_gives_the_same_rows() -> None:
    assert rag.make_rag(60, 20, seed=3) == rag.make_rag(60, 20, seed=3)
    assert rag.make_rag(60, 20, seed=3) != rag.make_rag(60, 20, seed=4)


def test_asking_for_more_rows_than_there_are_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rag, "_MAX_DRAWS_PER_ROW", 1)
    with pytest.raises(DataError, match="ask for fewer"):
        rag.make_rag(10, 50, seed=0)
