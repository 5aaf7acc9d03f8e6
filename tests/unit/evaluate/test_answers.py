"""Reading labels, numbers and spans out of generated text."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.evaluate.answers import (
    NOTHING,
    Answer,
    read_cited_span,
    read_class,
    read_json,
    read_label,
    read_number,
    read_span,
)

LABELS = [
    ('{"thought_process": "step 1: ...", "predicted_label": 0}', 0, "json"),
    (' \n{"predicted_label": 1}\n', 1, "json"),
    (json.dumps({"thought_process": 'a } brace, a "quote", "predicted_label": 0 {x', "predicted_label": 1}), 1, "json"),
    ('Here it is: {"predicted_label": 0} and more', 0, "json_in_text"),
    ('```json\n{"thought_process": "x", "predicted_label": 1}\n```', 1, "json_in_text"),
    ('{"thought_process": "two\nlines", "predicted_label": 1}', 1, "json_in_text"),
    ('{"predicted_label": 0}{"predicted_label": 1}', 0, "json_in_text"),
    ('{{"predicted_label": 1}}', 1, "json_in_text"),
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
    ("\\boxed{x + 1}", "x+1", "boxed"),
    ("\\boxed{x = 1{,}000}", "1000", "boxed"),
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


# --- labels in words

CHOICES = ["A", "B", "C"]
MOODS = ["spam", "not spam", "yes", "no"]

CLASSES = [
    ('{"label": "spam"}', MOODS, "spam", "json"),
    ('{"why": "x", "label": " Not  Spam. "}', MOODS, "not spam", "json"),
    ('Sure:\n{"label": "yes"}', MOODS, "yes", "json_in_text"),
    ('{"label": 1}', ["0", "1"], "1", "json"),
    ('{"label": true}', ["true", "false"], "true", "json"),
    ("Spam", MOODS, "spam", "bare_label"),
    (" **not spam**.\n", MOODS, "not spam", "bare_label"),
    ("(B)", CHOICES, "B", "bare_label"),
    ("x > 13\nAnswer: C", CHOICES, "C", "answer_phrase"),
    ("ANSWER:B", CHOICES, "B", "answer_phrase"),
    ("The answer is B.", ["(A)", "(B)"], "(B)", "answer_phrase"),
    ("The answer is SPAM.", MOODS, "spam", "answer_phrase"),
    ("ANS:A", CHOICES, "A", "answer_phrase"),
    ("CORRECT OPTION:OPTION C", CHOICES, "C", "answer_phrase"),
    ("So the answer is (B) 250 m.", CHOICES, "B", "answer_phrase"),
    ("Correct answer - A", CHOICES, "A", "answer_phrase"),
    ("##Reason: no\n<ANSWER>: yes", MOODS, "yes", "answer_phrase"),
    ("The answer is A. No, the answer is B.", CHOICES, "B", "answer_phrase"),
    ("The answer is B, not option C.", CHOICES, "B", "answer_phrase"),
    ("The label is not spam because", MOODS, "not spam", "answer_phrase"),
    ("That makes choice B.", CHOICES, "B", "option_phrase"),
    ("240 - 120 = 120\nB", CHOICES, "B", "lone_line"),
    ("yes\nfor a reason that is long", MOODS, "yes", "lone_line"),
]


@pytest.mark.parametrize(("text", "labels", "label", "how"), CLASSES)
def test_class_is_read_and_the_rule_is_named(text: str, labels: list[str], label: str, how: str) -> None:
    assert read_class(text, labels) == Answer(label, how)
    assert read_class(text, labels[::-1]) == Answer(label, how)


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("", MOODS),
        ("This looks like spam to me", MOODS),
        ("The answer is no longer known", MOODS),
        ("The answer is a mixture of both", CHOICES),
        ("The answer is B or C", CHOICES),
        ("The answer is yes/no", MOODS),
        ("Option A is wrong and option B is right", CHOICES),
        ("yes\nand then\nno", MOODS),
        ("b", CHOICES),
        ("the answer is 1.5", ["0", "1"]),
        ("the answer is D", CHOICES),
        ('{"label": "ham"}', MOODS),
        ('{"label": ["spam"]}', MOODS),
        ('{"label": "spam", "label": "yes"}', MOODS),
        ('{"why": "the label is spam", "lab', MOODS),
        ("{" * 3000, MOODS),
        ("answer" + " is" * 5000, MOODS),
    ],
    ids=range(17),
)
def test_no_class_is_guessed(text: str, labels: list[str]) -> None:
    assert read_class(text, labels) == NOTHING


@settings(max_examples=50)
@given(
    st.lists(st.sampled_from(["good", "bad", "the answer is", "option", "{", '"label":', ".", "\n", "or"]), max_size=8)
)
def test_a_class_is_a_declared_one_or_nothing(words: list[str]) -> None:
    answer = read_class(" ".join(words), ["good", "bad"])
    assert answer == NOTHING or answer.value in words


@pytest.mark.parametrize("label", ["good", "so so", "C++", "3", "a.b"])
@pytest.mark.parametrize("shape", ["{}", "The answer is {}.", '{{"label": "{}"}}', "Well.\n\n{}", "<ANSWER>: {}"])
def test_every_label_can_be_said_in_every_way(label: str, shape: str) -> None:
    answer = read_class(shape.format(label), ["good", "so so", "C++", "3", "a.b", "good enough"])
    assert answer.value == label


# --- JSON


@pytest.mark.parametrize(
    ("text", "value", "how"),
    [
        (' {"a": [1, null]} ', {"a": [1, None]}, "json"),
        ("null", None, "json"),
        ('"x"', "x", "json"),
        ("Here:\n```json\n[1, 2]\n```\nDone.", [1, 2], "json_fenced"),
        ('So {"a": 1} and {"b": 2}', {"a": 1}, "json_in_text"),
        ('```\n{"a": 1}\n```\nor\n```\n{"a": 2}\n```', {"a": 1}, "json_in_text"),
    ],
)
def test_json_is_read_and_the_rule_is_named(text: str, value: object, how: str) -> None:
    assert read_json(text) == Answer(value, how)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no",
        "[1, 2",
        '{"a": NaN}',
        "Infinity",
        '{"a": 1, "a": 1}',
        "{'a': 1}",
        "see [1]",
        "[" * 100000,
        '{"a":' * 5000,
    ],
    ids=range(10),
)
def test_what_is_no_json_is_unreadable(text: str) -> None:
    assert read_json(text) == NOTHING


# --- citations


@pytest.mark.parametrize(
    ("text", "value", "cited"),
    [
        ("Rome [1][3].", "Rome.", (1, 3)),
        ("Rome [2, 4; 5] and Oslo [Document 1]", "Rome and Oslo", (1, 2, 4, 5)),
        ("Passage 2 says so, and Documents 3 and 4.", "Passage 2 says so, and Documents 3 and 4.", (2, 3, 4)),
        ("Rome. Source: 7", "Rome. Source: 7", (7,)),
        ("##Reason: Passage [2] says ##begin_quote##[9] x##end_quote##\n<ANSWER>: Rome", "Rome", (2,)),
        ("##Reason: ##begin_quote##[9] cut off [8]", "##Reason: ##begin_quote## cut off", ()),
        ("Built in [1889], source 2.5 and document 12a", "Built in [1889], source 2.5 and document 12a", ()),
        ("Rome", "Rome", ()),
    ],
)
def test_citations_are_read_and_taken_out(text: str, value: str, cited: tuple[int, ...]) -> None:
    answer = read_cited_span(text)
    assert (answer.value, answer.cited) == (value, cited)


def test_a_citation_alone_is_no_answer() -> None:
    assert read_cited_span(" [2] ") == Answer(None, "unreadable", (2,))


def test_a_small_letter_is_no_choice() -> None:
    """Labels of one character are compared as they are: "a" stands in every other sentence."""
    assert read_class("The answer is a.", CHOICES) == NOTHING
    assert read_class("The answer is a.", ["a", "b"]) == Answer("a", "answer_phrase")
