"""Reading labels, numbers and spans out of generated text."""

from __future__ import annotations

import json

import pytest

from tunesmith.evaluate.answers import NOTHING, Answer, canonical_number, read_label, read_number, read_span

LABELS = [
    ('{"thought_process": "step 1: ...", "predicted_label": 0}', 0, "json"),
    (' \n{"predicted_label": 1}\n', 1, "json"),
    (json.dumps({"thought_process": 'a } brace, a "quote", "predicted_label": 0 {x', "predicted_label": 1}), 1, "json"),
    ('Here it is: {"predicted_label": 0} and more', 0, "json_in_text"),
    ('```json\n{"thought_process": "x", "predicted_label": 1}\n```', 1, "json_in_text"),
    ('{"thought_process": "two\nlines", "predicted_label": 1}', 1, "json_in_text"),
    ('{"predicted_label": 0}{"predicted_label": 1}', 0, "json_in_text"),
    ('{"predicted_label": "1"}', 1, "json_string"),
    ('so {"predicted_label": " 0 "}', 0, "json_string"),
    ('{"predicted_label": true}', 1, "json_boolean"),
    ('{"predicted_label": 1.0}', 1, "json_float"),
    ('{"thought_process": "raw "quotes" and } here", "predicted_label": 1}', 1, "label_key"),
    ("{'thought_process': 'x', 'predicted_label': 0}", 0, "label_key"),
    ('{"thought_process": "cut off later", "predicted_label": 1', 1, "label_key"),
    ("1", 1, "bare_label"),
    ("0.", 0, "bare_label"),
    ("The premise says so.\nLabel: **1**", 1, "label_phrase"),
    ("so the label is 0.", 0, "label_phrase"),
]

UNREADABLE_LABELS = [
    "",
    "   ",
    "The hypothesis is entailed by the premise, so this is an entailment.",
    '{"thought_process": "x", "predicted_label": 5}',
    '{"thought_process": "x", "predicted_label": -1}',
    '{"thought_process": "x", "predicted_label": 0.5}',
    '{"thought_process": "x", "predicted_label": null}',
    '{"thought_process": "x", "predicted_label": "entailment"}',
    '{"thought_process": "x", "predicted_label": [1]}',
    '{"thought_process": "the format is {\\"predicted_label\\": 0}, I think',
    '{"thought_process": "x predicted_label: 0 y"}',
    '{"thought_process": "the label is 1\n and so on',
    '{"predicted_label": 1, "predicted_label": 0}',
    '{"thought "process": "x", "predicted_label": 1}, or "predicted_label": 0}',
    '{"thought_process": "...", "predicted_label": ...}',
    '{"thought "x": 1, "predicted_label": 15}',
    '{"thought "x": 1, "predicted_label": 1.5}',
    "5",
    "label: 5",
    "label: 0\nlabel: 1",
    "There is 1 man",
    "{" * 5000,
    '{"a":' * 20000,
]


@pytest.mark.parametrize(("text", "label", "how"), LABELS)
def test_label_is_read_and_the_rule_is_named(text: str, label: int, how: str) -> None:
    answer = read_label(text)
    assert answer == Answer(label, how)
    assert type(answer.value) is int


@pytest.mark.parametrize("text", UNREADABLE_LABELS, ids=range(len(UNREADABLE_LABELS)))
def test_nothing_is_guessed_when_there_is_no_declared_label(text: str) -> None:
    assert read_label(text) == NOTHING
    assert not read_label(text).readable


def test_other_labels_can_be_declared() -> None:
    assert read_label('{"predicted_label": 2}', labels=(0, 1, 2)).value == 2


NUMBERS = [
    ("She has 3 * 4 = 12 eggs.\n#### 12", "12", "hash_marks"),
    ("#### 1,080", "1080", "hash_marks"),
    ("#### $12.50", "25/2", "hash_marks"),
    ("#### -3", "-3", "hash_marks"),
    ("#### 50%", "50", "hash_marks"),
    ("#### 7 apples", "7", "hash_marks"),
    ("#### 18\n\nQuestion: another one? #### 22", "18", "hash_marks"),
    ("#### 18 and the answer is \\boxed{19}", "18", "hash_marks"),
    ("####\nThe answer is 4", "4", "answer_phrase"),
    ("so \\boxed{\\frac{1}{2}} holds", "1/2", "boxed"),
    ("\\boxed{3} then \\boxed{4}", "4", "boxed"),
    ("\\boxed{1{,}000}", "1000", "boxed"),
    ("\\boxed{\\dfrac{-6}{4}}", "-3/2", "boxed"),
    ("\\boxed{x + 1}", "x + 1", "boxed"),
    ("The answer is 18 dollars.", "18", "answer_phrase"),
    ("The answer is: **0.5**", "1/2", "answer_phrase"),
    ("**Answer:** 7", "7", "answer_phrase"),
    ("First the answer is 3. No, the answer is 4.", "4", "answer_phrase"),
    ("The answer is (B).", "(b)", "answer_phrase"),
    ("It is 5 - 3 = 2.", "2", "last_number"),
    ("between 10-15", "15", "last_number"),
    ("about 1,234,567.50 in all", "2469135/2", "last_number"),
    ("3/4", "3/4", "last_number"),
]


@pytest.mark.parametrize(("text", "value", "how"), NUMBERS)
def test_final_number_is_read_and_the_rule_is_named(text: str, value: str, how: str) -> None:
    assert read_number(text) == Answer(value, how)


@pytest.mark.parametrize("text", ["", "no number here", "####", "\\boxed{", "1" * 6000, "#### " + "9" * 5000, "1/0"])
def test_no_number_is_unreadable(text: str) -> None:
    assert not read_number(text).readable


def test_equal_numbers_have_one_spelling() -> None:
    same = [
        "1080.50",
        "1,080.5",
        "$1080.5",
        "2161/2",
        "1080.5%",
        "\\$1{,}080.50",
        "1.0805e3",
        "\\frac{2161}{2}",
        "1080.5.",
    ]
    assert {canonical_number(text) for text in same} == {"2161/2"}
    assert canonical_number("2, 3") is None
    assert canonical_number("1e999999999") is None


@pytest.mark.parametrize(
    ("text", "value", "how"),
    [
        ("Paris", "Paris", "text"),
        (" in Paris, [1]\n", "in Paris, [1]", "text"),
        ("##Reason: the document says ... ##begin_quote## x ##end_quote##\n<ANSWER>: Paris", "Paris", "answer_tag"),
        ("<answer>Paris</answer> and more", "Paris", "answer_tag"),
        ("Because of document 2, the answer is Paris.", "Paris.", "answer_phrase"),
        ("Thoughts.\nFinal answer: Paris", "Paris", "answer_phrase"),
        ("The answer is Rome. <ANSWER>: Paris", "Paris", "answer_tag"),
    ],
)
def test_answer_part_of_a_text(text: str, value: str, how: str) -> None:
    assert read_span(text) == Answer(value, how)


@pytest.mark.parametrize("text", ["", "  \n", "reasons <ANSWER>: "])
def test_empty_answer_is_unreadable(text: str) -> None:
    assert read_span(text) == NOTHING
