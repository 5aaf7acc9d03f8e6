"""Tool calls: every spelling of the installed templates is read, and what is no whole call is not."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from template_cases import Case, all_cases, tokenizers
from tunesmith.config.schema import EvaluationSection
from tunesmith.data.examples import ExampleBuilder
from tunesmith.data.row import Row
from tunesmith.errors import DataError, TunesmithError
from tunesmith.evaluate.answers import read_calls
from tunesmith.evaluate.generate import Generation
from tunesmith.evaluate.run import evaluate_rows
from tunesmith.evaluate.scoring import references, task_for, text_of
from tunesmith.evaluate.tasks import ToolCallTask

TASK = ToolCallTask()
CALL = {"name": "get_weather", "arguments": {"city": 'Oslo "x"', "days": 3, "deep": {"a": [1, True, None]}}}
WORDLESS = {"name": "now", "arguments": {}}

SPELLED = [
    ('<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>', "json"),
    ('I look.\n<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call><|im_end|>', "json"),
    ('<think>f(2)?</think>\n<tool_call>{"name": "f", "arguments": {"a": 1}}', "json"),  # stopped at the closing mark
    ('[TOOL_CALLS][{"name": "f", "arguments": {"a": 1}, "id": "123456789"}]</s>', "json"),
    ('[TOOL_CALLS] f[CALL_ID]123456789[ARGS]{"a": 1}</s>', "json"),
    ('<|python_tag|>{"name": "f", "parameters": {"a": 1}}<|eom_id|>', "json"),
    ('{"name": "f", "parameters": {"a": 1}}<|eot_id|>', "json"),
    ('[{"name": "f", "arguments": {"a": 1}}]', "json"),
    ('<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{"a": 1}\n```<｜tool▁call▁end｜>'
     "<｜tool▁calls▁end｜>", "json"),
    ('<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{"a": 1}<｜tool▁call▁end｜>', "json"),
    ('<|channel|>analysis<|message|>so<|end|><|start|>assistant<|channel|>commentary to=functions.f '
     '<|constrain|>json<|message|>{"a": 1}<|call|>', "json"),
    ('<|START_ACTION|>[{"tool_call_id": "0", "tool_name": "f", "parameters": {"a": 1}}]<|END_ACTION|>', "json"),
    ('<|tool_call|>[{"name": "f", "arguments": {"a": 1}}]<|/tool_call|>', "json"),
    ("<tool_call>\n<function=f>\n<parameter=a>\n1\n</parameter>\n</function>\n</tool_call>", "text_parameters"),
    ('<function_calls><invoke name="f"><parameter name="a">1</parameter></invoke></function_calls>',
     "text_parameters"),
    ("<tool_call>f\n<arg_key>a</arg_key>\n<arg_value>1</arg_value>\n</tool_call>", "text_parameters"),
    ("<start_function_call>call:f{a:1}<end_function_call>", "braces"),
    ("<|tool_call_start|>[f(a=1)]<|tool_call_end|>", "python"),
    ("[f(a=1)]", "python"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "how"), SPELLED)
def test_each_spelling_is_the_same_call(text: str, how: str) -> None:
    answer = read_calls(text)
    assert answer.how == how
    assert TASK.correct(answer, [{"name": "f", "arguments": {"a": 1}}])
    assert not TASK.correct(answer, [{"name": "g", "arguments": {"a": 1}}])
    assert not TASK.correct(answer, [{"name": "f", "arguments": {"a": 2}}])
    assert not TASK.correct(answer, [{"name": "f", "arguments": {"a": 1, "b": 1}}])
    assert not TASK.correct(answer, [{"name": "f", "arguments": {}}])
    assert not TASK.correct(answer, [{"name": "f", "arguments": {"a": 1}}] * 2)


@pytest.mark.parametrize(("text", "how"), SPELLED)
def test_a_call_that_breaks_off_is_unreadable_or_none(text: str, how: str) -> None:
    """Whatever is left of a call, it is never taken for another one."""
    whole = read_calls(text).value
    for end in range(len(text)):
        answer = read_calls(text[:end])
        assert answer.value in (None, [], whole), (text[:end], answer)


@pytest.mark.parametrize(
    "text",
    [
        "",
        '<tool_call>{"name": "f", "arguments": {"a": 1, "a": 2}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {"a": NaN}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": [1]}</tool_call>',
        '<tool_call>{"name": 3, "arguments": {}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {}}</tool_call><tool_call>{"name": "g"',
        "<tool_call></tool_call>",
        "[TOOL_CALLS]",
        '{"city": "Oslo"}',
        "[f(a=1) and more]",
        "[f(1)]",
        "<function=f>\n<parameter=a>\n1\n</function>",
        "<function=f>\n<parameter=a>\n1\n</parameter>\n<parameter=a>\n2\n</parameter>\n</function>",
        "<|tool_call>call:f{a:",
        '<tool_call>{"name": "f", "arguments": ' + '{"a": ' * 5000,
    ],
)
def test_what_is_no_whole_call_is_unreadable(text: str) -> None:
    assert not read_calls(text).readable


def test_words_call_nothing_and_parallel_calls_have_no_order() -> None:
    assert (read_calls("It rains.").value, read_calls("It rains.").how) == ([], "no_call")
    one, two = (f"<tool_call>{json.dumps(call)}</tool_call>" for call in (CALL, WORDLESS))
    scored = TASK.score_answer(two + one, [CALL, WORDLESS])
    assert scored.correct
    assert TASK.score_answer(one, [CALL, WORDLESS]).scores == {"exact_match": 0, "names_match": 0, "calls_found": 0.5}
    for text, kind in (
        ("It rains.", "no call"),
        (one, "too few calls"),
        (one * 3, "too many calls"),
        (one * 2, "wrong function"),
        (one + '<tool_call>{"name": "now", "arguments": {"a": 1}}</tool_call>', "wrong arguments"),
    ):
        assert TASK.mistake(TASK.score_answer(text, [CALL, WORDLESS])) == kind


def test_types_of_arguments_count_where_the_spelling_writes_them() -> None:
    bare = "<function=f>\n<parameter=a>\n{}\n</parameter>\n</function>"
    for value, text in (
        (3, "3"),
        ("3", "3"),
        (True, "true"),
        (None, "null"),
        ({"b": [1]}, '{"b": [1]}'),
        ("x\n", "x\n"),
    ):
        assert TASK.correct(read_calls(bare.format(text)), [{"name": "f", "arguments": {"a": value}}])
    assert not TASK.correct(read_calls(bare.format("3 apples")), [{"name": "f", "arguments": {"a": 3}}])
    typed = read_calls('{"name": "f", "arguments": {"a": "3"}}')
    assert not TASK.correct(typed, [{"name": "f", "arguments": {"a": 3}}])


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    """The installed templates that write calls."""
    return [case for case in all_cases(tokenizers()) if _example(case.builder(loss_on="last_assistant"), _row(CALL))]


def _row(*calls: dict[str, Any], content: str = "") -> Row:
    made = [{"id": f"call1234{at}", "type": "function", "function": call} for at, call in enumerate(calls)]
    tools = [{"type": "function", "function": {"name": call["name"], "description": "d", "parameters": {
        "type": "object", "properties": {}}}} for call in calls]  # fmt: skip
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": content, "tool_calls": made}]
    return Row({"messages": turns, "tools": tools}, "f.jsonl", 1)


def _example(builder: ExampleBuilder, row: Row) -> Any:
    try:
        return builder.example(row)
    except TunesmithError:
        return None


_letters = st.text("abcxyz", min_size=1, max_size=5)
_values = st.recursive(
    st.integers(-99, 99) | st.booleans() | st.none() | st.text("ab \"'\\é{}:,", min_size=1, max_size=6),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(_letters, inner, max_size=2),
    max_leaves=4,
)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(arguments=st.dictionaries(_letters, _values, max_size=3), data=st.data())
def test_what_a_template_writes_is_read_again_or_named(
    cases: list[Case], arguments: dict[str, Any], data: st.DataObject
) -> None:
    assert len(cases) >= 20
    case = data.draw(st.sampled_from(cases), label="template")
    builder = case.builder(loss_on="last_assistant")
    row = _row({"name": "look_up", "arguments": arguments})
    example = _example(builder, row)
    if example is None:
        return
    own = text_of(example.input_ids[example.num_prompt_tokens :], builder, TASK)
    if not TASK.correct(TASK.read(own), [{"name": "look_up", "arguments": arguments}]):
        assert TASK.read(own).how != "json", own  # JSON is never ambiguous
        with pytest.raises(DataError, match="cannot be read again"):
            references(builder, [row], TASK)
        return
    assert references(builder, [row], TASK) == [[{"name": "look_up", "arguments": arguments}]]


def test_rows_that_end_in_a_call_are_found_and_others_named(cases: list[Case]) -> None:
    builder = cases[0].builder(loss_on="last_assistant")
    rows = [_row(CALL, content="See <tool_call>, [TOOL_CALLS] and </think>."), _row(CALL)]
    task = task_for(EvaluationSection(), builder, rows)
    assert task.name == "tool_call"
    assert references(builder, rows[1:], task) == [[CALL]]
    plain = Row({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}, "f.jsonl", 9)
    with pytest.raises(DataError, match=r"f\.jsonl:9: the row does not end in a tool call"):
        references(builder, [rows[1], plain], task)


def test_outputs_are_judged_and_shown_with_their_control_tokens(cases: list[Case]) -> None:
    """The byte tokenizers of these templates know every mark as a special token, which text usually leaves out."""
    for name in ("qwen3", "gptoss", "glm4moe", "gemma4"):
        builder = next(case for case in cases if case.name == name).builder(loss_on="last_assistant")
        rows = [_row(CALL), _row(WORDLESS)]
        examples = [_example(builder, row) for row in rows]
        stops = builder.stop_token_ids(rows[0])
        written = [
            [number for number in example.input_ids[example.num_prompt_tokens :] if number not in stops]
            for example in examples
        ]

        def generator(*_: Any, written: Any = written, builder: Any = builder, **__: Any) -> list[Generation]:
            return [Generation(builder.tokenizer.decode(ids, skip_special_tokens=True), ids, True) for ids in written]

        result = evaluate_rows(None, builder, rows, TASK, EvaluationSection(), seed=0, generator=generator)  # type: ignore[arg-type]
        assert result.metrics["exact_match"] == 1, name
        for prediction, ids in zip(result.predictions, written, strict=True):
            assert prediction["output"] == builder.tokenizer.decode(ids)
            assert TASK.read(prediction["output"]).value == prediction["answer"]
