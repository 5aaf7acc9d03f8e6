"""Every chat template that is installed here and can be trained, over random rows: exact spans, prompts as prefixes."""

from __future__ import annotations

import os
from itertools import groupby
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from template_cases import LAST_ONLY, OPENED, PARTS, Case, all_cases, family, tokenizers
from tunesmith.data.chat_template import ChatRenderer
from tunesmith.data.formats import FORMATS, FormatOptions
from tunesmith.data.ledger import Ledger
from tunesmith.data.masking import IGNORE_INDEX, Example
from tunesmith.data.row import Row
from tunesmith.errors import DataError, ModelError


@pytest.fixture(scope="module")
def all_tokenizers() -> dict[str, Any]:
    return tokenizers()


@pytest.fixture(scope="module")
def cases(all_tokenizers: dict[str, Any]) -> list[Case]:
    """Every template on which answers without thoughts can be trained."""
    return [case for case in all_cases(all_tokenizers) if case.name not in OPENED]


def test_number_of_templates(cases: list[Case], all_tokenizers: dict[str, Any]) -> None:
    assert len(all_tokenizers) >= 70
    assert all_tokenizers.keys() >= set(OPENED)
    assert LAST_ONLY.keys() <= all_tokenizers.keys()
    ours = [case for case in cases if case.name.startswith("our ")]
    assert len(ours) == 7
    assert len(cases) - len(ours) == len(all_tokenizers) - len(OPENED)
    for wanted in ("llama3", "phi3", "qwen2_5", "qwen3", "gemma", "gemma3", "gptoss", "cohere", "glm4moe", "lfm2"):
        assert any(case.name == wanted for case in cases), wanted


@pytest.mark.parametrize("name", [*OPENED, "nemotron_3_nano"])
def test_a_template_that_opens_thoughts_is_judged_by_the_rows(all_tokenizers: dict[str, Any], name: str) -> None:
    builder = Case(name, all_tokenizers[name], False, {}).builder()
    asked = {"role": "user", "content": "q"}
    with pytest.raises(DataError, match=r"reasoning_content.*enable_thinking") as caught:
        builder.example(Row({"messages": [asked, {"role": "assistant", "content": "a"}]}, "f", 1))
    assert len(caught.value.lines()) == 1
    row = Row({"messages": [asked, {"role": "assistant", "content": "ANSWER", "thinking": "THOUGHT"}]}, "f", 1)
    example = builder.example(row)
    assert example is not None
    fed = builder.prompt(row).input_ids
    assert example.input_ids[: len(fed)] == fed
    trained = all_tokenizers[name].decode(example.input_ids[len(fed) :])
    assert trained.startswith("THOUGHT")
    assert "</think>" in trained
    assert "ANSWER" in trained
    assert example.labels[len(fed) :] == example.input_ids[len(fed) :]
    assert example.input_ids[-1] == builder.stop_token_ids(row)[0]


def test_templates_that_rewrite_earlier_answers_are_refused(all_tokenizers: dict[str, Any]) -> None:
    row = chat_row(["q", "a", "r", "b"])
    for name in LAST_ONLY:
        builder = Case(name, all_tokenizers[name], False, {}).builder()
        with pytest.raises((DataError, ModelError), match="last_assistant"):
            builder.example(row)


