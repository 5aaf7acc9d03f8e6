"""Conversation to text with spans: literal text, a string template with placeholders, or a jinja chat template.

The prompt of inference and the prompt of training are made by the same function. Tokens and labels: ``masking.py``.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.config.schema import DataSection
from tunesmith.data.conversation import ASSISTANT, Conversation, Message
from tunesmith.data.formats import strip_markers
from tunesmith.data.nli import NLI_TEMPLATE
from tunesmith.errors import ConfigError, DataError, ModelError
from tunesmith.notices import say

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_RENDERED_CHARACTERS = 64 * 2**20
CONTEXT = "context"
"""Role of a span that nobody is trained on unless loss is on everything."""

PLAIN_CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- '### ' + message['role'] | capitalize + ':\\n' + message['content'] -}}
{%- if message['role'] == 'assistant' %}{{ eos_token }}{% endif -%}
{{- '\\n\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '### Assistant:\\n' }}{% endif -%}
"""
"""Used, and said, for chats when the tokenizer brings no template of its own."""


@dataclass(frozen=True, slots=True)
class Span:
    """Characters ``start`` to ``end`` of a rendered text and their role: an assistant turn with its end, or context."""

    start: int
    end: int
    role: str


@dataclass(frozen=True, slots=True)
class Rendered:
    """Text and the spans that cover it without gaps.

    ``protected``: character ranges in which content spells a special token and must not become one. ``begins``: True
    starts the ids with the begin token, False leaves that to the text, None to the settings. ``ends``: the end token
    follows the text as an id; otherwise the text ends with the template's own end of turn (or is a prompt).
    """

    text: str
    spans: tuple[Span, ...]
    protected: tuple[tuple[int, int], ...] = ()
    begins: bool | None = None
    ends: bool = False


Renderer = Callable[[Conversation, str], Rendered]
"""Conversation and its address to text. A conversation without a last assistant turn becomes a generation prompt."""


def choose_renderer(tokenizer: PreTrainedTokenizerBase, data: DataSection, format_name: str) -> Renderer:
    """The way in which rows of one format become text.

    Raises:
        ConfigError: the template or instruction file cannot be read, lacks a placeholder or does not suit the format.
        ModelError: the tokenizer's chat template is asked for and there is none.
    """
    instruction = read_instruction(data.instruction)
    specials = special_pattern(tokenizer)
    last_only = data.loss_on == "last_assistant"
    template = data.template
    if format_name == "text":
        if template is not None:
            raise ConfigError(
                "rows with a literal text bring their own template",
                where=f"data.template = {template}",
                remedy="leave template unset, or give rows with separate columns",
            )
        if instruction is not None:
            raise ConfigError(
                "rows with a literal text have no place for an instruction",
                where="data.instruction",
                remedy="write it into the texts, or give rows with separate columns",
            )
        return LiteralRenderer(specials, None)
    if template is None and format_name == "prompt_completion":
        chat = _chat_renderer(tokenizer, None, specials, instruction, data.instruction_in_prompt, last_only)
        return LiteralRenderer(specials, instruction, chat)
    if template is None and format_name == "nli":
        parts = parse_string_template(NLI_TEMPLATE.removeprefix("<s>").removesuffix("</s>"), "nli")
        begins = True if tokenizer.bos_token == "<s>" else None
        return StringRenderer(parts, specials, instruction, begins)
    if template is None or template == "chat" or template.endswith((".jinja", ".jinja2", ".j2")):
        return _chat_renderer(tokenizer, template, specials, instruction, data.instruction_in_prompt, last_only)
    bos, eos = _token(tokenizer.bos_token), _token(tokenizer.eos_token)
    body, begins_literally = strip_markers(read_text(template, "template"), bos, eos)
    return StringRenderer(parse_string_template(body, template), specials, instruction, begins_literally or None)


