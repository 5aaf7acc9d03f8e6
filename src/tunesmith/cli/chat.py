"""``tunesmith chat``: a conversation with a model in the terminal, or through a pipe.

A model of chats keeps the conversation; any other is asked one question at a time, column by column.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tunesmith.cli import early, environment
from tunesmith.cli.arguments import VerbParser
from tunesmith.cli.output import say_piece, tell
from tunesmith.errors import DataError
from tunesmith.imports import lean_imports

if TYPE_CHECKING:
    from tunesmith.evaluate.answering import Answerer
    from tunesmith.evaluate.generate import Generation

COMMANDS = "/exit ends, /reset forgets, /system TEXT sets the system message; a \\ at the end of a line goes on"
INTERRUPTED = 130


def run(argv: Sequence[str]) -> int:
    """Talk with any model until the input ends."""
    parser = VerbParser("chat", f"Talk with a model. {COMMANDS}. Ctrl-C ends an answer, twice the program.")
    parser.add_argument("model", help="run folder, checkpoint, adapter, model folder, hub name or nano-mistral")
    options, settings = parser.split(argv)
    environment.prepare()
    early.check_named(options.model)
    with lean_imports():
        from tunesmith.evaluate.answering import Answerer
        from tunesmith.evaluate.subject import find_subject

    answerer = Answerer(find_subject(options.model, settings))
    answerer.inference  # noqa: B018 - nobody wants to wait for it after the first question
    chat = begin(answerer)
    tell(f"{options.model}: {chat.describe()}\n{COMMANDS}")
    return talk(chat)


@dataclass(slots=True)
class Chat:
    """A conversation so far.

    Attributes:
        format_name: format of the rows that questions become.
        columns: what is asked for, one line each; a chat has one, the next message.
        keeps: whether earlier turns belong to the next prompt.
        system: the system message that the user set; None leaves it to the model's own.
    """

    answerer: Answerer
    format_name: str
    columns: tuple[str, ...]
    keeps: bool
    system: str | None = None
    turns: list[dict[str, str]] = field(default_factory=list)

    def describe(self) -> str:
        """What kind of conversation this is."""
        if self.keeps:
            return "a chat, which remembers what was said"
        if self.format_name == "messages":
            return "answers one question at a time"
        return f"answers one question at a time, each with its {' and '.join(self.columns)}"

    def ask(self, said: Sequence[str]) -> Generation:
        """Show the answer to what was said as it comes; only an answered question is remembered.

        Raises:
            DataError: it cannot be asked, or the conversation is longer than the model's context.
            KeyboardInterrupt: the user ended the answer; what was shown of it is remembered.
        """
        from tunesmith.data.row import Row

        shown: list[str] = []

        def show(text: str) -> None:
            shown.append(text)
            say_piece(text)

        if self.format_name != "messages":
            row = Row(dict(zip(self.columns, said, strict=True)), "chat", 1)
            return self.answerer.answer([row], format_name=self.format_name, on_text=show)[0]
        asked = {"role": "user", "content": said[0]}
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        row = Row({"messages": [*system, *self.turns, asked]}, "chat", len(self.turns) // 2 + 1)
        try:
            return self.answerer.answer([row], format_name=self.format_name, on_text=show)[0]
        finally:
            if shown and self.keeps:
                self.turns += [asked, {"role": "assistant", "content": "".join(shown)}]


def begin(answerer: Answerer) -> Chat:
    """The kind of conversation that a model was trained for."""
    from tunesmith.evaluate.manner import manner_of

    manner = manner_of(answerer)
    return Chat(answerer, manner.format_name, manner.columns, manner.keeps)


def talk(chat: Chat) -> int:
    """Read, answer, and again, until the input ends; the exit code."""
    code = 0
    interrupted = False
    with suppress(ImportError):
        import readline  # noqa: F401 - line editing and history in input()
    while True:
        try:
            said = [read(f"{column}> ") for column in chat.columns]
            interrupted = False
            code = _turn(chat, said)
        except KeyboardInterrupt:
            if interrupted:
                tell("")
                return INTERRUPTED
            interrupted = True
            tell("\n(Ctrl-C once more ends)")
        except EOFError:
            return code


def _turn(chat: Chat, said: Sequence[str]) -> int:
    """Follow a command or answer; what is wrong with a question is told, and the conversation goes on."""
    command, _, rest = said[0].strip().partition(" ")
    if command == "/exit":
        raise EOFError
    if command == "/reset":
        chat.turns.clear()
        tell("(a new conversation)")
    elif command == "/system":
        _set_system(chat, rest.strip())
    elif command.startswith("/") and len(said) == 1 and not rest and command[1:].isalpha():
        tell(f"(no command {command}: {COMMANDS})")
    elif "".join(said).strip():
        try:
            generation = chat.ask(said)
        except DataError as error:
            tell(
                "\n".join(f"error: {line}" for line in error.lines()) + ("; /reset forgets" if chat.turns else ""),
                always=True,
            )
            return error.exit_code
        say_piece("\n")
        if not generation.stopped:
            tell(f"(cut after {len(generation.token_ids)} tokens; --max_new_tokens allows more)")
    return 0


def _set_system(chat: Chat, text: str) -> None:
    if not chat.keeps:
        tell("(this model takes no system message here; give --instruction)")
        return
    chat.system = text or None
    chat.turns.clear()
    tell("(a new conversation, with this system message)" if text else "(a new conversation, as the model's own)")


def read(prompt: str) -> str:
    """A line; a backslash at its end joins the next one.

    Raises:
        EOFError: the input has ended.
    """
    line = _line(prompt)
    while line.endswith("\\"):
        line = line[:-1] + "\n" + _line("... ")
    return line


def _line(prompt: str) -> str:
    if sys.stdin.isatty():
        return input(prompt)
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.removesuffix("\n")
