"""Parts of rows that used to vanish or to be misread: each is trained, read or named, and all verbs say the same."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from helpers import write_rows
from tunesmith import notices
from tunesmith.cli.main import main

TOOLS_TEMPLATE = (
    "{{ bos_token }}{{ tools|tojson }}{% for m in messages %}{% if m.role == 'assistant' %}[A]{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.function|tojson }}{% endfor %}{{ eos_token }}"
    "{% else %}[U]{{ m.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}[A]{% endif %}"
)
THINK_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}[A]{{ m.content }}{{ eos_token }}"
    "{% else %}[U]{{ m.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}[A]<think>\n{% endif %}"
)
DATE_TEMPLATE = (
    "{{ bos_token }}Today is {{ strftime_now('%d %b %Y') }}. {% for m in messages %}{% if m.role == 'assistant' %}"
    "A: {{ m.content }}{{ eos_token }}{% else %}Q: {{ m.content }} {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}A: {% endif %}"
)


@dataclass
class Outcome:
    """How a verb ended: exit code, errors, notes about rows, and the rows that preview shows."""

    code: int
    errors: list[str]
    notes: list[str]
    rows: list[dict[str, Any]]

    @property
    def texts(self) -> list[str]:
        return ["".join(token["text"] for token in row["tokens"]) for row in self.rows]

    @property
    def trained(self) -> list[str]:
        return ["".join(token["text"] for token in row["tokens"] if token["trained"]) for row in self.rows]


Call = Callable[..., Outcome]


@pytest.fixture
def call(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Call:
    """Call a verb on rows (or on a file) with the embedded model."""

    def run(rows: Any, verb: str = "preview", **settings: Any) -> Outcome:
        notices.clear()
        file = rows if isinstance(rows, Path) else write_rows(tmp_path / "rows.jsonl", rows)
        given = {"model_name_or_path": "nano-mistral", "train_data": file, "cache": "false",
                 "output_dir": tmp_path / "run"} | settings  # fmt: skip
        if verb == "train":
            given = {"max_steps": 1, "save_strategy": "no", "overwrite_output_dir": "true"} | given
        arguments = [f"--{name}={value}" for name, value in given.items()]
        code = main([verb, *arguments, *(["--json"] if verb == "preview" else [])])
        said = capsys.readouterr()
        lines = said.err.splitlines()
        shown = json.loads(said.out)["rows"] if verb == "preview" and code == 0 else []
        return Outcome(
            code,
            [line for line in (*lines, *said.out.splitlines()) if line.startswith("error:")],
            [line for line in lines if line.startswith(f"note: {file}")],
            shown,
        )

    return run


def refused(outcome: Outcome, code: int, *words: str) -> None:
    assert outcome.code == code, outcome
    assert len(outcome.errors) == 1, outcome
    for word in words:
        assert word in outcome.errors[0]


def asked(content: str = "q") -> dict[str, Any]:
    return {"role": "user", "content": content}


def answer(content: str = "a", **keys: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **keys}


def calls(name: str = "f", **arguments: Any) -> list[dict[str, Any]]:
    return [{"type": "function", "function": {"name": name, "arguments": arguments}}]


def tool(name: str, **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


CALL = [{"messages": [asked(), answer("", tool_calls=calls(x="1"))], "tools": [tool("f", x={"type": "string"})]}]


@pytest.fixture
def template(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        (tmp_path / "template.jinja").write_text(text)
        return tmp_path / "template.jinja"

    return write


@pytest.fixture
def v3(real_data: Path) -> Path:
    return real_data / "tok_mistral" / "hf_v3"


# tool calls


@pytest.mark.parametrize("verb", ["preview", "check", "train"])
def test_a_template_that_writes_no_tool_calls_is_refused(call: Call, verb: str) -> None:
    refused(call(CALL, verb, template="chatml"), 3, "rows.jsonl:1", "tools", "tool_calls of turn 1", "unwritten")


def test_the_parts_of_a_call_are_refused_one_by_one(call: Call, v3: Path) -> None:
    refused(call(CALL, tokenizer_name_or_path=v3), 3, "tool_calls of turn 1")
    result = [
        {"messages": [asked(), answer("", tool_calls=calls(x="1")), {"role": "tool", "content": "RES"}, answer()]}
    ]
    refused(call(result, template="chatml"), 3, "tool_calls of turn 1")
    listed = [{"messages": [asked(), answer()], "tools": CALL[0]["tools"]}]
    refused(call(listed, template="chatml"), 3, "write tools;")
    refused(call(listed, template="question-answer"), 3, "write tools;")


def test_of_named_templates_the_one_for_tools_is_taken(call: Call, v3: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(v3)
    plain = TOOLS_TEMPLATE.replace("{{ tools|tojson }}", "").replace("{{ c.function|tojson }}", "")
    tokenizer.chat_template = {"default": plain, "tool_use": TOOLS_TEMPLATE}
    tokenizer.save_pretrained(tmp_path / "named")
    found = call([*CALL, {"messages": [asked(), answer()]}], tokenizer_name_or_path=tmp_path / "named")
    assert sorted(found.trained) == ["a</s>", '{"name": "f", "arguments": {"x": "1"}}</s>']


# thoughts, keys and marks of turns


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


def test_the_details_of_tools_and_calls_are_looked_for(call: Call, template: Callable[[str], Path]) -> None:
    """A template may write the name of a function and not what it takes."""
    names = TOOLS_TEMPLATE.replace("c.function|tojson", "c.function.name")
    for arguments in ({"x": 1}, {"flag": True}, {"x": "text"}):
        row = {"messages": [asked(), answer("", tool_calls=calls(**arguments))]}
        refused(call([row], template=template(names)), 3, "tool_calls of turn 1")
    brief = TOOLS_TEMPLATE.replace(
        "{{ tools|tojson }}",
        "{% for t in tools or [] %}{{ t.function.name }}{{ t.function.parameters.properties.keys()|join }}{% endfor %}",
    )
    for schema, words in (
        ({"type": "string", "description": "D"}, "description of parameters in tools"),
        ({"type": "string", "enum": ["E", "F"]}, "enum of parameters in tools"),
        ({"type": "object", "properties": {"deep": {"type": "string"}}}, "names of parameters in tools"),
    ):
        row = {"messages": [asked(), answer()], "tools": [tool("f", x=schema)]}
        refused(call([row], template=template(brief)), 3, words)
    row = {"messages": [asked(), answer()], "tools": [tool("f", x={"type": "integer", "title": "T", "minimum": 3})]}
    counted = call([row], template=template(brief))
    assert counted.code == 0
    assert [word for word in ("title", "minimum") if f"{word} of parameters in tools" in "".join(counted.notes)] == [
        "title", "minimum"]  # fmt: skip


@pytest.mark.parametrize("mark", ["train", "trainable", "training", "loss", "loss_mask"])
@pytest.mark.parametrize(("no", "yes"), [(False, True), (0, 1)])
def test_a_marked_turn_is_not_trained(call: Call, mark: str, no: Any, yes: Any) -> None:
    turns = [asked(), answer("BAD", **{mark: no}), asked("r"), answer("GOOD", **{mark: yes})]
    assert call([{"messages": turns}]).trained == [" GOOD</s>"]


def test_marks_that_contradict_are_refused(call: Call) -> None:
    refused(call([{"messages": [asked(), answer(train=False, weight=1)]}]), 3, "contradict")
    refused(call([{"messages": [asked(), answer(train=False, loss=True)]}]), 3, "contradict")
    refused(call([{"messages": [asked(), answer(train="no")]}]), 3, "train is 'no'")


# columns

CHOICE = [{"prompt": "q", "completion": "WRONG", "better": "RIGHT"}]


@pytest.mark.parametrize("verb", ["preview", "check", "train"])
def test_a_renamed_column_has_to_exist(call: Call, verb: str) -> None:
    refused(call(CHOICE, verb, columns='{"completion": "beter"}'), 2, "'beter'", "better")
    refused(call(CHOICE, verb, columns='{"completon": "better"}'), 2, "'completon'", "completion")


def test_a_renamed_column_is_read(call: Call) -> None:
    found = call(CHOICE, columns='{"completion": "better"}')
    assert found.trained == ["RIGHT</s>"]
    assert any("not read: completion" in note for note in found.notes)


def test_keys_that_parquet_adds_are_not_trained(call: Call, tmp_path: Path, template: Callable[[str], Path]) -> None:
    tools = [tool("f", x={"type": "string"}), tool("g", n={"type": "integer"})]
    rows = [
        {"messages": [asked("go"), answer("", tool_calls=[{"function": {"name": name, "arguments": arguments}}])],
         "tools": tools} for name, arguments in (("f", {"x": "1"}), ("g", {"n": 2}))
    ]  # fmt: skip
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    path = template(TOOLS_TEMPLATE)
    lines, table = call(rows, template=path), call(tmp_path / "rows.parquet", template=path)
    assert lines.texts == table.texts
    assert len(lines.texts) == 2
    assert "null" not in "".join(table.texts)


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


# answers


def test_an_empty_answer_in_the_middle_obeys_its_setting(call: Call, v3: Path) -> None:
    rows = [{"messages": [asked("q1"), answer(""), asked("q2"), answer("a2")]}, {"messages": [asked(), answer()]}]
    refused(call(rows, tokenizer_name_or_path=v3), 3, "rows.jsonl:1", "earlier answer is empty")
    dropped = call(rows, tokenizer_name_or_path=v3, empty_completion="drop", max_dropped=0.5)
    assert dropped.trained == [" a</s>"]
    assert call(rows, tokenizer_name_or_path=v3, empty_completion="keep").code == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ('{"x": NaN, "y": 1}', "NaN"), ('{"x": "\\ud83d"}', "surrogate"), ('{"x": 1, "x": 2}', "twice"),
        ('{"x": 1e999}', "beyond"),
        ("[1]", "an array"), ("text", "a string"), ("3", "a string"), ('{"x": ', "not JSON"), ("{" * 200, "not JSON"),
    ],
)  # fmt: skip
def test_arguments_as_text_are_read_strictly(
    call: Call, template: Callable[[str], Path], arguments: str, words: str
) -> None:
    row = {"messages": [asked(), answer("", tool_calls=[{"function": {"name": "f", "arguments": arguments}}])]}
    refused(call([row], template=template(TOOLS_TEMPLATE)), 3, "rows.jsonl:1", words)


def test_a_template_that_opens_thoughts_is_judged_by_the_rows(call: Call, template: Callable[[str], Path]) -> None:
    path = template(THINK_TEMPLATE)
    written = call([{"messages": [asked(), answer("<think>\nT\n</think>\n\na")]}], template=path)
    named = call([{"messages": [asked(), answer("a", reasoning="T")]}], template=path)
    assert written.trained == named.trained == ["T\n</think>\n\na</s>"]
    answers = call([{"messages": [asked(), answer("a", reasoning="T")]}], template=path, train_thoughts="false")
    assert answers.trained == ["\n\na</s>"]
    refused(call([{"messages": [asked(), answer()]}], template=path), 3, "rows.jsonl:1", "<think>", "reasoning_content")


@pytest.mark.parametrize("unknown", ["[UNK]", "[EOS]"])
def test_unknown_words_of_answers_are_said(call: Call, tmp_path: Path, unknown: str) -> None:
    words = "[EOS] [BOS] [UNK] the answer is : ? what".split()
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token=unknown))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token=unknown, bos_token="[BOS]", eos_token="[EOS]"
    ).save_pretrained(tmp_path / "words")
    known = {"prompt": "what is the answer ?", "completion": "the answer is the answer"}
    rows = [known, {"prompt": "what is the answer ?", "completion": "the answer is 42 the answer"}]
    found = call(rows, tokenizer_name_or_path=tmp_path / "words")
    if unknown == "[EOS]":
        refused(found, 3, "rows.jsonl:2", "end token")
        assert call([known], tokenizer_name_or_path=tmp_path / "words").code == 0
    else:
        assert found.code == 0
        assert any("rows.jsonl:2" in note and "[UNK]" in note for note in found.notes)


# dates


@pytest.fixture
def day(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Moves this process to a place on earth: at two of them it is never the same day."""

    def move(zone: str) -> None:
        monkeypatch.setenv("TZ", zone)
        time.tzset()

    yield move
    monkeypatch.undo()
    time.tzset()


