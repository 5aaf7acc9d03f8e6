"""A model that answers rows as it was trained to, for whoever wants its answers and not its figures.

Prompts are made by ``data.examples``, answers by ``generate``; here they only meet. Nothing is scored or printed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from tunesmith.data.formats import QUESTION_COLUMNS, rename
from tunesmith.data.row import Problems, Row
from tunesmith.errors import DataError
from tunesmith.evaluate.subject import Subject
from tunesmith.export.inference import read

if TYPE_CHECKING:
    from tunesmith.data.examples import ExampleBuilder
    from tunesmith.evaluate.generate import Generation, Progress
    from tunesmith.evaluate.journal import Journal
    from tunesmith.model.load import Inference


class Answerer:
    """A model with all that answering needs; its weights are loaded when the first answer is wanted.

    Args:
        subject: which model, under which settings.

    Attributes:
        contract: the model's ``inference.json``; None where it has none.

    Raises:
        ModelError: the tokenizer or the contract cannot be read, or the engine that the settings name is not here.
    """

    def __init__(self, subject: Subject) -> None:
        from tunesmith.evaluate.engines import check_engine
        from tunesmith.model.load import model_spec
        from tunesmith.model.tokenizer import load_tokenizer

        config = subject.resolved.config
        check_engine(config.evaluation.generation_engine, config.evaluation.temperature)
        folder = model_spec(subject.folder, base=subject.base).tokenizer_folder
        self.data, self.evaluation, self.seed = config.data, config.evaluation, config.training.seed
        self.contract = read(folder)
        self.tokenizer = load_tokenizer(
            config.model.model_copy(update={"tokenizer_name_or_path": subject.tokenizer or folder})
        )
        self._load = subject.load

    @cached_property
    def inference(self) -> Inference:
        """The model, loaded as it was trained.

        Raises:
            ModelError: it cannot be loaded.
            UnsafeError: it would run code, or open a pickle, that nobody allowed.
        """
        return self._load()

    def builder(self, first: Row, format_name: str | None = None) -> ExampleBuilder:
        """Makes the prompts of rows like ``first``.

        Where nobody says the format it is that of training, if the row has what its question needs; so rows without
        answers are read as those with answers were.
        """
        from tunesmith.data.examples import ExampleBuilder

        if format_name is None and self.data.format == "auto" and self.contract is not None:
            needed = QUESTION_COLUMNS[self.contract.format]
            format_name = (
                self.contract.format if set(needed) <= rename(first, self.data.columns).values.keys() else None
            )
        return ExampleBuilder(
            self.tokenizer, self.data.model_copy(update={"format": format_name} if format_name is not None else {})
        )

    def answer(
        self,
        rows: Sequence[Row],
        *,
        format_name: str | None = None,
        journal: Journal | None = None,
        progress: Progress | None = None,
        on_text: Callable[[str], None] | None = None,
        decoding: Mapping[str, Any] = MappingProxyType({}),
    ) -> list[Generation]:
        """The model's answers to ``rows``, in their order.

        Args:
            format_name: format of the rows; see ``builder``.
            journal: keeps answers while others are generated, see ``generate``; the caller removes it.
            progress: told how many answers are done.
            on_text: given the words of the answer as they come, where there is one row.
            decoding: attributes of ``Decoding`` that are others than the model's settings this time.

        Raises:
            DataError: rows have no prompt (up to 20 are listed before the model is loaded), or one too long for it.
            ModelError: the model cannot be loaded.
        """
        from tunesmith.evaluate.decoding import Decoding
        from tunesmith.evaluate.generate import generate, stop_token_ids

        builder = self.builder(rows[0], format_name)
        prompts = _prompts(builder, rows)
        model: Any = self.inference.model  # PEFT's wrapper answers to the same names
        stops = stop_token_ids(model, builder, rows[0])
        contracted = self.contract.stop_token_ids if self.contract is not None else []
        with self.inference.precision.autocast(model.device):
            return generate(
                model,
                self.tokenizer,
                prompts,
                replace(Decoding.of(self.evaluation, self.seed, [*stops, *contracted]), **decoding),
                names=[row.where for row in rows],
                journal=journal,
                on_progress=progress,
                on_text=on_text,
            )


def _prompts(builder: ExampleBuilder, rows: Sequence[Row]) -> list[list[int]]:
    prompts: list[list[int]] = []
    problems = Problems()
    for row in rows:
        try:
            prompts.append(builder.prompt(row).input_ids)
        except DataError as problem:
            problems.add(problem)
    problems.stop()
    return prompts
