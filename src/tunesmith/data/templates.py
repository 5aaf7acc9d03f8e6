"""Conversation to text with spans: literal text, a string template with placeholders, or a jinja chat template.

The prompt of inference and the prompt of training are made by the same function. Tokens and labels: ``masking.py``.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from tunesmith import assets
from tunesmith.config.schema import DataSection
from tunesmith.data import sandbox
from tunesmith.data.conversation import ASSISTANT, Conversation, Message
from tunesmith.data.formats import strip_markers
from tunesmith.data.jinja_engine import PrefixPoints
from tunesmith.data.nli import NLI_TEMPLATE
from tunesmith.errors import ConfigError, DataError, ModelError
from tunesmith.notices import notify

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CONTEXT = "context"
"""Role of a span that nobody is trained on unless loss is on everything."""
SHIPPED_ENDS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>")
"""How templates that ship with tunesmith end a turn where they do not name the end token."""
JINJA_ENDINGS = (".jinja", ".jinja2", ".j2")

SpecialInContent = Literal["split", "error", "allow"]
Piece = tuple[str, str, float]
"""Text, role and weight of a stretch of a rendered conversation."""


@dataclass(frozen=True, slots=True)
class Span:
    """Characters ``start`` to ``end`` of a rendered text and their role: an assistant turn with its end, or context.

    ``weight`` is what the loss of their tokens is multiplied by, where they carry loss.
    """

    start: int
    end: int
    role: str
    weight: float = 1.0


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
        make_chat = partial(_chat_renderer, tokenizer, data, None, content, instruction)
        return LiteralRenderer(content, instruction, make_chat)
    if template is None and format_name == "nli":
        parts = parse_string_template(NLI_TEMPLATE.removeprefix("<s>").removesuffix("</s>"), "nli")
        begins = True if tokenizer.bos_token == "<s>" else None
        return StringRenderer(parts, content, instruction, begins)
    if template is None or (not is_inline(template) and _is_chat(template)):
        return _chat_renderer(tokenizer, data, template, content, instruction)
    bos, eos = _token(tokenizer.bos_token), _token(tokenizer.eos_token)
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


def _chat_renderer(
    tokenizer: PreTrainedTokenizerBase,
    data: DataSection,
    template: str | None,
    content: ContentPolicy,
    instruction: str | None,
) -> ChatRenderer:
    name, begins, ours = template, False, False
    if template is not None and template != "chat":
        shipped = assets.template(template)
        source, ours = read_text(str(shipped or template), "template"), shipped is not None
        if ours:
            source = _with_own_end(source, content.specials, tokenizer)
    elif isinstance(tokenizer.chat_template, (str, dict)) and tokenizer.chat_template:
        source, name = tokenizer.get_chat_template(), "the tokenizer's"
    elif template == "chat":
        raise ModelError(
            "the tokenizer has no chat template",
            where="data.template = chat",
            remedy=f"give template a .jinja file or one of {', '.join(assets.template_names())}",
        )
    else:
        source, ours, name = read_text(str(assets.template("plain")), "template"), True, None
    # A template that names the begin token decides about it; one that does not leaves it to the settings.
    decides = "bos_token" in source or not ours
    tokens = {key: value for key, value in tokenizer.special_tokens_map.items() if isinstance(value, (str, list))}
    renderer = ChatRenderer(
        variables=tokens | data.chat_template_kwargs,
        source=source,
        name=name,
        ours=ours,
        content=content,
        instruction=instruction,
        instruction_in_prompt=data.instruction_in_prompt,
        loss_on=data.loss_on,
        begins=begins if decides else None,
    )
    if not renderer.writes_answers() and replace(renderer, parts=True).writes_answers():
        renderer = replace(renderer, parts=True)
    renderer.check()
    return renderer


def _with_own_end(source: str, specials: re.Pattern[str] | None, tokenizer: PreTrainedTokenizerBase) -> str:
    """A template that ships with tunesmith, ending turns with the tokenizer's end token where it lacks the template's.

    A turn that ends with a text that is no token would teach nothing that generation can stop at.
    """
    for token in SHIPPED_ENDS:
        known = specials is not None and specials.fullmatch(token) is not None
        if f"'{token}'" in source and not known:
            end = _token(tokenizer.eos_token) or ""
            notify(f"the tokenizer has no {token}: turns end with its end token {end} instead")
            source = source.replace(f"'{token}'", "eos_token")
    return source


# The three ways


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
        text, spans = _join(pieces)
        found = self.content.hidden.finditer(text) if self.content.hidden and not conversation.controls else ()
        protected = tuple(match.span() for match in found)
        _note_protected(protected, text)
        return Rendered(text, spans, protected, conversation.begins or None, conversation.answer is not None)

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
        completion, ends = _end_of_turn(before[len(prompt) :] + answers[0].content + after, self.content.specials)
        weight = conversation.weight * answers[0].weight
        return guard.rendered([*pieces, (completion, ASSISTANT, weight)], begins=self.begins, ends=ends)

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


@dataclass(frozen=True, slots=True)
class ChatRenderer:
    """A jinja chat template in its sandbox; spans come from rendering one turn more at a time.

    ``parts`` hands content to the template as a list of one text part, as templates of models that see pictures want.
    """

    variables: dict[str, Any]
    source: str
    name: str | None
    ours: bool
    content: ContentPolicy
    instruction: str | None
    instruction_in_prompt: bool
    loss_on: str
    begins: bool | None
    parts: bool = False

    def check(self) -> None:
        """Look at the template with one question and answer.

        Raises:
            ModelError: a model trained on this template could not be used with it.
        """
        problem = self._problem()
        if problem is not None:
            what, remedy = problem
            raise ModelError(f"the chat template {what}", where=f"data.template = {self.name}", remedy=remedy)

    def __call__(self, conversation: Conversation, where: str) -> Rendered:
        if self.name is None:
            notify("the tokenizer has no chat template: turns are written plainly, as ### User: and ### Assistant:")
        self.content.check(conversation.messages, where)
        guard = Guard(self.content.hidden, self._instructed(conversation.messages))
        turns = [self._as_dict(turn) for turn in guard.messages]
        answered = conversation.answer is not None
        number = len(turns)
        chosen = [
            index
            for index, turn in enumerate(guard.messages)
            if turn.role == ASSISTANT and (self._has_loss(turn) or (answered and index == number - 1))
        ]
        cuts = [(number, not answered)]
        for index in chosen:
            cuts += [(index, True)] if index == number - 1 else [(index, True), (index + 1, False)]
        whole, *texts = self._texts(turns, list(conversation.tools), cuts, where)
        pieces: list[Piece] = []
        done, ends = 0, False
        for index in chosen:
            last = index == number - 1
            turn = guard.messages[index]
            start = self._length(whole, texts.pop(0), index, where)
            end = len(whole) if last else self._end(whole, start, texts.pop(0), index, where)
            said, unended = _end_of_turn(whole[start:end], self.content.specials)
            weight = conversation.weight * turn.weight
            pieces += [(whole[done:start], CONTEXT, conversation.weight), (said, ASSISTANT, weight)]
            done = start + len(said)
            ends = last and unended
            if unended and not last and weight > 0:
                raise ModelError(
                    f"{where}: the chat template writes no end token after the answer in turn {index} "
                    f"({said[-24:]!r}), so the model would not learn to stop there",
                    remedy="use loss_on: last_assistant, or a template that ends turns with one of the special tokens",
                )
        if not answered:
            pieces.append((whole[done:], CONTEXT, conversation.weight))
        return guard.rendered(pieces, begins=self.begins, ends=ends)

    def _as_dict(self, turn: Message) -> dict[str, Any]:
        values = turn.as_dict()
        return values | {"content": [{"type": "text", "text": turn.content}]} if self.parts else values

    def _has_loss(self, turn: Message) -> bool:
        if self.loss_on == "all":
            return True
        if self.loss_on == "last_assistant" or (turn.given and self.loss_on == "completion"):
            return False
        return turn.weight > 0

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

    def _texts(self, turns: list[dict[str, Any]], tools: list[Any], cuts: PrefixPoints, where: str) -> list[str]:
        try:
            return sandbox.render(self.source, self.variables, turns, tools, cuts, ours=self.ours)
        except sandbox.TemplateRefusal as refusal:
            system = any(turn["role"] == "system" for turn in turns)
            remedy = "if it knows no system message, set instruction_in_prompt: true" if system else None
            raise DataError(f"the chat template refuses this row ({refusal})", where=where, remedy=remedy) from refusal

    def _length(self, whole: str, start: str, index: int, where: str) -> int:
        if not whole.startswith(start):
            raise self._unstable(index, where)
        return len(start)

    def _end(self, whole: str, start: int, upto: str, index: int, where: str) -> int:
        """Where turn ``index`` ends in ``whole``; ``upto`` is what the template writes when nothing follows it.

        Some templates close the last turn otherwise than earlier ones: with one token more (then the turn ends with the
        special token before it), or with another one in its place.
        """
        if whole.startswith(upto):
            return len(upto)
        specials = self.content.specials
        if specials is None:
            raise self._unstable(index, where)
        same = _common(whole, upto)
        differing = next((match for match in specials.finditer(whole, start) if match.end() > same), None)
        inside = differing is not None and differing.start() <= same
        until = differing.start() if differing is not None and inside else same
        last = last_match(specials, whole[:until], start)
        if last is not None and not whole[last.end() : until].strip():
            return last.end()
        if differing is not None and inside and specials.match(upto, differing.start()):
            return differing.end()
        raise self._unstable(index, where)

    @staticmethod
    def _unstable(index: int, where: str) -> ModelError:
        return ModelError(
            f"the chat template changes what stands before turn {index} when later turns follow, so inference "
            "would see another prompt than training",
            where=where,
            remedy="use loss_on: last_assistant, or a variant of the template that is made for training",
        )

    def writes_answers(self) -> bool:
        """Whether an answer's words stand in the text that the template writes."""
        turns = [self._as_dict(Message("user", "q1")), self._as_dict(Message(ASSISTANT, "a1"))]
        try:
            (whole,) = sandbox.render(self.source, self.variables, turns, [], [(2, False)], ours=self.ours)
        except sandbox.TemplateRefusal:
            return False
        return "a1" in whole

    def _problem(self) -> tuple[str, str] | None:
        """What makes this template unfit for training, and the remedy."""
        turns = [self._as_dict(Message("user", "q1")), self._as_dict(Message(ASSISTANT, "a1"))]
        cuts = [(1, False), (1, True), (2, False)]
        try:
            asked, prompt, whole = sandbox.render(self.source, self.variables, turns, [], cuts, ours=self.ours)
        except sandbox.TemplateRefusal as refusal:
            if any(sign in str(refusal) for sign in sandbox.LIMITS):
                return f"cannot be used: {refusal}", "use another template"
            return None  # it may want a system message, or other keys; the rows will tell
        if not whole.startswith(prompt):
            same = _common(whole, prompt)
            return (
                f"does not keep the prompt: for inference it writes {prompt[same:][:40]!r} where training has "
                f"{whole[same:][:40]!r}, so inference would see another prompt than training",
                "use the variant of this template that is made for training, or set its switches with "
                "chat_template_kwargs (enable_thinking: false)",
            )
        said = whole[len(prompt) :]
        if "a1" not in said:
            return "does not write the assistant's words", "use another template"
        header = said[: said.index("a1")]
        if prompt == asked and header.strip():
            return (
                f"has no generation prompt: it writes {header[:40]!r} before an answer in training, and not when "
                "add_generation_prompt asks for it",
                "add {% if add_generation_prompt %} with that text at its end",
            )
        begin = self.variables.get("bos_token")
        if begin and whole.lstrip().removeprefix(begin).lstrip().startswith(begin):
            return f"writes the begin token {begin} twice", "let it write bos_token once"
        return None