FIRST, SECOND = "Etc/GMT+12", "Pacific/Kiritimati"


def test_kept_data_is_of_the_day_that_its_template_writes(
    call: Call, template: Callable[[str], Path], tmp_path: Path, day: Callable[[str], None]
) -> None:
    rows, path = [{"messages": [asked(), answer()]}], template(DATE_TEMPLATE)
    kept = {"cache": "true", "cache_dir": tmp_path / "cache", "template": path}
    day(FIRST)
    first = call(rows, **kept).texts
    day(SECOND)
    second = call(rows, **kept).texts
    assert first != second
    assert second == call(rows, template=path).texts
    assert (
        first
        == call(rows, template=path, template_date=time.strftime("%Y-%m-%d", time.gmtime(time.time() - 43200))).texts
    )
    assert len(list((tmp_path / "cache").glob("data-*"))) == 2


def test_a_run_that_continues_on_another_day_keeps_its_own(
    call: Call, template: Callable[[str], Path], tmp_path: Path, day: Callable[[str], None]
) -> None:
    rows = [{"messages": [asked(f"q{number}"), answer(f"a{number}")]} for number in range(4)]
    how = {"template": template(DATE_TEMPLATE), "save_strategy": "steps", "save_steps": 1, "max_length": 64}

    def recorded() -> tuple[str, str]:
        data = json.loads((tmp_path / "run" / "run.json").read_text())["data"]
        return data["template_date"], data["train_fingerprint"]

    day(FIRST)
    assert call(rows, "train", **how).code == 0
    first = recorded()
    day(SECOND)
    assert (
        call(rows, "train", **how, max_steps=2, overwrite_output_dir="false", resume_from_checkpoint="latest").code == 0
    )
    assert recorded() == first
    assert call(rows, "train", **how).code == 0
    assert recorded() != first


