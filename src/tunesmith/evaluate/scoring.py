"""Scores of what was generated: the task that fits the rows, what each row's answer should be, and the figures.

It needs no model. How text is read stands in ``answers``, how it is compared in ``tasks``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunesmith.config.schema import EvaluationSection
from tunesmith.data.formats import rename
from tunesmith.data.row import Problems, Row
from tunesmith.data.tokenized import TOKENIZED
from tunesmith.errors import DataError
from tunesmith.evaluate.intervals import confidence_intervals
from tunesmith.evaluate.metrics import mean
from tunesmith.evaluate.mistakes import collect_mistakes, kinds_of_mistakes
from tunesmith.evaluate.result import EvaluationResult, scalar_metrics
from tunesmith.evaluate.tasks import ScoredAnswer, Task, choose_task

if TYPE_CHECKING:
    from tunesmith.data.examples import ExampleBuilder
    from tunesmith.evaluate.generate import Generation


@dataclass(frozen=True, slots=True)
class Case:
    """One row before it is judged: where it comes from, its prompt as text, and what its answer should be."""

    source: str
    prompt: str
    reference: Any


def task_for(evaluation: EvaluationSection, builder: ExampleBuilder, rows: Sequence[Row]) -> Task:
    """The task that the settings name, or that fits the rows.

    Raises:
        ConfigError: the settings name no task.
        DataError: labels are to be taken from the rows, and they state none; or the rows hold no text.
    """
    if builder.format_of(rows[0]) == TOKENIZED:
        raise DataError(
            "rows of token ids are judged by their loss alone: answers are compared as text, and they hold none",
            where=rows[0].where,
            remedy="judge the model on rows of text, or leave generated answers out",
        )
    named = [rename(row, builder.data.columns) for row in rows]
    return choose_task(evaluation, builder.format_of(rows[0]), named, [_completion(builder, row) for row in rows])


def _completion(builder: ExampleBuilder, row: Row) -> str | None:
    """The row's own answer; a row that cannot be read has none here, and is named when its reference is wanted."""
    try:
        return builder.reference(row)
    except DataError:
        return None


def references(builder: ExampleBuilder, rows: Sequence[Row], task: Task) -> list[Any]:
    """What the answer to each row should be.

    Raises:
        DataError: rows do not say so; up to 20 are listed.
    """
    found: list[Any] = []
    problems = Problems()
    for row in rows:
        try:
            renamed = rename(row, builder.data.columns)
            found.append(task.reference(renamed, builder.reference(row)))
            if task.reads_control_tokens:
                _check_own_answer(builder, row, task, found[-1])
        except DataError as problem:
            problems.add(problem)
    problems.stop()
    return found


def _check_own_answer(builder: ExampleBuilder, row: Row, task: Task, reference: Any) -> None:
    try:
        example = builder.example(row)
    except DataError:  # it could not be trained; whether it can be answered is another matter
        return
    if example is not None and example.cut is None:
        task.check_own_answer(row, text_of(example.input_ids[example.num_prompt_tokens :], builder, task), reference)


def text_of(token_ids: Sequence[int], builder: ExampleBuilder, task: Task) -> str:
    """The text of an output as the task reads it."""
    controls = task.reads_control_tokens
    tokenizer = builder.tokenizer
    return str(tokenizer.decode(list(token_ids), skip_special_tokens=not controls, clean_up_tokenization_spaces=False))


def score_generations(
    task: Task,
    cases: Sequence[Case],
    generations: Sequence[Generation],
    *,
    bootstrap_samples: int = 0,
    seed: int = 0,
) -> EvaluationResult:
    """Read and score what was generated for ``cases`` (at least one); needs no model.

    Args:
        task: how answers are read and scored.
        cases: the rows.
        generations: what was generated for each of them.
        bootstrap_samples: resamplings behind the confidence intervals; 0 leaves intervals out.
        seed: decides the resamplings.

    Returns:
        metrics: task, main_metric (the figure to compare models by), num_examples, the task's own figures,
            confidence {figure: [low, high]} (95%), parse_failure_rate (share of unreadable answers), stopped_share
            (answers ended by a stop token), mean_new_tokens, read_as {rule: how many answers it read}, and mistakes
            {kind: count};
        predictions: one object a row with source, prompt, reference, output, answer, read_as, correct, stopped, and
            scores (the row's own figures);
        mistakes: {kind: {count, examples}}.
    """
    scored = [
        task.score_answer(generation.text, case.reference) for case, generation in zip(cases, generations, strict=True)
    ]
    kinds = [
        kinds_of_mistakes(task, item, stopped=generation.stopped)
        for item, generation in zip(scored, generations, strict=True)
    ]
    predictions = [_prediction(*row) for row in zip(cases, generations, scored, strict=True)]
    mistakes = collect_mistakes(kinds, predictions)
    statistics = task.statistics(scored)
    intervals = confidence_intervals(statistics, bootstrap_samples, seed)
    metrics = {
        "task": task.name,
        "main_metric": task.main_metric,
        "num_examples": len(scored),
        **task.figures(scored),
        **({"confidence": intervals} if intervals else {}),
        "parse_failure_rate": mean([float(not item.answer.readable) for item in scored]),
        "stopped_share": mean([float(generation.stopped) for generation in generations]),
        "mean_new_tokens": mean([float(len(generation.token_ids)) for generation in generations]),
        "read_as": dict(sorted(Counter(item.answer.how for item in scored).items())),
        "mistakes": {kind: found["count"] for kind, found in mistakes.items()},
    }
    return EvaluationResult(metrics, predictions, mistakes=mistakes, statistics=statistics)


def _prediction(case: Case, generation: Generation, item: ScoredAnswer) -> dict[str, Any]:
    return {
        "source": case.source,
        "prompt": case.prompt,
        "reference": case.reference,
        "output": generation.text,
        "answer": item.answer.value,
        "read_as": item.answer.how,
        "correct": item.correct,
        "stopped": generation.stopped,
        "scores": item.scores,
    }


def figure_names(task: Task, builder: ExampleBuilder, rows: Sequence[Row]) -> list[str]:
    """Names of the figures that an evaluation on ``rows`` will give; found without a model, from empty answers.

    Raises:
        DataError: a row does not say what its answer should be.
    """
    from tunesmith.evaluate.generate import Generation

    cases = [Case(row.where, "", answer) for row, answer in zip(rows, references(builder, rows, task), strict=True)]
    result = score_generations(task, cases, [Generation("", [], True)] * len(cases))
    return list(scalar_metrics(result.metrics))
