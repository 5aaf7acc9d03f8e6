"""Conversation to text with spans: literal text, a string template with placeholders, or a jinja chat template.

The prompt of inference and the prompt of training are made by the same function. Tokens and labels: ``masking.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from tunesmith import assets
from tunesmith.config.schema import DataSection
from tunesmith.data.chat_template import ChatRenderer, chat_renderer, check_switches
from tunesmith.data.conversation import ASSISTANT, Conversation
from tunesmith.data.formats import strip_markers
from tunesmith.data.nli import NLI_TEMPLATE
from tunesmith.data.rendered import CONTEXT, Piece, Rendered, join
from tunesmith.data.special_tokens import (
    ContentPolicy,
    Guard,
    end_of_turn,
    note_protected,
    special_pattern,
    token_text,
)
from tunesmith.data.steps import Steps
from tunesmith.data.template_files import parse_string_template, read_instruction, read_text
from tunesmith.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

JINJA_ENDINGS = (".jinja", ".jinja2", ".j2")
Renderer: TypeAlias = "LiteralRenderer | StringRenderer | ChatRenderer"
"""Conversation and its address to text. A conversation without a last assistant turn becomes a generation prompt."""


def choose_renderer(tokenizer: PreTrainedTokenizerBase, data: DataSection, format_name: str) -> Renderer:
    """The way in which rows of one format become text.

    Raises:
        ConfigError: the template or instruction file cannot be read, lacks a placeholder or does not suit the format.
        ModelError: the tokenizer's chat template is asked for and there is none, or a chat template cannot be trained.
    """
    instruction = read_instruction(data.instruction)
    content = ContentPolicy(special_pattern(tokenizer), data.special_in_content)
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
        return LiteralRenderer(content, None)
    if template is None and format_name == "prompt_completion":
        make_chat = partial(chat_renderer, tokenizer, data, None, content, instruction)
        return LiteralRenderer(content, instruction, make_chat)
    if template is None and format_name == "nli":
        parts = parse_string_template(NLI_TEMPLATE.removeprefix("<s>").removesuffix("</s>"), "nli")
        begins = True if tokenizer.bos_token == "<s>" else None  # noqa: S105 - a token of text
        return StringRenderer(parts, content, instruction, begins)
    if template is None or (not is_inline(template) and _is_chat(template)):
        return chat_renderer(tokenizer, data, template, content, instruction)
    bos, eos = token_text(tokenizer.bos_token), token_text(tokenizer.eos_token)
    source = template if is_inline(template) else read_text(str(assets.template(template) or template), "template")
    body, begins_literally = strip_markers(source, bos, eos)
    if bos and body.startswith(bos):
        raise ConfigError(
            f"the template begins with the begin token {bos} twice", where=f"data.template = {template}",
            remedy="write it once, or not at all",
        )  # fmt: skip
    return StringRenderer(parse_string_template(body, template), content, instruction, begins_literally or None)


def is_inline(template: str) -> bool:
    """Whether the setting is the text of a template itself, and no name of one."""
    return "{query}" in template


def _is_chat(template: str) -> bool:
    named = assets.template(template)
    return template == "chat" or (named or Path(template)).suffix in JINJA_ENDINGS


@dataclass(slots=True)
class LiteralRenderer:
    """Prompt and completion as they stand; for conversations that are not literal ``make_chat`` is called once."""

    content: ContentPolicy
    instruction: str | None
    make_chat: Callable[[], ChatRenderer] | None = None
    chat: ChatRenderer | None = None

    def __call__(self, conversation: Conversation, where: str) -> Rendered:
        renderer = self.of(conversation)
        if renderer is not self:
            return renderer(conversation, where)
        if not conversation.controls:
            self.content.check(conversation.messages, where)
        prompt = "".join(turn.content for turn in conversation.messages if turn.role != ASSISTANT)
        if self.instruction is not None:
            prompt = f"{self.instruction}\n\n{prompt}"
        pieces: list[Piece] = [(prompt, CONTEXT, conversation.weight)]
        if conversation.answer is not None:
            pieces.append((conversation.answer, ASSISTANT, conversation.weight))
        text, spans = join(pieces)
        found = self.content.hidden.finditer(text) if self.content.hidden and not conversation.controls else ()
        protected = tuple(match.span() for match in found)
        note_protected(protected, text)
        return Rendered(text, spans, protected, conversation.begins or None, conversation.answer is not None)

    def steps(self, conversation: Conversation, where: str) -> Steps[Rendered]:
        """The same in steps."""
        renderer = self.of(conversation)
        return self(conversation, where) if renderer is self else (yield from renderer.steps(conversation, where))

    def text_of(self, conversation: Conversation) -> str:
        """The whole text of a conversation."""
        return self.of(conversation)(conversation, "this row").text

    def of(self, conversation: Conversation) -> LiteralRenderer | ChatRenderer:
        """Who renders this conversation: the chat template where it is not literal."""
        if conversation.literal or self.make_chat is None:
            return self
        self.chat = self.chat or self.make_chat()
        return self.chat

    def frame(self) -> tuple[str, str]:
        """What stands before a question and between it and the answer."""
        return (f"{self.instruction}\n\n" if self.instruction is not None else ""), ""


@dataclass(frozen=True, slots=True)
class StringRenderer:
    """One question and one answer put into a text with ``{query}``, ``{output}`` and, if wanted, ``{instruction}``."""

    parts: tuple[str, ...]
    content: ContentPolicy
    instruction: str | None
    begins: bool | None

    def __call__(self, conversation: Conversation, where: str) -> Rendered:
        self.content.check(conversation.messages, where)
        check_switches(conversation, frozenset(), where)
        guard = Guard(self.content.hidden, conversation.messages)
        system = "\n\n".join(turn.content for turn in guard.messages if turn.role == "system") or self.instruction or ""
        queries = [turn.content for turn in guard.messages if turn.role == "user"]
        answers = [turn for turn in guard.messages if turn.role == ASSISTANT]
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
        pieces: list[Piece] = [(prompt, CONTEXT, conversation.weight)]
        if not answers:
            return guard.rendered(pieces, begins=self.begins)
        after = "".join(values.get(part, part) for part in self.parts[at + 1 :])
        completion, ends = end_of_turn(before[len(prompt) :] + answers[0].content + after, self.content.specials)
        weight = conversation.weight * answers[0].weight
        return guard.rendered([*pieces, (completion, ASSISTANT, weight)], begins=self.begins, ends=ends)

    def steps(self, conversation: Conversation, where: str) -> Steps[Rendered]:
        """The same in steps, of which there is none that waits."""
        yield from ()
        return self(conversation, where)

    def text_of(self, conversation: Conversation) -> str:
        """The whole text of a conversation.

        Raises:
            DataError: it has more than one question or answer.
        """
        return self(conversation, "this row").text

    def frame(self) -> tuple[str, str]:
        """What stands before a question and between it and the answer, the instruction in its place."""
        system = self.instruction or ""
        at = self.parts.index("{query}")
        before = "".join(self.parts[:at]).replace("{instruction}", system)
        if system and "{instruction}" not in self.parts:
            before += f"{system}\n\n"
        between = self.parts[at + 1 : self.parts.index("{output}")]
        after = "".join(between).replace("{instruction}", system)
        return before, after if between[-1:] == ("{instruction}",) else after.rstrip(" ")