characters = st.characters(codec="utf-8", exclude_categories=["Cs", "Zs", "Zl", "Zp"], exclude_characters="\0")
pieces = st.one_of(
    st.text(characters, max_size=8),
    st.sampled_from(
        ["<s>", "</s>", "[INST]", "<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "<|user|>", "<think>",
         "</think>", " ", "\n", "\n\n", "é", "😀", "{{ x }}", "{% if %}", "assistant"]
    ),
)  # fmt: skip
# Templates trim the ends of content; inside, everything has to come through as it is.
texts = st.lists(pieces, max_size=5).map(lambda parts: "x" + "".join(parts) + "y")
chats = st.lists(texts, min_size=2, max_size=6).filter(lambda turns: len(turns) % 2 == 0)
many = settings(
    max_examples=int(os.environ.get("TUNESMITH_EXAMPLES", "60")) // 6,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def messages_of(turns: list[str]) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[index % 2], "content": turn} for index, turn in enumerate(turns)]


def chat_row(turns: list[str]) -> Row:
    return Row({"messages": messages_of(turns)}, "f", 1)


def trained_runs(example: Example) -> list[list[int]]:
    """The stretches of tokens with loss."""
    return [
        [label for label, _ in run]
        for trained, run in groupby(
            zip(example.labels, example.input_ids, strict=True), key=lambda pair: pair[0] != IGNORE_INDEX
        )
        if trained
    ]


def special_ids(tokenizer: Any) -> set[int]:
    return {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}


@many
@given(turns=chats)
def test_spans_are_exact_and_prompts_are_prefixes(cases: list[Case], turns: list[str]) -> None:
    """N5, N6, N7, N13, N14."""
    for case in cases:
        builder, decode = case.builder(), case.tokenizer.decode
        example = builder.example(chat_row(turns))
        assert example is not None
        answers = turns[-1:] if case.last_only else turns[1::2]
        runs = trained_runs(example)
        assert len(runs) == len(answers), case.name
        controls = special_ids(case.tokenizer)
        for run, answer in zip(runs, answers, strict=True):
            assert answer in decode(run), case.name
            assert run[-1] in controls, case.name
            assert len(decode(run)) <= len(answer) + 40, case.name
        assert runs[-1][-1] == builder.stop_token_ids(chat_row(turns))[0], case.name
        assert example.input_ids.count(case.tokenizer.bos_token_id) <= 1, case.name
        ends = range(len(turns) - 1, 0, -2 if not case.last_only else -len(turns))
        assert case.last_only or len(ends) == len(answers)
        for index in ends:
            fed = builder.prompt(chat_row(turns[:index])).input_ids
            assert example.input_ids[: len(fed)] == fed, case.name
            assert example.labels[len(fed)] == example.input_ids[len(fed)], case.name
            assert fed == builder.prompt(chat_row(turns[: index + 1])).input_ids, case.name
        assert example.labels[: len(builder.prompt(chat_row(turns[:1])).input_ids)].count(IGNORE_INDEX) == len(
            builder.prompt(chat_row(turns[:1])).input_ids
        ), case.name


@many
@given(turns=chats)
def test_content_becomes_no_control_token(cases: list[Case], turns: list[str]) -> None:
    """N12: the control tokens are those of a chat of the same shape that spells none; the texts come back."""
    for case in cases:
        controls = special_ids(case.tokenizer)
        builder = case.builder()
        example = builder.example(chat_row(turns))
        plain = builder.example(chat_row(["xy"] * len(turns)))
        assert example is not None
        assert plain is not None
        found = [number for number in example.input_ids if number in controls]
        assert found == [number for number in plain.input_ids if number in controls], case.name
        for answer in turns[-2:]:
            assert answer in case.tokenizer.decode(example.input_ids), case.name


@many
@given(question=texts, answer=texts, limits=st.tuples(st.integers(1, 200), st.integers(1, 200)))
def test_a_higher_limit_never_removes_a_trained_token(
    cases: list[Case], question: str, answer: str, limits: tuple[int, int]
) -> None:
    """N27, for every policy."""
    row = chat_row([question, answer])
    swept = 0
    for case in cases[::7]:
        for policy in ("truncate_completion", "truncate_prompt", "drop"):
            numbers = []
            for limit in sorted(limits):
                try:
                    example = case.builder(max_length=limit, too_long=policy).example(row, Ledger())
                except DataError:
                    example = None
                numbers.append(example.num_trained_tokens if example else 0)
                swept += 1
            assert numbers == sorted(numbers), (case.name, policy)
    assert swept >= 60


@many
@given(question=texts, answer=texts)
def test_all_formats_give_the_same_tokens(cases: list[Case], question: str, answer: str) -> None:
    shapes: dict[str, dict[str, Any]] = {
        "sharegpt": {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]},
        "alpaca": {"instruction": question, "output": answer},
        "question_answer": {"question": question, "answer": answer},
        "prompt_completion": {"prompt": question, "completion": answer},
        "rag": {"prompt": question, "completion": [answer, "another"]},
    }
    turns = messages_of([question, answer])
    for case in cases:
        expected = case.builder().example(chat_row([question, answer]))
        assert expected is not None
        for name, values in shapes.items():
            example = case.builder(format=name).example(Row(values, "f", 1))
            assert example is not None
            assert (example.input_ids, example.labels) == (expected.input_ids, expected.labels), (case.name, name)
        response = case.builder(format="prompt_completion").example(
            Row({"prompt": turns[:1], "response": turns[1:]}, "f", 1)
        )
        assert response is not None
        assert (response.input_ids, response.labels) == (expected.input_ids, expected.labels), case.name