# the same words from every verb

NOTED: dict[str, tuple[list[dict[str, Any]], dict[str, str]]] = {
    "a part that is left out": (CALL, {"template": "chatml", "unwritten": "report"}),
    "columns that are not read": ([{"prompt": "q", "completion": "a", "mood": "glad"}], {}),
    "words after the last answer": ([{"messages": [asked(), answer(), asked("r")]}], {}),
    "tokens without an end": ([{"input_ids": [5, 6, 7], "labels": [-100, 6, 7], "mood": "glad"}], {}),
    "everything at once": (
        [
            {"messages": [asked(), answer("a <s> b")], "weight": 2.0, "mood": "glad"},
            {"messages": [asked(), answer("a <s> b")], "weight": 2.0},
            {"messages": [asked("long " * 40), answer("z")]},
            {"messages": [asked("e"), answer(" ")]},
            {"messages": [asked("w"), answer("g")], "weight": 0},
        ],
        {"max_length": "60", "too_long": "truncate_prompt", "empty_completion": "drop", "max_dropped": "0.5"},
    ),
}


@pytest.mark.parametrize("name", NOTED)
def test_all_verbs_say_the_same_about_rows(call: Call, name: str) -> None:
    rows, how = NOTED[name]
    said: dict[str, list[str]] = {}
    for verb in ("check", "preview", "train"):
        outcome = call(rows, verb, **how)
        assert outcome.code == 0, outcome
        said[verb] = [text for text in notices.collected() if not text.startswith("attention: ")]  # of the model
    assert said["preview"] == said["check"] == said["train"]
    assert len(said["check"]) >= (7 if name == "everything at once" else 2)