def _common(first: str, second: str) -> int:
    """Number of characters with which both texts begin."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((index for index, (one, other) in pairs if one != other), min(len(first), len(second)))


def _end_of_turn(said: str, specials: re.Pattern[str] | None) -> tuple[str, bool]:
    """An assistant turn without the layout after its end token, and whether it lacks an end token."""
    trimmed = said.rstrip()
    if specials is not None:
        last = last_match(specials, said)
        if last is not None and last.end() == len(trimmed):
            return trimmed, False
    return said, True


def _join(pieces: Iterable[Piece]) -> tuple[str, tuple[Span, ...]]:
    text, spans = "", []
    for piece, role, weight in pieces:
        spans.append(Span(len(text), len(text) + len(piece), role, weight))
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


@dataclass(frozen=True, slots=True)
class ContentPolicy:
    """What happens to content that spells a special token: split into plain text, refused, or allowed to be one."""

    specials: re.Pattern[str] | None
    policy: SpecialInContent

    @property
    def hidden(self) -> re.Pattern[str] | None:
        """Texts that have to be kept from becoming tokens; None when they may."""
        return None if self.policy == "allow" else self.specials

    def check(self, messages: Iterable[Message], where: str) -> None:
        """Refuse content that spells a special token, where the policy says so.

        Raises:
            DataError: names the turn and the token.
        """
        if self.policy != "error" or self.specials is None:
            return
        for index, turn in enumerate(messages):
            found = self.specials.search(turn.content) or self.specials.search(repr(turn.extra))
            if found:
                raise DataError(
                    f"the content of turn {index} ({turn.role}) spells the special token {found.group()}",
                    where=where,
                    remedy="remove it, or set special_in_content: split (it is trained as plain text)",
                )


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
            replace(turn, content=self._hide(specials, turn.content), extra=self._hide(specials, turn.extra))
            for turn in messages
        )

    def rendered(self, pieces: Iterable[Piece], *, begins: bool | None, ends: bool = False) -> Rendered:
        """Join rendered pieces with the hidden texts back in their places."""
        if not self.hidden:
            text, spans = _join(pieces)
            return Rendered(text, spans, (), begins, ends)
        shown: list[Piece] = []
        protected: list[tuple[int, int]] = []
        length = 0
        for piece, role, weight in pieces:
            parts = re.split(f"{self.mark}(\\d+){self.mark}", piece)
            for index in range(1, len(parts), 2):
                parts[index] = self.hidden[int(parts[index])]
            for index, part in enumerate(parts):
                if index % 2:
                    protected.append((length, length + len(part)))
                length += len(part)
            shown.append(("".join(parts), role, weight))
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
        notify(
            f"some rows spell special tokens such as {text[start:end]} in their content; they are trained as plain "
            "text. Rows that bring their own template belong in the format text"
        )


# Files


def read_instruction(instruction: str | None) -> str | None:
    """The system message: the text of a file, or the setting itself when it names no file, as a text of several lines
    never does.

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
    return instruction.strip()


def read_text(name: str, setting: str) -> str:
    """A small text file that a setting names, without its final line end.

    Raises:
        ConfigError: it cannot be read or is not UTF-8.
    """
    try:
        return Path(name).expanduser().read_text(encoding="utf-8-sig").removesuffix("\n").removesuffix("\r")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        remedy = f"name a file or one of {', '.join(assets.template_names())}" if setting == "template" else None
        raise ConfigError(
            f"the file cannot be read ({reason})", where=f"data.{setting} = {name}", remedy=remedy
        ) from None


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
