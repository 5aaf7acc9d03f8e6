"""Rows to examples and prompts: the whole way from a row to ids, for training and for inference.

Rows come from ``rows.py``, batches from ``collate.py``. Everything that is cut or dropped goes into the ledger.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING

from tunesmith.config.schema import DataSection
from tunesmith.data.chat_source import reads_date
from tunesmith.data.chat_template import ChatRenderer
from tunesmith.data.columns import ColumnCheck
from tunesmith.data.conversation import ASSISTANT, THOUGHTS, Conversation
from tunesmith.data.encoding import Encoder
from tunesmith.data.formats import FORMATS, FormatOptions, detect, nli_reference, rename, row_weight
from tunesmith.data.ledger import Ledger
from tunesmith.data.masking import (
    Example,
    encode,
    fit,
    is_weightless,
    make_example,
    num_unknown,
    prompt_ids,
    split,
    start_after,
    start_after_thoughts,
)
from tunesmith.data.media import refuse_media
from tunesmith.data.rag import cut_documents
from tunesmith.data.refused import Refused
from tunesmith.data.rendered import Rendered
from tunesmith.data.row import Row
from tunesmith.data.sandbox import TOGETHER
from tunesmith.data.shorten import shorten
from tunesmith.data.steps import Steps, alone, together
from tunesmith.data.stops import stops_of
from tunesmith.data.templates import LiteralRenderer, Renderer, StringRenderer, choose_renderer
from tunesmith.data.tokenized import TOKENIZED, TokenRows, check_settings
from tunesmith.data.unwritten import THOUGHT_END, Unwritten, refusal
from tunesmith.errors import DataError
from tunesmith.notices import notify

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHUNK_ROWS = 512
"""Rows that are tokenised in one call."""
LABELLED = ("nli", "text")
"""Formats whose answers may hold a class label."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What inference feeds for a row: the very ids that stand before the answer in training."""

    input_ids: list[int]
    row: Row