# which files, and what is cut of a row


def test_held_out_files_are_never_trained(call: Call, tmp_path: Path) -> None:
    rows = [[{"prompt": f"q{number}", "completion": f"a{number}"}] for number in range(2)]
    folder, splits = tmp_path / "folder", tmp_path / "splits"
    for place, names in ((folder, ("data", "evaluation")), (splits, ("train", "test"))):
        place.mkdir()
        for name, held in zip(names, rows, strict=True):
            write_rows(place / f"{name}.jsonl", held)
    outcome = call(folder, num=9)
    assert (outcome.code, len(outcome.rows)) == (0, 1)
    assert outcome.rows[0]["source"].endswith("data.jsonl:1")
    refused(call(splits / "*.jsonl"), 3, "named after the split test", "list of names")


@pytest.mark.parametrize("verb", ["preview", "check"])
def test_tables_are_as_strict_as_json(call: Call, tmp_path: Path, verb: str) -> None:
    twice = pyarrow.table({"prompt": ["RIGHT"], "completion": ["b"], "p2": ["WRONG"]})
    twice = twice.rename_columns(["prompt", "completion", "prompt"])
    for table, words in ((twice, "'prompt' occurs twice"), (pyarrow.table({"prompt": ["a\0b"]}), "NUL")):
        pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
        refused(call(tmp_path / "rows.parquet", verb), 3, words)


