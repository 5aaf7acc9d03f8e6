"""Thoughts, marks and further keys of turns, and empty answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from row_faults import THINK_TEMPLATE, TOOLS_TEMPLATE, Call, answer, asked, refused


@pytest.mark.parametrize("name", ["reasoning_content", "thinking", "reasoning"])
def test_thoughts_that_a_template_does_not_write_are_refused(call: Call, name: str) -> None:
    refused(
        call([{"messages": [asked(), answer(**{name: "THOUGHT"})]}]), 3, "rows.jsonl:1", "reasoning_content of turn"
    )


def test_an_unknown_key_of_a_message_is_refused(call: Call) -> None:
    refused(call([{"messages": [asked(), answer(score=3)]}]), 3, "score of turn 1")
    refused(call([{"messages": [{**asked(), "mood": "glad"}, answer()]}]), 3, "mood of turn 0")


@pytest.mark.parametrize("value", [0, False, 0.0])
def test_a_key_that_says_no_is_a_key(call: Call, value: Any) -> None:
    refused(call([{"messages": [asked(), answer(masked=value)]}]), 3, "masked of turn 1")
    nothing: tuple[Any, ...] = (None, "", " ", [], {})
    rows = [{"messages": [asked(str(index)), answer(masked=empty)]} for index, empty in enumerate(nothing)]
    assert call(rows).code == 0


def test_keys_of_content_parts_are_keys(call: Call) -> None:
    part = {"type": "text", "text": "a"}
    refused(call([{"messages": [asked(), answer([part | {"citations": ["c"]}])]}]), 3, "citations of content of turn 1")
    told = call([{"messages": [asked(), answer([part | {"cache_control": {"type": "ephemeral"}}])]}])
    assert any("cache_control of content of assistant turns" in note for note in told.notes)


@pytest.mark.parametrize("mark", ["train", "trainable", "training", "loss", "loss_mask"])
@pytest.mark.parametrize(("no", "yes"), [(False, True), (0, 1)])
def test_a_marked_turn_is_not_trained(call: Call, mark: str, no: Any, yes: Any) -> None:
    turns = [asked(), answer("BAD", **{mark: no}), asked("r"), answer("GOOD", **{mark: yes})]
    assert call([{"messages": turns}]).trained == [" GOOD</s>"]


def test_marks_that_contradict_are_refused(call: Call) -> None:
    refused(call([{"messages": [asked(), answer(train=False, weight=1)]}]), 3, "contradict")
    refused(call([{"messages": [asked(), answer(train=False, loss=True)]}]), 3, "contradict")
    refused(call([{"messages": [asked(), answer(train="no")]}]), 3, "train is 'no'")


def test_an_empty_answer_in_the_middle_obeys_its_setting(call: Call, v3: Path) -> None:
    rows = [{"messages": [asked("q1"), answer(""), asked("q2"), answer("a2")]}, {"messages": [asked(), answer()]}]
    refused(call(rows, tokenizer_name_or_path=v3), 3, "rows.jsonl:1", "earlier answer is empty")
    dropped = call(rows, tokenizer_name_or_path=v3, empty_completion="drop", max_dropped=0.5)
    assert dropped.trained == [" a</s>"]
    assert call(rows, tokenizer_name_or_path=v3, empty_completion="keep").code == 0


def test_a_template_that_opens_thoughts_is_judged_by_the_rows(call: Call, template: Callable[[str], Path]) -> None:
    path = template(THINK_TEMPLATE)
    written = call([{"messages": [asked(), answer("<think>\nT\n</think>\n\na")]}], template=path)
    named = call([{"messages": [asked(), answer("a", reasoning="T")]}], template=path)
    assert written.trained == named.trained == ["T\n</think>\n\na</s>"]
    answers = call([{"messages": [asked(), answer("a", reasoning="T")]}], template=path, train_thoughts="false")
    assert answers.trained == ["\n\na</s>"]
    refused(call([{"messages": [asked(), answer()]}], template=path), 3, "rows.jsonl:1", "<think>", "reasoning_content")


@pytest.mark.parametrize("read", ["reasoning_content", "thinking", "reasoning"])
@pytest.mark.parametrize("written", ["reasoning_content", "thinking", "reasoning"])
def test_thoughts_are_written_whatever_template_and_row_call_them(
    call: Call, template: Callable[[str], Path], read: str, written: str
) -> None:
    path = template(TOOLS_TEMPLATE.replace("[A]{{ m.content }}", f"[A]({{{{ m.{read} }}}}){{{{ m.content }}}}"))
    found = call([{"messages": [asked(), answer(**{written: "T"})]}], template=path)
    assert found.trained == ["(T)a</s>"]