class ExampleBuilder:
    """Turns rows into training examples and inference prompts under one set of data settings.

    Args:
        tokenizer: the model's tokenizer; it is not changed.
        data: the run's data section.

    Raises:
        ConfigError: template or instruction cannot be used.
        ModelError: the tokenizer has no end token, or no chat template where one is asked for.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, data: DataSection) -> None:
        self.tokenizer = tokenizer
        self.data = data if data.template_date else data.model_copy(update={"template_date": date.today().isoformat()})
        self.encoder = Encoder(tokenizer, data.add_bos)
        self.formats: dict[str, str] = {}
        self.columns = ColumnCheck(data.columns, filter(None, (data.dev_group_by, data.dev_stratify_by)))
        bos, eos = tokenizer.bos_token, tokenizer.eos_token
        self._options = FormatOptions(
            bos_token=bos if isinstance(bos, str) else None,
            eos_token=eos if isinstance(eos, str) else None,
            completion_start=data.completion_start,
            whole_text=data.loss_on == "all",
            roles=data.roles,
            turn_order=data.turn_order,
        )
        self._renderers: dict[str, Renderer] = {}
        self._unwritten: dict[int, Unwritten] = {}
        self._said: set[str] = set()
        if data.format == TOKENIZED:
            check_settings(data)
        elif data.format != "auto":
            self._renderer(data.format)

    @cached_property
    def _tokens(self) -> TokenRows:
        return TokenRows(self.encoder, self.data)

    @property
    def template_date(self) -> str | None:
        """The day that the template writes as today; None where it writes none."""
        return self.data.template_date if reads_date(self.tokenizer, self.data) else None

    def examples(self, rows: Iterable[Row], ledger: Ledger) -> Iterator[Example]:
        """Examples in the order of the rows, in flat memory.

        Raises:
            DataError: rows cannot be used; up to 20 are listed, and of too long rows also the number and the length
                that would do for all.
        """
        refused = Refused(self.data.max_length)
        remaining = iter(rows)
        while chunk := list(islice(remaining, CHUNK_ROWS)):
            read: list[tuple[Row, Rendered | Example]] = []
            for start in range(0, len(chunk), TOGETHER):
                some = chunk[start : start + TOGETHER]
                texts = together([self._training_text(row, ledger) for row in some])
                for row, found in zip(some, texts, strict=True):
                    if isinstance(found, DataError):
                        refused.add(found)
                    elif found is not None:
                        read.append((row, found))
            encoded = iter(encode([text for _, text in read if isinstance(text, Rendered)], self.encoder))
            for row, text in read:
                ids = next(encoded) if isinstance(text, Rendered) else None
                try:
                    made = self._finish(row, text, ids, ledger)
                except DataError as problem:
                    refused.add(problem)
                else:
                    if not refused.any:
                        yield from made
        refused.stop()

    def example(self, row: Row, ledger: Ledger | None = None) -> Example | None:
        """The example of one row; None when a policy drops it, which the ledger then says.

        Raises:
            DataError: the row cannot be used.
        """
        return next(self.examples([row], Ledger() if ledger is None else ledger), None)

    def prompt(self, row: Row) -> Prompt:
        """The prompt of a row, with or without an answer in it; never shortened.

        Raises:
            DataError: the row has no prompt.
        """
        if self.format_of(row) == TOKENIZED:
            return Prompt(self._tokens.prompt(rename(row, self.data.columns)), row)
        return Prompt(prompt_ids(self.prompt_rendered(row), self.encoder), row)

    def prompt_rendered(self, row: Row) -> Rendered:
        """The text of a row's prompt, as ``prompt`` encodes it."""
        row = rename(row, self.data.columns)
        conversation = self._conversation(row, need_answer=False).without_answer()
        rendered = self._renderer(self.format_of(row))(conversation, row.where)
        self._say_unwritten(row, conversation, rendered, None)
        return rendered

    def reference(self, row: Row) -> str | None:
        """The gold answer of a row as text, its tool calls included, without template; None when the row has none, as
        rows of token ids.

        Of an NLI row it is the answer with the true label, where the row knows one.
        """
        row = rename(row, self.data.columns)
        if self.format_of(row) == "nli":
            return nli_reference(row)
        if self.format_of(row) == TOKENIZED:
            return None
        return self._conversation(row, need_answer=False).answer_with_calls

    def stop_token_ids(self, row: Row) -> list[int]:
        """Ids at which generation for such a row has to stop: the template's end of turn and the end token.

        Raises:
            DataError: the row has no prompt, or the template refuses it.
        """
        row = rename(row, self.data.columns)
        if self.format_of(row) == TOKENIZED:
            return self._tokens.stop_token_ids(row)
        asked = self._conversation(row, need_answer=False).without_answer()
        return stops_of(asked, self._renderer(self.format_of(row)), self.encoder, row.where)

    def prompt_text(self, row: Row) -> str:
        """The text of a row's prompt, for comparison; of text without a marker, all of it; of ids what they say."""
        if self.format_of(row) == TOKENIZED:
            return str(self.tokenizer.decode(self.prompt(row).input_ids))
        if self.format_of(row) == "text" and self.data.loss_on == "all":
            conversation = self._conversation(rename(row, self.data.columns), need_answer=True)
            return conversation.messages[0].content or str(conversation.answer)
        return self.prompt_rendered(row).text

    def format_of(self, row: Row) -> str:
        """Name of the row's format: the setting's, else what the columns of its source's first row say."""
        if self.data.format != "auto":
            return self.data.format
        if row.source not in self.formats:
            self.formats[row.source] = detect(rename(row, self.data.columns))
            notify(f"{row.source}: rows are read as {self.formats[row.source]}")
        return self.formats[row.source]

    def renderer_of(self, row: Row) -> Renderer:
        """What turns such rows into text, for whoever has to write down how."""
        renderer = self._renderer(self.format_of(row))
        if not isinstance(renderer, LiteralRenderer):
            return renderer
        return renderer.of(self._conversation(rename(row, self.data.columns), need_answer=False))

    def _renderer(self, format_name: str) -> Renderer:
        if format_name not in self._renderers:
            self._renderers[format_name] = choose_renderer(self.tokenizer, self.data, format_name)
        return self._renderers[format_name]

    def _conversation(self, row: Row, *, need_answer: bool) -> Conversation:
        options = self._options if need_answer else replace(self._options, need_answer=False)
        return FORMATS[self.format_of(row)](row, options)

    def _weight(self, row: Row) -> float:
        return row_weight(row) if self.data.row_weights else 1.0

    def _weighted(self, row: Row, conversation: Conversation) -> Conversation:
        weight = self._weight(row)
        return conversation if weight == 1.0 else replace(conversation, weight=weight)

    def _training_text(self, original: Row, ledger: Ledger) -> Steps[Rendered | Example | None]:
        """The text of a row, or its example where it is tokens already; None when a policy drops it."""
        row = rename(original, self.data.columns)
        format_name = self.format_of(row)
        unread = self.columns.unread(original, row, format_name)
        refuse_media(original, unread)
        if format_name == TOKENIZED:
            return self._given_example(row, unread, ledger)
        conversation = self._conversation(row, need_answer=True)
        ledger.read(
            row,
            unread,
            list_answer=conversation.list_answer,
            answer=conversation.answer if format_name in LABELLED else None,
        )
        if self._has_empty_answer(conversation):
            if self.data.empty_completion == "drop":
                ledger.drop(row, "empty_completion")
                return None
            raise DataError(
                "the completion is empty" if conversation.messages[-1].is_empty else "an earlier answer is empty",
                where=row.where,
                remedy="set empty_completion to drop or keep, or remove the row",
            )
        rendered = yield from self._render(row, self._weighted(row, conversation), ledger)
        if is_weightless(rendered, self.data.loss_on):
            ledger.drop(row, "weight_0")
            return None
        return rendered

    def _given_example(self, row: Row, unread: frozenset[str], ledger: Ledger) -> Example | None:
        ledger.read(row, unread)
        weight = self._weight(row)
        nothing = self.data.empty_completion == "drop" and self._tokens.has_nothing_to_learn(row)
        if nothing or weight == 0:
            ledger.drop(row, "empty_completion" if nothing else "weight_0")
            return None
        example = self._tokens.example(row, weight)
        if not self._tokens.ends(example):
            self._leave_out(row, "end tokens after the last token with loss", ledger)
        return example

    def _has_empty_answer(self, conversation: Conversation) -> bool:
        """Whether an answer that would be trained is empty, where that is not allowed."""
        if self.data.empty_completion == "keep":
            return False
        *earlier, last = conversation.messages
        if self.data.loss_on == "last_assistant":
            earlier = []
        spared = self.data.loss_on == "completion"
        return last.is_empty or any(
            turn.role == ASSISTANT and turn.is_empty and turn.weight > 0 and not (turn.given and spared)
            for turn in earlier
        )

    def _render(self, row: Row, conversation: Conversation, ledger: Ledger | None = None) -> Steps[Rendered]:
        rendered = yield from self._renderer(self.format_of(row)).steps(conversation, row.where)
        if ledger is not None:
            self._say_unwritten(row, conversation, rendered, ledger)
        marker = self.data.completion_start
        if marker is not None and self.format_of(row) != "text" and self.data.loss_on != "all":
            rendered = start_after(rendered, marker, self.encoder, row.where)
        if not self.data.train_thoughts and self.data.loss_on != "all":
            self._check_thoughts_end(row, conversation, rendered)
            rendered = start_after_thoughts(rendered, THOUGHT_END)
        return rendered

    def _check_thoughts_end(self, row: Row, conversation: Conversation, rendered: Rendered) -> None:
        if any(turn.extra.get(THOUGHTS, "").strip() for turn in conversation.messages) and not any(
            THOUGHT_END in rendered.text[span.start : span.end] for span in rendered.spans if span.role == ASSISTANT
        ):
            raise DataError(
                f"the template ends thoughts with something else than {THOUGHT_END}, so train_thoughts: false cannot "
                "tell where the answer begins",
                where=row.where,
                remedy="set completion_start to what the template writes there, or train_thoughts: true",
            )

    def _say_unwritten(self, row: Row, conversation: Conversation, rendered: Rendered, ledger: Ledger | None) -> None:
        """Refuse a row of which the template does not write a part, or count it where that is meant.

        Raises:
            DataError: names the part.
        """
        if conversation.literal:
            return
        renderer = self._renderer(self.format_of(row))
        if isinstance(renderer, LiteralRenderer):
            renderer = renderer.of(conversation)
        if id(renderer) not in self._unwritten:
            self._unwritten[id(renderer)] = Unwritten(renderer.text_of)
        missing = self._unwritten[id(renderer)].parts(conversation, rendered.text)
        refused = [part for part in missing if not part.meant] if self.data.unwritten == "error" else []
        if refused:
            raise refusal(refused, row.where)
        if ledger is None:
            return
        for what in dict.fromkeys([*conversation.passed_over, *(part.kind for part in missing)]):
            self._leave_out(row, what, ledger)

    def _leave_out(self, row: Row, what: str, ledger: Ledger) -> None:
        ledger.leave_out(row, what)
        if what not in self._said:
            self._said.add(what)
            notify(f"{row.where}: {what} are not in the text; such rows are counted in the ledger")

    def _finish(
        self, row: Row, read: Rendered | Example, ids: tuple[list[int], list[int]] | None, ledger: Ledger
    ) -> Sequence[Example]:
        """The example of a row, of its text and its ids or as it was read; none where a policy drops it, several where
        it is split."""
        if isinstance(read, Example):
            whole, rendered = read, None
        else:
            assert ids is not None
            whole, rendered = make_example(read, ids, self.encoder, row.where, self.data.loss_on), read
        fitting = self._fitting(row, whole)
        if not fitting:
            ledger.drop(row, "too_long", whole.full_length)
        elif ledger.is_duplicate(row, whole if len(fitting) > 1 else fitting[0]) and self.data.duplicates == "drop":
            ledger.drop(row, "duplicate")
            return ()
        else:
            self._count_unknown(row, fitting, rendered, ledger)
            ledger.keep(row, *fitting)
        return fitting

    def _fitting(self, row: Row, whole: Example) -> Sequence[Example]:
        """What becomes of an example under ``max_length``."""
        policy, limit = self.data.too_long, self.data.max_length
        if len(whole.input_ids) > limit and policy == "split":
            if self.format_of(row) not in ("text", TOKENIZED) or self.data.loss_on != "all":
                raise DataError(
                    f"{len(whole.input_ids)} tokens, and only plain text is split",
                    where=row.where,
                    remedy="too_long: split goes with rows of text and loss_on: all; choose another policy for others",
                )
            return split(whole, limit, self.encoder)
        if self.format_of(row) == TOKENIZED and policy == "truncate_completion" and len(whole.input_ids) > limit:
            self._tokens.check_end(whole)
        if len(whole.input_ids) > limit and policy == "truncate_prompt" and self.format_of(row) != TOKENIZED:
            if self.format_of(row) == "rag":
                return [self._with_fewer_documents(rename(row, self.data.columns), whole)]
            if isinstance(self.renderer_of(row), (ChatRenderer, StringRenderer)):
                return [self._with_fewer_turns(row, whole)]
        example = fit(whole, limit, policy, self.encoder)
        return [] if example is None else [example]

    def _with_fewer_turns(self, row: Row, whole: Example) -> Example:
        conversation = self._conversation(rename(row, self.data.columns), need_answer=True)
        weighted = self._weighted(row, conversation)
        length = lambda chat: len(self._remade(row, chat).input_ids)  # noqa: E731
        chat, cut = shorten(weighted, length, self.data.max_length, row.where)
        return replace(self._remade(row, chat), full_length=whole.full_length, cut=cut)

    def _with_fewer_documents(self, row: Row, whole: Example) -> Example:
        def made(shorter: Row) -> Example:
            return self._remade(row, self._conversation(shorter, need_answer=True))

        shortest = cut_documents(row, lambda shorter: len(made(shorter).input_ids), self.data.max_length)
        return replace(made(shortest), full_length=whole.full_length, cut="documents")

    def _remade(self, row: Row, conversation: Conversation) -> Example:
        """The example of a conversation that is shorter than the row's own."""
        rendered = alone(self._render(row, conversation))
        (ids,) = encode([rendered], self.encoder)
        return make_example(rendered, ids, self.encoder, row.where, self.data.loss_on)

    def _count_unknown(self, row: Row, examples: Sequence[Example], rendered: Rendered | None, ledger: Ledger) -> None:
        """Say that an answer has words which the tokenizer does not know.

        Raises:
            DataError: they would be learnt as the end token.
        """
        if not any(num_unknown(example, rendered, self.encoder) for example in examples):
            return
        name = self.tokenizer.unk_token
        if self.encoder.unk_token_id == self.encoder.eos_token_id:
            raise DataError(
                f"the answer has words that the tokenizer does not know, and its unknown token {name} is its end token",
                where=row.where,
                remedy="change the row, or use a tokenizer that knows them: the model would learn to stop there",
            )
        self._leave_out(row, f"words of answers that became {name}", ledger)


def build_examples(rows: Iterable[Row], builder: ExampleBuilder, ledger: Ledger) -> list[Example]:
    """All examples of ``rows``.

    Raises:
        DataError: rows cannot be used, none is left, or the ledger passes one of the settings' limits.
    """
    examples = list(builder.examples(rows, ledger))
    check_kept(len(examples), ledger, builder)
    return examples


def check_kept(number: int, ledger: Ledger, builder: ExampleBuilder) -> None:
    """What holds of examples once all of them were made, however they are kept.

    Raises:
        ConfigError: the settings rename a column that no row has.
        DataError: none is left, or the ledger passes one of the settings' limits.
    """
    builder.columns.check_met()
    if not number:
        total = ledger.total()
        reasons = ", ".join(f"{len(where)} {reason}" for reason, where in total.dropped.items())
        raise DataError(
            f"no examples are left of {total.read} rows" + (f" (dropped: {reasons})" if reasons else ""),
            remedy="change the policy that drops them or give other rows",
        )
    ledger.refuse(builder.data)
    ledger.say_what_stands_out()