def _chat_renderer(
    tokenizer: PreTrainedTokenizerBase,
    template: str | None,
    specials: re.Pattern[str] | None,
    instruction: str | None,
    instruction_in_prompt: bool,
    last_only: bool,
) -> ChatRenderer:
    begins: bool | None = False
    if template is not None and template != "chat":
        source = read_text(template, "template")
    elif isinstance(tokenizer.chat_template, (str, dict)) and tokenizer.chat_template:
        source = tokenizer.get_chat_template()
    elif template == "chat":
        raise ModelError(
            "the tokenizer has no chat template", where="data.template = chat", remedy="give template a .jinja file"
        )
    else:
        source, begins = PLAIN_CHAT_TEMPLATE, None
    return ChatRenderer(tokenizer, source, specials, instruction, instruction_in_prompt, last_only, begins)


# The three ways


@dataclass(frozen=True, slots=True)
class LiteralRenderer:
    """Prompt and completion as they stand; conversations that are not literal go to ``chat``."""

    specials: re.Pattern[str] | None
    instruction: str | None
    chat: ChatRenderer | None = None

    def __call__(self, conversation: Conversation, where: str) -> Rendered:
        if not conversation.literal and self.chat is not None:
            return self.chat(conversation, where)
        prompt = "".join(turn.content for turn in conversation.messages if turn.role != ASSISTANT)
        if self.instruction is not None:
            prompt = f"{self.instruction}\n\n{prompt}"
        pieces = [(prompt, CONTEXT)]
        if conversation.answer is not None:
            pieces.append((conversation.answer, ASSISTANT))
        text, spans = _join(pieces)
        found = self.specials.finditer(text) if self.specials and not conversation.controls else ()
        protected = tuple(match.span() for match in found)
        _note_protected(protected, text)
        return Rendered(text, spans, protected, conversation.begins or None, conversation.answer is not None)


@dataclass(frozen=True, slots=True)
class StringRenderer:
    """One question and one answer put into a text with ``{query}``, ``{output}`` and, if wanted, ``{instruction}``."""

    parts: tuple[str, ...]
    specials: re.Pattern[str] | None
    instruction: str | None
    begins: bool | None

    def __call__(self, conversation: Conversation, where: str) -> Rendered:
        guard = Guard(self.specials, conversation.messages)
        system = "\n\n".join(turn.content for turn in guard.messages if turn.role == "system") or self.instruction or ""
        queries = [turn.content for turn in guard.messages if turn.role == "user"]
        answers = [turn.content for turn in guard.messages if turn.role == ASSISTANT]
        if len(queries) != 1 or len(answers) > 1:
            raise DataError(
                f"a template with {{query}} and {{output}} takes one question and one answer, not {len(queries)} and "
                f"{len(answers)}",
                where=where,
                remedy="use a chat template for rows with several turns",
            )
        query = queries[0]
        if system and "{instruction}" not in self.parts:
            query = f"{system}\n\n{query}"
        at = self.parts.index("{output}")
        values = {"{query}": query, "{instruction}": system}
        before = "".join(values.get(part, part) for part in self.parts[:at])
        # Spaces right before the answer belong to the answer: tokenizers join a space with the word after it.
        prompt = before.rstrip(" ") if self.parts[at - 1] not in values else before
        pieces = [(prompt, CONTEXT)]
        if not answers:
            return guard.rendered(pieces, begins=self.begins)
        completion = (
            before[len(prompt) :] + answers[0] + "".join(values.get(part, part) for part in self.parts[at + 1 :])
        )
        completion, ends = _end_of_turn(completion, self.specials)
        return guard.rendered([*pieces, (completion, ASSISTANT)], begins=self.begins, ends=ends)


