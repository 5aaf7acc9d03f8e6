"""``chat``: through a pipe, as a person would type; the answers are those of ``predict``."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tunesmith.cli import chat as verb
from tunesmith.cli.main import main
from tunesmith.data.row import Row
from tunesmith.evaluate.answering import Answerer
from tunesmith.evaluate.subject import find_subject

MODEL = "nano-mistral"
FEW = ["--max_new_tokens", "8"]


@pytest.fixture
def chat(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """``chat(typed, *arguments)``: exit code, answers and all other words."""

    def run(typed: str, *arguments: str, model: str = MODEL) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
        code = main(["chat", model, *arguments, *FEW])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def _answers(*conversations: list[dict[str, str]]) -> list[str]:
    answerer = Answerer(find_subject(MODEL, FEW))
    rows = [Row({"messages": turns}, "test", index) for index, turns in enumerate(conversations, start=1)]
    return [generation.text for generation in answerer.answer(rows)]


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def test_turns_are_remembered_until_reset_and_the_system_message_counts(chat: Any) -> None:
    code, out, err = chat(
        "Where is\\\nthe dog?\nAnd the man?\n/reset\nAnd the man?\n/system Be short.\nWho?\n/exit\nno\n"
    )
    (first,) = _answers([_user("Where is\nthe dog?")])
    second, fresh, instructed = _answers(
        [_user("Where is\nthe dog?"), {"role": "assistant", "content": first}, _user("And the man?")],
        [_user("And the man?")],
        [{"role": "system", "content": "Be short."}, _user("Who?")],
    )
    assert second != fresh
    assert out == f"{first}\n{second}\n{fresh}\n{instructed}\n"
    assert code == 0
    assert "a chat" in err


def test_a_model_of_single_questions_is_asked_column_by_column(chat: Any) -> None:
    code, out, err = chat("A dog runs.\nAn animal moves.\n", "--format", "nli")
    answerer = Answerer(find_subject(MODEL, [*FEW, "--format", "nli"]))
    (answer,) = answerer.answer([Row({"premise": "A dog runs.", "hypothesis": "An animal moves."}, "test", 1)])
    assert (code, out) == (0, answer.text + "\n")
    assert "premise and hypothesis" in err


def test_texts_in_the_tokenizers_own_template_are_asked_without_markers(tmp_path: Path, chat: Any) -> None:
    """What a model of ``[INST] ... [/INST]`` texts is asked in a chat is, token for token, the prompt of its rows."""
    from helpers import run_training

    rows = [{"text": f"<s>[INST] Where is dog {number}? [/INST] Here.</s>"} for number in range(4)]
    run = str(run_training(tmp_path, MODEL, rows, max_steps=1).model_folder)
    code, out, err = chat("Where is the dog?\nAnd the man?\n/exit\n", model=run)
    assert code == 0
    assert "answers one question at a time" in err
    answerer = Answerer(find_subject(run, FEW))
    texts = [Row({"text": f"<s>[INST] {said} [/INST]"}, "test", 1) for said in ("Where is the dog?", "And the man?")]
    assert out.splitlines() == [answer.text for answer in answerer.answer(texts, format_name="text")]


def test_a_conversation_beyond_the_context_is_told_and_goes_on(chat: Any) -> None:
    code, out, err = chat("word " * 5000 + "\nWho?\n")
    assert out == _answers([_user("Who?")])[0] + "\n"
    assert "positions, so no answer fits" in err
    assert code == 0
    assert chat("word " * 5000 + "\n")[0] == 3


def test_generated_text_cannot_steer_the_terminal(
    chat: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tunesmith.evaluate import answering

    def hostile(self: Any, rows: Any, *, on_text: Any, **_: Any) -> list[Any]:
        on_text("\x1b]0;title\x07red \x1b[31m\u009b1m ü\n")
        return [type("Generation", (), {"stopped": True, "token_ids": []})()]

    monkeypatch.setattr(answering.Answerer, "answer", hostile)
    out = chat("Who?\n")[1]
    assert out == "\\x1b]0;title\\x07red \\x1b[31m\\x9b1m ü\n\n"


def test_ctrl_c_ends_the_answer_and_twice_the_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Answering:
        def answer(self, rows: Any, *, on_text: Any, **_: Any) -> Any:
            asked.append(rows[0].values["messages"])
            on_text("half an")
            raise KeyboardInterrupt

    asked: list[Any] = []
    conversation = verb.Chat(Answering(), "messages", ("you",), keeps=True)  # type: ignore[arg-type]
    said = iter(["one", "two", KeyboardInterrupt()])

    def read(prompt: str) -> str:
        line = next(said)
        if isinstance(line, KeyboardInterrupt):
            raise line
        return line

    monkeypatch.setattr(verb, "read", read)
    assert verb.talk(conversation) == 130
    assert [len(turns) for turns in asked] == [1, 3]
    assert asked[1][1] == {"role": "assistant", "content": "half an"}
    assert json.dumps(conversation.turns).count("half an") == 2
