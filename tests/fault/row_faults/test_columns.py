"""Columns beside the turns of a chat: read, renamed or named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from row_faults import CALL, THINK_TEMPLATE, Call, answer, asked, refused
from tunesmith import notices

CHOICE = [{"prompt": "q", "completion": "WRONG", "better": "RIGHT"}]


@pytest.mark.parametrize("verb", ["preview", "check", "train"])
def test_a_renamed_column_has_to_exist(call: Call, verb: str) -> None:
    refused(call(CHOICE, verb, columns='{"completion": "beter"}'), 2, "'beter'", "better")
    refused(call(CHOICE, verb, columns='{"completon": "better"}'), 2, "'completon'", "completion")


def test_a_renamed_column_is_read(call: Call) -> None:
    found = call(CHOICE, columns='{"completion": "better"}')
    assert found.trained == ["RIGHT</s>"]
    assert any("not read: completion" in note for note in found.notes)


def test_system_and_history_are_read(call: Call) -> None:
    row = {"system": "SYS", "instruction": "q2", "output": "a2", "history": [["q1", "a1"]]}
    (text,) = call([row]).texts
    assert [word for word in ("SYS", "q1", "a1", "q2", "a2") if word in text] == ["SYS", "q1", "a1", "q2", "a2"]
    beside = [{"system": "SYS", "messages": [asked(), answer()]}]
    inside = [{"messages": [{"role": "system", "content": "SYS"}, asked(), answer()]}]
    assert call(beside).texts == call(inside).texts


@pytest.mark.parametrize("verb", ["preview", "check", "train"])
def test_a_column_that_formats_know_is_refused_where_it_is_not_read(call: Call, verb: str) -> None:
    row = {"prompt": "q", "completion": "a"}
    refused(call([row | {"system": "SYS"}], verb), 3, "rows.jsonl:1", "'system'")
    if verb == "preview":
        refused(call([row | {"tools": CALL[0]["tools"]}]), 3, "'tools'")
        refused(call([row | {"history": [["q", "a"]]}]), 3, "'history'")
        refused(call([row | {"chat_template_kwargs": {"x": 1}}]), 3, "'chat_template_kwargs'")
        empty = {"system": " ", "tools": "[]", "history": [], "chat_template_kwargs": "{}"}  # as tables hold nothing
        assert call([row | empty]).code == 0


def test_a_row_brings_its_own_switches_of_the_template(call: Call, template: Callable[[str], Path]) -> None:
    path = template(
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}{{ m.content }}{{ eos_token }}"
        "{% else %}{{ style if style is defined else 'plain' }} {{ m.content }} {% endif %}{% endfor %}"
    )
    chat = {"messages": [asked(), answer()]}
    loud, told = {"style": "LOUD"}, json.dumps({"style": "LOUD"})
    rows = [chat | {"chat_template_kwargs": loud}, chat | {"chat_template_kwargs": told}, chat]
    assert sorted(call(rows, template=path).texts) == ["<s>LOUD q a</s>"] * 2 + ["<s>plain q a</s>"]
    set_for_all = call(rows, template=path, chat_template_kwargs='{"style": "SET"}')
    assert sorted(set_for_all.texts) == ["<s>LOUD q a</s>"] * 2 + ["<s>SET q a</s>"], "a row's own switch counts more"
    refused(call([chat | {"chat_template_kwargs": {"stile": 1}}], template=path), 3, "rows.jsonl:1", "stile")
    refused(call([chat | {"chat_template_kwargs": [1]}], template=path), 3, "must be an object")
    for name in ("role", "messages", "m"):  # words of the template that are no names which it looks up
        refused(call([chat | {"chat_template_kwargs": {name: 1}}], template=path), 3, "rows.jsonl:1", name)
    asking = [{"question": "q", "answer": "a", "chat_template_kwargs": loud}]
    refused(call(asking, template="question-answer"), 3, "rows.jsonl:1", "style")


def test_switches_of_the_settings_that_no_template_reads_are_said(call: Call, template: Callable[[str], Path]) -> None:
    path = template(THINK_TEMPLATE.replace("<think>\n", ""))
    rows = [{"messages": [asked(), answer()]}]
    assert call(rows, template=path, chat_template_kwargs='{"stile": 1}').code == 0
    assert any("does not read stile" in text for text in notices.collected())
    refused(call(rows, template=path, chat_template_kwargs='{"messages": []}'), 2, "messages")