@dataclass(frozen=True, slots=True)
class ChatRenderer:
    """A jinja chat template, run in transformers' sandbox; spans come from rendering one turn more at a time."""

    tokenizer: PreTrainedTokenizerBase
    template: str
    specials: re.Pattern[str] | None
    instruction: str | None
    instruction_in_prompt: bool
    last_only: bool
    begins: bool | None

    def __call__(self, conversation: Conversation, where: str) -> Rendered:
        if self.begins is None:
            say("the tokenizer has no chat template: turns are written plainly, as ### User: and ### Assistant:")
        guard = Guard(self.specials, self._instructed(conversation.messages))
        turns = [turn.as_dict() for turn in guard.messages]
        tools = list(conversation.tools)
        answered = conversation.answer is not None
        whole = self._text(turns, tools, where, prompt=not answered)
        pieces: list[tuple[str, str]] = []
        done, ends = 0, False
        for index, turn in enumerate(turns):
            last = answered and index == len(turns) - 1
            if turn["role"] != ASSISTANT or (self.last_only and not last):
                continue
            start = self._length(whole, self._text(turns[:index], tools, where, prompt=True), index, where)
            upto = whole if last else self._text(turns[: index + 1], tools, where, prompt=False)
            end = self._length(whole, upto, index, where)
            said, unended = _end_of_turn(whole[start:end], self.specials)
            pieces += [(whole[done:start], CONTEXT), (said, ASSISTANT)]
            done = start + len(said)
            ends = last and unended
            if unended and not last:
                say("the chat template writes no end token after earlier assistant turns; they teach no stopping")
        if not answered:
            pieces.append((whole[done:], CONTEXT))
        return guard.rendered(pieces, begins=self.begins, ends=ends)

    def _instructed(self, turns: tuple[Message, ...]) -> tuple[Message, ...]:
        if self.instruction is None or any(turn.role == "system" for turn in turns):
            return turns
        if not self.instruction_in_prompt:
            return (Message("system", self.instruction), *turns)
        first = next((index for index, turn in enumerate(turns) if turn.role == "user"), None)
        if first is None:
            return turns
        asked = replace(turns[first], content=f"{self.instruction}\n\n{turns[first].content}")
        return (*turns[:first], asked, *turns[first + 1 :])

    def _text(self, turns: Sequence[dict[str, Any]], tools: list[Any], where: str, *, prompt: bool) -> str:
        try:
            text = self.tokenizer.apply_chat_template(
                list(turns),
                tools=tools or None,
                chat_template=self.template,
                tokenize=False,
                add_generation_prompt=prompt,
            )
        except Exception as error:  # whatever a template raises while it looks at this conversation
            system = any(turn["role"] == "system" for turn in turns)
            remedy = "if it knows no system message, set instruction_in_prompt: true" if system else None
            raise DataError(f"the chat template refuses this row ({error})", where=where, remedy=remedy) from error
        if not isinstance(text, str) or len(text) > MAX_RENDERED_CHARACTERS:
            raise DataError("the chat template writes more text than can be trained on", where=where)
        return text

    @staticmethod
    def _length(whole: str, start: str, index: int, where: str) -> int:
        if not whole.startswith(start):
            raise DataError(
                f"the chat template changes what stands before turn {index} when later turns follow, so inference "
                "would see another prompt than training",
                where=where,
                remedy="use loss_on: last_assistant, or a template that keeps prompts as prefixes",
            )
        return len(start)


def _end_of_turn(said: str, specials: re.Pattern[str] | None) -> tuple[str, bool]:
    """An assistant turn without the layout after its end token, and whether it lacks an end token."""
    trimmed = said.rstrip()
    if specials is not None:
        last = last_match(specials, said)
        if last is not None and last.end() == len(trimmed):
            return trimmed, False
    return said, True


def _join(pieces: Iterable[tuple[str, str]]) -> tuple[str, tuple[Span, ...]]:
    text, spans = "", []
    for piece, role in pieces:
        spans.append(Span(len(text), len(text) + len(piece), role))
        text += piece
    return text, tuple(spans)


# Special tokens in content


def special_pattern(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str] | None:
    """Matches the text of every special token of ``tokenizer``; None when it has none."""
    tokens = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special and token.content}
    tokens |= set(tokenizer.all_special_tokens)
    ordered = sorted(tokens, key=lambda token: (-len(token), token))
    return re.compile("|".join(map(re.escape, ordered))) if ordered else None


def last_match(pattern: re.Pattern[str], text: str, start: int = 0) -> re.Match[str] | None:
    """The last match at or after ``start``."""
    found = deque(pattern.finditer(text, start), maxlen=1)
    return found[0] if found else None


