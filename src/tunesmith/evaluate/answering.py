"""A model that answers rows as it was trained to, for whoever wants its answers and not its figures.

Prompts are made by ``data.examples``, answers by ``generate``; here they only meet. Nothing is scored or printed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tunesmith.config.schema import DataSection, EvaluationSection
from tunesmith.data.formats import QUESTION_COLUMNS, rename
from tunesmith.data.rows import Problems, Row
from tunesmith.errors import DataError
from tunesmith.evaluate.subject import Subject
from tunesmith.export.inference import Contract, read

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tunesmith.data.examples import ExampleBuilder
    from tunesmith.evaluate.generate import Generation, Progress
    from tunesmith.evaluate.journal import Journal
    from tunesmith.model.load import Inference


@dataclass(frozen=True, slots=True)
class Answerer:
    """A loaded model with all that answering needs.

    Attributes:
        contract: the model's ``inference.json``; None where it has none.
    """

    inference: Inference
    tokenizer: PreTrainedTokenizerBase
    data: DataSection
    evaluation: EvaluationSection
    seed: int
    contract: Contract | None

    def builder(self, first: Row) -> ExampleBuilder:
        """Makes the prompts of rows like ``first``.

        Where the settings leave the format open it is that of training, if the row has what its question needs; so rows
        without answers are read as those with answers were.
        """
        from tunesmith.data.examples import ExampleBuilder

        data = self.data
        if data.format == "auto" and self.contract is not None:
            format_name = self.contract.format
            if rename(first, data.columns).values.keys() >= set(QUESTION_COLUMNS[format_name]):
                data = data.model_copy(update={"format": format_name})
        return ExampleBuilder(self.tokenizer, data)

    def answer(
        self,
        rows: Sequence[Row],
        *,
        journal: Journal | None = None,
        progress: Progress | None = None,
        on_text: Callable[[str], None] | None = None,
    ) -> list[Generation]:
        """The model's answers to ``rows``, in their order.

        Args:
            journal: keeps answers while others are generated, see ``generate``; the caller removes it.
            progress: told how many answers are done.
            on_text: given the words of the answer as they come, where there is one row.

        Raises:
            DataError: rows have no prompt, or one that is too long for the model; up to 20 are listed.
        """
        from tunesmith.evaluate.generate import default_stop_token_ids, generate

        builder = self.builder(rows[0])
        prompts = _prompts(builder, rows)
        model = self.inference.model
        stops = [*builder.stop_token_ids(rows[0]), *default_stop_token_ids(model, self.tokenizer)]
        with self.inference.precision.autocast(model.device):
            return generate(
                model,
                self.tokenizer,
                prompts,
                max_new_tokens=self.evaluation.max_new_tokens,
                batch_size=self.evaluation.generation_batch_size,
                temperature=self.evaluation.temperature,
                top_p=self.evaluation.top_p,
                seed=self.seed,
                stop_token_ids=list({*stops, *(self.contract.stop_token_ids if self.contract is not None else [])}),
                names=[row.where for row in rows],
                journal=journal,
                on_progress=progress,
                on_text=on_text,
            )


def open_answerer(subject: Subject) -> Answerer:
    """Load a model, with its tokenizer and its contract.

    Raises:
        ModelError: the model cannot be loaded as it was trained, or its contract cannot be read.
        UnsafeError: it would run code, or open a pickle, that nobody allowed.
    """
    from tunesmith.model.tokenizer import load_tokenizer

    config = subject.resolved.config
    inference = subject.load()
    section = config.model.model_copy(update={"tokenizer_name_or_path": inference.tokenizer_folder})
    contract = read(inference.tokenizer_folder)
    return Answerer(inference, load_tokenizer(section), config.data, config.evaluation, config.training.seed, contract)


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