def test_headers_and_system_message_are_not_cut(call: Call) -> None:
    rows = [
        {"messages": [{"role": "system", "content": "be kind"}, asked("one two three four five six"), answer("ok")]}
    ]
    settings = {"template": "chatml", "too_long": "truncate_prompt"}
    refused(call(rows, max_length=45, **settings), 3, "tokens remain when every earlier turn is left out")
    cut = call(rows, max_length=60, **settings)
    assert cut.code == 0
    assert "be kind" in cut.texts[0]
    assert cut.texts[0].count("<|im_start|>") == 3
    assert "one" not in cut.texts[0]
    assert any("lose the beginning of their prompt" in text for text in notices.collected())


def test_the_frame_of_a_text_template_is_not_cut(call: Call) -> None:
    rows = [{"prompt": "w0 " + "w " * 60, "completion": "done"}]
    template = "HEAD {query} => {output}"
    cut = call(rows, template=template, max_length=24, too_long="truncate_prompt")
    assert cut.code == 0
    assert cut.texts[0].startswith("<s>HEAD w w")
    assert cut.texts[0].endswith(" => done</s>")
    assert len(cut.rows[0]["tokens"]) in (23, 24)
    refused(call(rows, template=template, max_length=5, too_long="truncate_prompt"), 3, "tokens remain")


def test_every_cut_is_in_the_ledger_with_its_rule(call: Call, tmp_path: Path) -> None:
    chat = [{"messages": [asked("long " * 20), answer(), asked("q"), answer("z")]}]
    pair, text = [{"prompt": "w " * 60, "completion": "done " * 9}], [{"text": "word " * 100}]
    for rows, policy, rule, how in (
        (chat, "truncate_prompt", "turns", {}),
        (pair, "truncate_prompt", "truncate_prompt", {}),
        (pair, "truncate_completion", "truncate_completion", {"max_length": 70}),
        (text, "split", "split", {"loss_on": "all"}),
    ):
        given = {"max_length": 40, "too_long": policy, "save_strategy": "no"} | how
        assert call(rows, "train", **given).code == 0
        ledger = json.loads((tmp_path / "run" / "ledger.json").read_text())
        (account,) = ledger["training"]["sources"].values()
        assert account["cut"] == {rule: [f"{tmp_path / 'rows.jsonl'}:1"]}


def test_plain_texts_are_learnt_whole_and_asked_to_go_on(call: Call, tmp_path: Path) -> None:
    """No marker says where an answer begins, and none is needed: every token is learnt, and a text goes on."""
    rows = [{"text": "word " * 8}, {"text": "another text, of which every token is learnt"}]
    for verb in ("check", "preview", "train"):
        outcome = call(rows, verb, loss_on="all", save_strategy="no")
        assert outcome.code == 0, outcome
    contract = json.loads((tmp_path / "run" / "inference.json").read_text())
    assert contract["prompt"]["cut_after"] is None
    answers = tmp_path / "answers.jsonl"
    assert (
        main(["predict", str(tmp_path / "run"), str(tmp_path / "rows.jsonl"), str(answers), "--max_new_tokens=2"]) == 0
    )
    assert len(answers.read_text().splitlines()) == 2