class Guard:
    """Keeps special-token text in content apart from a template's own special tokens.

    Before rendering, each occurrence in a message is replaced by a placeholder of characters that occur in none of the
    messages; afterwards the text comes back and its place is known. So no template has to be searched for content.
    """

    def __init__(self, specials: re.Pattern[str] | None, messages: tuple[Message, ...]) -> None:
        self.hidden: list[str] = []
        self.messages = messages
        self.mark = ""
        if specials is None or not any(_search(specials, (turn.content, turn.extra)) for turn in messages):
            return
        everything = repr(messages) + "".join(turn.content for turn in messages)
        self.mark = next(chr(code) for code in range(0xE000, 0xF900) if chr(code) not in everything)
        self.messages = tuple(
            Message(turn.role, self._hide(specials, turn.content), self._hide(specials, turn.extra))
            for turn in messages
        )

    def rendered(self, pieces: Iterable[tuple[str, str]], *, begins: bool | None, ends: bool = False) -> Rendered:
        """Join rendered pieces of (text, role) with the hidden texts back in their places."""
        if not self.hidden:
            text, spans = _join(pieces)
            return Rendered(text, spans, (), begins, ends)
        shown, protected, length = [], [], 0
        for piece, role in pieces:
            parts = re.split(f"{self.mark}(\\d+){self.mark}", piece)
            for index in range(1, len(parts), 2):
                parts[index] = self.hidden[int(parts[index])]
            for index, part in enumerate(parts):
                if index % 2:
                    protected.append((length, length + len(part)))
                length += len(part)
            shown.append(("".join(parts), role))
        text, spans = _join(shown)
        _note_protected(protected, text)
        return Rendered(text, spans, tuple(protected), begins, ends)

    def _hide(self, specials: re.Pattern[str], value: Any) -> Any:
        if isinstance(value, str):
            return specials.sub(self._placeholder, value)
        if isinstance(value, dict):
            return {key: self._hide(specials, item) for key, item in value.items()}
        return [self._hide(specials, item) for item in value] if isinstance(value, list) else value

    def _placeholder(self, match: re.Match[str]) -> str:
        self.hidden.append(match.group())
        return f"{self.mark}{len(self.hidden) - 1}{self.mark}"


def _search(specials: re.Pattern[str], value: Any) -> bool:
    if isinstance(value, str):
        return specials.search(value) is not None
    if isinstance(value, dict):
        value = value.values()
    return isinstance(value, Iterable) and any(_search(specials, item) for item in value)


def _note_protected(protected: Sequence[tuple[int, int]], text: str) -> None:
    if protected:
        start, end = protected[0]
        say(
            f"some rows spell special tokens such as {text[start:end]} in their content; they are trained as plain "
            "text. Rows that bring their own template belong in the format text"
        )


# Files


def read_instruction(instruction: str | None) -> str | None:
    """The system message: the text of a file, or the setting itself when it names no file.

    Raises:
        ConfigError: it looks like a file name and there is no such file.
    """
    if instruction is None or not instruction.strip():
        return None
    short = len(instruction) < 1024 and "\n" not in instruction
    if short and Path(instruction).is_file():
        return read_text(instruction, "instruction").strip() or None
    if short and re.search(r"\.(txt|md|jinja|prompt)$", instruction) and not re.search(r"\s", instruction):
        raise ConfigError("no such file", where=f"data.instruction = {instruction}")
    return instruction


def read_text(name: str, setting: str) -> str:
    """A small text file that a setting names, without its final line end.

    Raises:
        ConfigError: it cannot be read or is not UTF-8.
    """
    try:
        return Path(name).expanduser().read_text(encoding="utf-8-sig").removesuffix("\n").removesuffix("\r")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"the file cannot be read ({reason})", where=f"data.{setting} = {name}") from None


def parse_string_template(template: str, where: str) -> tuple[str, ...]:
    """Literal parts and placeholders of a string template; other braces are literal text.

    Raises:
        ConfigError: ``{query}`` or ``{output}`` does not occur exactly once, in this order.
    """
    parts = tuple(part for part in re.split(r"(\{query\}|\{output\}|\{instruction\})", template) if part)
    counts = {name: parts.count(name) for name in ("{query}", "{output}")}
    if set(counts.values()) != {1} or parts.index("{query}") > parts.index("{output}"):
        raise ConfigError(
            "a template needs {query} and then {output}, each once",
            where=f"data.template = {where}",
            remedy="a chat template ends in .jinja",
        )
    return parts


def _token(value: Any) -> str | None:
    return value if isinstance(value, str) else None