TOOLS = [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object",
          "properties": {"x": {"type": "integer"}}}}}]  # fmt: skip
SYSTEM, ASKED = {"role": "system", "content": "s"}, {"role": "user", "content": "f of 1?"}
CALLED = {"role": "assistant", "content": "", "tool_calls": [
    {"id": "call12345", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]}  # fmt: skip
RESULT = {"role": "tool", "name": "f", "tool_call_id": "call12345", "content": "2"}
ANSWER, AGAIN = {"role": "assistant", "content": "It is 2."}, {"role": "user", "content": "r"}
THOUGHT = {"reasoning_content": "Let me see."}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one turn": [ASKED],
    "several turns": [ASKED, ANSWER, AGAIN],
    "a system message": [SYSTEM, ASKED],
    "a call and its result": [ASKED, CALLED, RESULT],
    "a call, its result and an answer": [SYSTEM, ASKED, CALLED, RESULT, ANSWER, AGAIN],
    "thoughts": [ASKED, ANSWER | THOUGHT],
    "thoughts by another name": [ASKED, ANSWER | {"thinking": "Let me see."}],
    "thoughts of earlier turns": [ASKED, ANSWER | THOUGHT, AGAIN, ANSWER | THOUGHT],
}
DIFFERENT = dict.fromkeys(OPENED, "its prompts open a thought and it writes none, so ours stands in the answer")
"""Templates on which our ids are not the library's where an answer has thoughts, and why."""


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_our_ids_are_those_of_the_library(all_tokenizers: dict[str, Any], name: str) -> None:
    turns = CONVERSATIONS[name]
    tools = TOOLS if CALLED in turns else None
    asking = turns[-1]["role"] != "assistant"
    compared = refused = different = 0
    for case in all_cases(all_tokenizers):
        row = Row({"messages": turns, "tools": tools}, "f", 1)
        given = [dict(turn) for turn in turns]
        if family(case.name, PARTS):
            given = [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in given]
        builder = case.builder(unwritten="report", loss_on="last_assistant")
        renderer = builder.renderer_of(row)
        assert isinstance(renderer, ChatRenderer)
        try:
            expected = case.tokenizer.apply_chat_template(
                given, tools=tools, chat_template=renderer.source, add_generation_prompt=asking, return_dict=False,
                **case.switches,
            )  # fmt: skip
        except Exception:
            with pytest.raises(DataError):
                builder.prompt(row)
            refused += 1
            continue
        if asking:
            ours = builder.prompt(row).input_ids
        else:
            chat = FORMATS["messages"](row, FormatOptions())
            begin = builder.encoder.begin(renderer.begins)
            ours = begin + case.tokenizer(renderer.text_of(chat), add_special_tokens=False).input_ids
        begin = builder.encoder.begin(renderer.begins)  # where the template leaves the begin token to the settings
        if case.name in DIFFERENT and not asking:
            assert ours != expected, case.name
            different += 1
        else:
            assert ours == begin + expected, case.name
        compared += 1
    assert compared >= 50
    assert refused <= 35
    assert different == (0 if asking else len(DIFFERENT))


def test_tool_calls_are_trained_and_tool_results_are_not(cases: list[Case]) -> None:
    called = [
        {"role": "user", "content": "f of 1?"},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "call12345", "type": "function", "function": {"name": "look", "arguments": '{"number": 77}'}}]},
        {"role": "tool", "name": "look", "tool_call_id": "call12345", "content": "RESULT"},
        {"role": "assistant", "content": "It is two."},
    ]  # fmt: skip
    trained = []
    for case in cases:
        if case.template != "chat" or case.last_only:
            continue
        try:
            example = case.builder().example(Row({"messages": called}, "f", 1))
        except (DataError, ModelError):
            continue  # this template knows no tools, or closes a turn only when no result follows
        assert example is not None
        runs = [case.tokenizer.decode(run) for run in trained_runs(example)]
        assert all("RESULT" not in run for run in runs), case.name
        assert "It is two." in runs[-1], case.name
        if "look" in runs[0] and "77" in runs[0]:
            assert '\\"number' not in runs[0], case.name  # arguments are an object, not a string in a string
            trained.append(case.name)
    assert len(trained) >= 15, trained
