"""Answers to a few questions while training goes on, written beside the run and shown in its trackers, so that a person
can read its progress.

Training is left as it was: weights, modes, random streams. Nothing is scored here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from typing_extensions import override

from tunesmith.config.files import read_bytes
from tunesmith.config.resolve import Resolved
from tunesmith.config.strategy import Strategy
from tunesmith.data.examples import ExampleBuilder
from tunesmith.data.row import Row
from tunesmith.errors import ConfigError, DataError
from tunesmith.evaluate.decoding import Decoding
from tunesmith.evaluate.generate import generate
from tunesmith.model.precision import Precision
from tunesmith.notices import notify
from tunesmith.report.folder import write_json
from tunesmith.train import trackers
from tunesmith.train.callbacks import Listener, Silent
from tunesmith.train.prepare import PreparedData

RESULTS = "gen_results"
NUM_ROWS = 4
"""Rows that are asked for when no file holds questions."""

ROWS: dict[str, Callable[[str], dict[str, Any]]] = {
    "question_answer": lambda text: {"question": text},
    "prompt_completion": lambda text: {"prompt": text},
    "alpaca": lambda text: {"instruction": text},
    "messages": lambda text: {"messages": [{"role": "user", "content": text}]},
    "sharegpt": lambda text: {"conversations": [{"from": "human", "value": text}]},
    "rag": lambda text: {"prompt": text, "query": text, "answers": []},
    "text": lambda text: {"text": text},
}
"""Format of the run's rows -> a row of that format with nothing but a question; of ``text`` rows the line is the whole
prompt, its marker included."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question as written, where it stands, the ids that the model continues, and a row's own answer to it."""

    text: str
    where: str
    input_ids: list[int]
    reference: str | None = None


def read_questions(path: str | Path, format_name: str, builder: ExampleBuilder) -> list[Question]:
    """The questions of a text file, one a line, rendered as the run renders the prompts of its rows.

    Args:
        path: UTF-8 text; blank lines are passed over.
        format_name: format of the run's training rows.
        builder: renders prompts.

    Raises:
        ConfigError: rows of this format do not begin with a single question.
        DataError: the file cannot be read or holds no question, or a line is no prompt of this format.
    """
    if format_name not in ROWS:
        raise ConfigError(
            f"gen_questions_file holds one question a line, and rows of the format {format_name} need more than that",
            remedy=f"it works with the formats {', '.join(ROWS)}",
        )
    try:
        lines = read_bytes(path).decode("utf-8-sig").splitlines()
    except OSError as error:
        raise DataError(f"cannot read the questions: {error.strerror or error}", where=str(path)) from error
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 at offset {error.start}", where=str(path)) from None
    asked = [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]
    if not asked:
        raise DataError("holds no question", where=str(path), remedy="write one a line")
    questions = []
    for number, text in asked:
        row = Row(ROWS[format_name](text), str(path), number)
        questions.append(Question(text, row.where, builder.prompt(row).input_ids))
    return questions


def row_questions(rows: Sequence[Row], builder: ExampleBuilder) -> list[Question]:
    """The prompts of rows as questions, with the rows' own answers beside them.

    Raises:
        DataError: a row has no prompt.
    """
    return [
        Question(builder.prompt_text(row), row.where, builder.prompt(row).input_ids, builder.reference(row))
        for row in rows
    ]


def make_samples(
    resolved: Resolved,
    tokenizer: PreTrainedTokenizerBase,
    data: PreparedData,
    precision: Precision,
    strategy: Strategy,
) -> Samples | None:
    """The callback that a configuration asks for, or None.

    Args:
        resolved: the run's configuration.
        tokenizer: the run's tokenizer.
        data: the run's rows; the format of the first training row decides how a question becomes a prompt.
        precision: the run's arithmetic.
        strategy: how several processes share the run.

    Raises:
        ConfigError: a question alone is no row of this format.
        DataError: the questions cannot be used.
    """
    training = resolved.config.training
    if not training.gen_every_n_steps:
        return None
    builder, first_row = data.builder, data.first_row
    if training.gen_questions_file:
        questions = read_questions(training.gen_questions_file, builder.format_of(first_row), builder)
    else:
        questions = row_questions(data.eval_rows[:NUM_ROWS] or [first_row], builder)
        notify(f"no gen_questions_file: sample answers are those to {', '.join(each.where for each in questions)}")
    decoding = Decoding.of(resolved.config.evaluation, training.seed, builder.stop_token_ids(first_row))
    return Samples(
        questions,
        tokenizer,
        Path(training.output_dir),
        training.gen_every_n_steps,
        replace(decoding, engine="auto"),  # a few questions between two steps are no work for another engine
        precision,
        together=strategy.shards_parameters,
    )


class Samples(TrainerCallback):
    """Answers the questions after every ``every`` steps, in the first process alone; the others wait at their next
    exchange of gradients.

    Args:
        questions: what is asked.
        tokenizer: the run's tokenizer.
        folder: the run folder; answers go to ``gen_results/gen_step_N.json`` in it.
        every: optimizer steps between samples.
        decoding: how answers are generated.
        precision: the run's arithmetic.
        together: all processes generate, because the weights are spread over them; the first one alone writes.
    """

    def __init__(
        self,
        questions: list[Question],
        tokenizer: PreTrainedTokenizerBase,
        folder: Path,
        every: int,
        decoding: Decoding,
        precision: Precision,
        *,
        together: bool = False,
    ) -> None:
        self._questions = questions
        self._tokenizer = tokenizer
        self._folder = folder / RESULTS
        self._every = every
        self._decoding = decoding
        self._precision = precision
        self._together = together
        self._trackers: Sequence[TrainerCallback] = ()
        self._listener: Listener = Silent()

    def show_in(self, callbacks: Sequence[TrainerCallback], listener: Listener) -> None:
        """Show the answers also in the trackers among the trainer's callbacks, and to whoever listens."""
        self._trackers, self._listener = callbacks, listener

    @override
    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        if state.global_step % self._every or not (self._together or state.is_world_process_zero):
            return
        with self._precision.autocast(model.device):
            answers = generate(
                model,
                self._tokenizer,
                [question.input_ids for question in self._questions],
                replace(self._decoding, seed=args.seed),
                names=[question.where for question in self._questions],
            )
        if not state.is_world_process_zero:
            return
        samples: list[dict[str, Any]] = []
        for question, answer in zip(self._questions, answers, strict=True):
            expected = {} if question.reference is None else {"reference": question.reference}
            samples.append({"question": question.text, **expected, "answer": answer.text, "stopped": answer.stopped})
        write_json(self._folder / f"gen_step_{state.global_step}.json", {"step": state.global_step, "samples": samples})
        trackers.show_samples(self._trackers, state.global_step, samples)
        self._listener.sampled(state.global_step, samples)
