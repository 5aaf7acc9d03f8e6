"""Conversations through a jinja chat template: the tokenizer's, one that ships with tunesmith, or a file.

Spans come from rendering one turn more at a time, in the sandbox of ``sandbox.py``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tunesmith.config.schema import DataSection
from tunesmith.data import sandbox
from tunesmith.data.chat_source import chat_source
from tunesmith.data.conversation import ASSISTANT, THOUGHTS, Conversation, Message
from tunesmith.data.jinja_engine import GIVEN, PrefixPoints, Shared
from tunesmith.data.rendered import CONTEXT, Piece, Rendered
from tunesmith.data.special_tokens import ContentPolicy, Guard, end_of_turn, last_match, token_text
from tunesmith.data.steps import Steps, alone
from tunesmith.errors import ConfigError, DataError, ModelError
from tunesmith.notices import notify

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

THINK, THINK_END = "<think>", "</think>"
PROBE_SYSTEM = (Message("system", "s1"),)
PROBE_TOOL = {
    "type": "function",
    "function": {"name": "f1", "description": "d1", "parameters": {"type": "object", "properties": {}}},
}
"""What a template is also tried with where it refuses a question and an answer alone."""


def chat_renderer(
    tokenizer: PreTrainedTokenizerBase,
    data: DataSection,
    template: str | None,
    content: ContentPolicy,
    instruction: str | None,
) -> ChatRenderer:
    """The renderer of a chat template.

    Args:
        template: a named template, a file, ``chat`` for the tokenizer's; None takes the tokenizer's where there is one
            and writes turns plainly where there is none.
        content: what happens to special tokens in content.
        instruction: the system message of conversations that have none.

    Raises:
        ConfigError: the file cannot be read.
        ModelError: ``chat``, and the tokenizer has no template; or a model could not be trained on this one.
    """
    found = chat_source(tokenizer, template, content.specials)
    tokens = {key: value for key, value in tokenizer.special_tokens_map.items() if isinstance(value, (str, list))}
    renderer = ChatRenderer(
        variables=tokens | data.chat_template_kwargs,
        source=found.text,
        name=found.name,
        ours=found.ours,
        content=content,
        instruction=instruction,
        instruction_in_prompt=data.instruction_in_prompt,
        loss_on=data.loss_on,
        # a template that names the begin token decides about it; one that does not leaves it to the settings
        begins=False if "bos_token" in found.text or not found.ours else None,
        for_tools=found.for_tools,
        today=data.template_date,
    )
    renderer = _suited(renderer)
    renderer.check()
    if data.chat_template_kwargs:
        renderer.say_unread(data.chat_template_kwargs)
    if renderer.trims_answers():
        notify("the chat template trims answers: blanks and line ends around them are not trained")
    if renderer.forgets_begin(tokenizer):
        notify(
            f"the chat template writes no begin token, although the tokenizer begins texts with {tokenizer.bos_token}: "
            "conversations are trained and asked without it; begin the template with {{ bos_token }} if that is wrong"
        )
    return renderer


def _suited(renderer: ChatRenderer) -> ChatRenderer:
    """The renderer as its template wants contents and thoughts."""
    if not renderer.writes("a1") and replace(renderer, parts=True).writes("a1"):
        renderer = replace(renderer, parts=True)
    if renderer.opens_thoughts():
        renderer = replace(renderer, thinks=True, inline=not renderer.writes("t1"))
    return renderer


@dataclass(frozen=True, slots=True)
class ChatRenderer:
    """A jinja chat template in its sandbox; spans come from rendering one turn more at a time.

    ``parts`` hands content to the template as a list of one text part, as templates of models that see pictures want.
    ``for_tools`` is the template of rows with tools where the tokenizer has one, ``today`` the day that is written.
    ``thinks`` says that the generation prompt opens a thought, so that answers have to begin with one; ``inline``, that
    thoughts are then written into the answer, for the template reads them nowhere else.
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
    for_tools: str | None = None
    today: str | None = None
    thinks: bool = False
    inline: bool = False

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
        return alone(self.steps(conversation, where))

    def steps(self, conversation: Conversation, where: str) -> Steps[Rendered]:
        """The same in steps, so that many conversations can be rendered together."""
        if self.name is None:
            notify("the tokenizer has no chat template: turns are written plainly, as ### User: and ### Assistant:")
        self.content.check(conversation.messages, where)
        if conversation.switches:
            check_switches(conversation, sandbox.names_read(self.source_of(conversation)), where)
        shown, marks = self._with_thoughts(self._instructed(conversation.messages))
        guard = Guard(self.content.hidden, shown)
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
        whole, texts = _unmarked_shared((yield from self._texts(conversation, turns, cuts, where)), marks)
        following = iter(texts)
        pieces: list[Piece] = []
        done, ends = 0, False
        for index in chosen:
            last = index == number - 1
            turn = guard.messages[index]
            start = self._length(whole, next(following), index, where)
            end = len(whole) if last else self._end(whole, start, next(following), index, where)
            said, unended = end_of_turn(whole[start:end], self.content.specials)
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

    def text_of(self, conversation: Conversation) -> str:
        """The whole text of a conversation, in one rendering; content that spells special tokens is no matter here.

        Raises:
            DataError: the template refuses it.
        """
        shown, marks = self._with_thoughts(self._instructed(conversation.messages))
        turns = [self._as_dict(turn) for turn in shown]
        text, _ = alone(self._texts(conversation, turns, [(len(turns), False)], "this row"))
        return _unmarked(text, marks)

    def source_of(self, conversation: Conversation) -> str:
        """The template of such a row: the one for tools where it has some and there is one."""
        return self.for_tools if self.for_tools is not None and conversation.tools else self.source

    def _with_thoughts(self, messages: tuple[Message, ...]) -> tuple[tuple[Message, ...], str]:
        """The messages with thoughts where an opened thought expects them, and two characters that stand for
        ``<think>`` and ``</think>`` in the last answer: some templates cut there. No characters: nothing to put back.
        """
        if not self.inline:
            return messages, ""
        everything = repr(messages)
        free = (chr(code) for code in range(0xF000, 0xF900))
        one, two = [character for character in free if character not in everything][:2]
        made = []
        for index, turn in enumerate(messages):
            if turn.role == ASSISTANT:
                extra = dict(turn.extra)
                thought = extra.pop(THOUGHTS, "").strip()
                content = f"{THINK}\n{thought}\n{THINK_END}\n\n{turn.content}" if thought else turn.content
                if index == len(messages) - 1:
                    content = content.replace(THINK, one).replace(THINK_END, two)
                turn = replace(turn, content=content, extra=extra)
            made.append(turn)
        return tuple(made), one + two

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

    def _texts(
        self, conversation: Conversation, turns: list[dict[str, Any]], cuts: PrefixPoints, where: str
    ) -> Steps[Shared]:
        frame = sandbox.Frame(self.source_of(conversation), self.variables, self.ours, self.today)
        try:
            found: Shared = yield sandbox.Request(frame, conversation.switches, turns, list(conversation.tools), cuts)
        except sandbox.TemplateRefusal as refusal:
            system = any(turn["role"] == "system" for turn in turns)
            remedy = "if it knows no system message, set instruction_in_prompt: true" if system else None
            raise DataError(f"the chat template refuses this row ({refusal})", where=where, remedy=remedy) from refusal
        return found

    def _length(self, whole: str, before: tuple[int, str], index: int, where: str) -> int:
        same, rest = before
        if not rest:
            return same
        if self.thinks:
            raise DataError(
                f"the template's prompt ends with {(whole[:same] + rest)[-24:]!r}, and the answer of turn {index} does "
                "not begin so: inference would see another prompt than training",
                where=where,
                remedy="give the answer its thoughts (reasoning_content), switch them off with chat_template_kwargs "
                "(enable_thinking: false), or use loss_on: last_assistant where earlier answers lose theirs",
            )
        raise self._unstable(index, where)

    def _end(self, whole: str, start: int, upto: tuple[int, str], index: int, where: str) -> int:
        """Where turn ``index`` ends in ``whole``; ``upto`` is what the template writes when nothing follows it: how
        much of ``whole``, and what else.

        Some templates close the last turn otherwise than earlier ones: with one token more (then the turn ends with the
        special token before it), or with another one in its place.
        """
        same, rest = upto
        if not rest:
            return same
        specials = self.content.specials
        if specials is None:
            raise self._unstable(index, where)
        differing = next((match for match in specials.finditer(whole, start) if match.end() > same), None)
        inside = differing is not None and differing.start() <= same
        until = differing.start() if differing is not None and inside else same
        last = last_match(specials, whole[:until], start)
        if last is not None and not whole[last.end() : until].strip():
            return last.end()
        if differing is not None and inside and specials.match(whole[differing.start() : same] + rest):
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

    def _probed(self, *answers: Message, cuts: PrefixPoints) -> list[str]:
        """Texts of a question and its answers under the template, with whatever else it does not do without: some
        want a system message, and some go through a list of tools that they take to be there.

        Raises:
            TemplateRefusal: it takes none of them.
        """
        shown, marks = self._with_thoughts((Message("user", "q1"), *answers))
        refusals = []
        for system, tools in ((), []), ((), [PROBE_TOOL]), (PROBE_SYSTEM, []), (PROBE_SYSTEM, [PROBE_TOOL]):
            turns = [self._as_dict(turn) for turn in (*system, *shown)]
            moved = [(number + len(system), prompt) for number, prompt in cuts]
            try:
                texts = sandbox.render(
                    self.source, self.variables, turns, tools, moved, ours=self.ours, today=self.today
                )
            except sandbox.TemplateRefusal as refusal:
                refusals.append(refusal)
                if any(sign in str(refusal) for sign in sandbox.LIMITS):  # more would only take longer
                    break
            else:
                return [_unmarked(text, marks) for text in texts]
        raise refusals[-1]

    def writes(self, words: str) -> bool:
        """Whether the template writes the answer ``a1`` or the thought ``t1`` of a first turn."""
        thoughts = {} if words == "a1" else {THOUGHTS: "t1"}
        try:
            (text,) = self._probed(Message(ASSISTANT, "a1", thoughts), cuts=[(2, False)])
        except sandbox.TemplateRefusal:
            return False
        return words in text

    def opens_thoughts(self) -> bool:
        """Whether the generation prompt ends with the beginning of a thought."""
        try:
            (prompt,) = self._probed(cuts=[(1, True)])
        except sandbox.TemplateRefusal:
            return False
        return prompt.rstrip().endswith(THINK)

    def _problem(self) -> tuple[str, str] | None:
        """What makes this template unfit for training, and the remedy."""
        thoughts = {THOUGHTS: "t1"} if self.thinks else {}
        cuts = [(1, False), (1, True), (2, False)]
        try:
            asked, prompt, whole = self._probed(Message(ASSISTANT, "a1", thoughts), cuts=cuts)
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
        ends = [match[0] for match in self.content.specials.finditer(said)] if self.content.specials else []
        if len(ends) > 1 and ends[-1] == ends[-2]:
            return f"writes the end token {ends[-1]} twice", "let it write the token once after an answer"
        return None

    def say_unread(self, switches: Iterable[str]) -> None:
        """Say which of the settings' names the template does not read.

        Raises:
            ConfigError: one of them stands for what the rows hold.
        """
        for name in switches:
            if name in GIVEN:
                raise ConfigError(
                    f"{name} is what the rows hold", where="data.chat_template_kwargs", remedy="remove it"
                )
        known = sandbox.names_read(self.source) | sandbox.names_read(self.for_tools or "")
        unread = [name for name in switches if name not in known]
        if unread:
            notify(f"chat_template_kwargs: the chat template does not read {', '.join(unread)}")

    def trims_answers(self) -> bool:
        """Whether blanks around an answer are missing in the text that the template writes."""
        said = " \n a1 \n "
        try:
            (whole,) = self._probed(Message(ASSISTANT, said), cuts=[(2, False)])
        except sandbox.TemplateRefusal:
            return False
        return "a1" in whole and said not in whole

    def forgets_begin(self, tokenizer: PreTrainedTokenizerBase) -> bool:
        """Whether the template writes no begin token, although the tokenizer begins texts with one."""
        begin = token_text(tokenizer.bos_token)
        if not begin or self.begins is not False or "bos_token" in self.source or begin in self.source:
            return False
        ids: list[int] = tokenizer("a").input_ids
        return ids[:1] == [tokenizer.bos_token_id]


def check_switches(conversation: Conversation, known: frozenset[str], where: str) -> None:
    """Refuse a row's own names for the template where the template does not read them.

    Args:
        known: the names that it reads.

    Raises:
        DataError: names them.
    """
    unknown = [name for name in conversation.switches if name not in known]
    if unknown:
        raise DataError(
            f"chat_template_kwargs has {', '.join(unknown)}, which the chat template does not know",
            where=where,
            remedy="remove it from the row, or use a template that knows it",
        )


def _unmarked(text: str, marks: str) -> str:
    return text.replace(marks[0], THINK).replace(marks[1], THINK_END) if marks else text


def _unmarked_shared(shared: Shared, marks: str) -> Shared:
    whole, others = shared
    if not marks:
        return shared
    shown = _unmarked(whole, marks)
    made = []
    for same, rest in others:
        start, left = len(_unmarked(whole[:same], marks)), _unmarked(rest, marks)
        more = _common(shown[start : start + len(left)], left)
        made.append((start + more, left[more:]))
    return shown, made


def _common(first: str, second: str) -> int:
    """Number of characters with which both texts begin."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((index for index, (one, other) in pairs if one != other), min(len(first), len(second)))
