"""Evaluation from rows to figures: prompts, generated answers, predictions and metrics.

How text is generated, read and scored stands in ``generate``, ``answers`` and ``tasks``; nothing here prints.
"""

from __future__ import annotations

import gc
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.config.resolve import Resolved
from tunesmith.config.schema import DataSection, EvaluationSection
from tunesmith.data.rows import Row
from tunesmith.errors import ConfigError, DataError, DataErrors, StorageError
from tunesmith.evaluate.compare import Comparison, compare, safe_name
from tunesmith.evaluate.intervals import confidence_intervals
from tunesmith.evaluate.journal import JOURNAL, Journal
from tunesmith.evaluate.metrics import mean
from tunesmith.evaluate.mistakes import collect_mistakes, kinds_of_mistakes
from tunesmith.evaluate.subject import Subject, find_subject, of_configuration
from tunesmith.evaluate.tasks import Task, choose_task
from tunesmith.notices import notify
from tunesmith.report.folder import write_json, write_jsonl, write_text

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from tunesmith.data.examples import ExampleBuilder
    from tunesmith.evaluate.generate import Generation, Progress
    from tunesmith.evaluate.intervals import Statistic

PREDICTIONS = "predictions.jsonl"
METRICS = "metrics.json"
MISTAKES = "mistakes.json"
_MAX_PROBLEMS = 20


@dataclass(frozen=True, slots=True)
class Case:
    """One row before it is judged: where it comes from, its prompt as text, and what its answer should be."""

    source: str
    prompt: str
    reference: Any


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """Figures over all rows, a prediction for each of them in their order, and kinds of mistakes with examples; and the
    figures as functions of row numbers, by which models are compared."""

    metrics: dict[str, Any]
    predictions: list[dict[str, Any]]
    folder: Path | None = None
    mistakes: dict[str, Any] = field(default_factory=dict)
    statistics: dict[str, Statistic] = field(default_factory=dict, repr=False, compare=False)


def evaluate_run(
    run: str | Path,
    *,
    data: str | list[str] | None = None,
    limit: int | None = None,
    sample: bool = False,
    output: str | Path | None = None,
    settings: Sequence[str] = (),
    progress: Progress | None = None,
) -> EvaluationResult:
    """Evaluate a finished run, one of its checkpoints or any other model, and write the result.

    Interrupted, the same call goes on after the answers that were finished.

    Args:
        run: run folder, checkpoint, adapter folder, model folder, hub name or ``nano-mistral``; see ``find_subject``.
        data: other rows than the run's own evaluation rows; a model without a run needs some.
        limit: evaluate the first rows only.
        sample: generate for the rows only that evaluations during training generated for (``generate_limit`` and
            ``generate_seed``); loss and token accuracy are those of all rows, as they were then.
        output: folder for ``predictions.jsonl`` and ``metrics.json``; unset, ``evaluation`` in the run folder
            (``evaluation/checkpoint-N`` for a checkpoint), and nothing is written for a model without a run.
        settings: settings as on a command line, see ``find_subject``.
        progress: told how many answers are done.

    Raises:
        StorageError: a record cannot be read, or the result cannot be written.
        ConfigError: a setting cannot be changed after training.
        DataError: there is nothing to evaluate on, or a row cannot be used.
        ModelError: the model cannot be loaded as it was trained.
    """
    subject = find_subject(run, settings)
    rows = held_out_rows(subject.resolved.config.data, data, limit)
    return _evaluate(subject, rows, sample, Path(output) if output is not None else subject.home, progress)


def evaluate_untrained(
    resolved: Resolved,
    *,
    data: str | list[str] | None = None,
    limit: int | None = None,
    output: str | Path | None = None,
    progress: Progress | None = None,
) -> EvaluationResult:
    """Evaluate the model that a configuration starts from, as ``evaluate_run`` evaluates what came of it.

    Rows, template, precision and quantization are those of the configuration; only training is missing. The result is
    written when there is an ``output`` folder.

    Raises:
        DataError: there is nothing to evaluate on, or a row cannot be used.
        ModelError: the model cannot be loaded.
    """
    rows = held_out_rows(resolved.config.data, data, limit)
    return _evaluate(of_configuration(resolved), rows, False, Path(output) if output is not None else None, progress)


def evaluate_several(
    names: Sequence[str | Path],
    *,
    baseline: bool = False,
    data: str | list[str] | None = None,
    limit: int | None = None,
    sample: bool = False,
    output: str | Path | None = None,
    settings: Sequence[str] = (),
    progress: Callable[[str], Progress] | None = None,
) -> Comparison:
    """Evaluate several models on the same rows, one after the other, and compare them with the first.

    Args:
        names: as ``run`` of ``evaluate_run``; the others are compared with the first.
        baseline: begin with the model that the first one was before its training.
        output: folder for ``comparison.json``, ``comparison.md`` and a folder for each model; unset, the predictions of
            runs go where ``evaluate_run`` puts them, and nothing else is written.
        progress: given a model's name, who is told how many of its answers are done.

    The other arguments are those of ``evaluate_run``, for all models alike.

    Raises:
        ConfigError: a model is named twice, or the first has no baseline.
        DataError: the models have different rows to be judged on.
    """
    subjects = [find_subject(name, settings) for name in names]
    if baseline:
        subjects.insert(0, _untrained(subjects[0]))
    for subject in subjects:
        if sum(other.name == subject.name for other in subjects) > 1:
            raise ConfigError(f"{subject.name} is named twice", where="command line")
    rows = [held_out_rows(subject.resolved.config.data, data, limit) for subject in subjects]
    for subject, held in zip(subjects[1:], rows[1:], strict=True):
        _check_same_rows(subjects[0], rows[0], subject, held)
    results: dict[str, EvaluationResult] = {}
    for number, (subject, held) in enumerate(zip(subjects, rows, strict=True), start=1):
        place = subject.home if output is None else Path(output) / f"{number}-{safe_name(subject.name)}"
        told = progress(subject.name) if progress is not None else None
        results[subject.name] = _evaluate(subject, held, sample, place, told)
        gc.collect()  # a model is full of references to itself, and the next one needs its room
    first = subjects[0].resolved.config
    comparison = compare(results, samples=first.evaluation.bootstrap_samples, seed=first.training.seed)
    if output is not None:
        write_json(Path(output) / "comparison.json", comparison.to_dict())
        write_text(Path(output) / "comparison.md", comparison.markdown())
    return comparison


def _untrained(subject: Subject) -> Subject:
    if subject.untrained is None:
        raise ConfigError(
            f"{subject.name} does not say which model it was trained from",
            where="--baseline",
            remedy="name that model as one of those to compare",
        )
    return subject.untrained


def _check_same_rows(first: Subject, rows: Sequence[Row], second: Subject, other: Sequence[Row]) -> None:
    for one, two in zip(rows, other, strict=False):
        if one.values != two.values:
            raise DataError(
                f"{second.name} is judged on other rows than {first.name}: {two.where} is not {one.where}",
                remedy="name the rows for all of them (--data FILE)",
            )
    if len(rows) != len(other):
        raise DataError(
            f"{second.name} is judged on {len(other)} rows and {first.name} on {len(rows)}",
            remedy="name the rows for all of them (--data FILE)",
        )


def sampled(rows: Sequence[Row], number: int | None, seed: int | None) -> list[Row]:
    """``number`` of the rows in their order: the first ones, or a random choice where there is a seed; None is all."""
    if number is None or number >= len(rows):
        return list(rows)
    if seed is None:
        return list(rows[:number])
    return [rows[index] for index in sorted(random.Random(seed).sample(range(len(rows)), number))]


def held_out_rows(data: DataSection, instead: str | list[str] | None = None, limit: int | None = None) -> list[Row]:
    """The rows that a run's model is judged on: those it was evaluated on during training, or those of ``instead``.

    Raises:
        DataError: the settings hold nothing out, or rows cannot be read.
    """
    from tunesmith.data.selection import evaluation_rows, load_rows

    changes: dict[str, Any] = {} if limit is None else {"eval_limit": limit}
    if instead is not None:
        changes |= {"eval_data": instead, "eval_limit": limit}
    data = data.model_copy(update=changes)
    # Only a share of the training rows needs those to be read.
    named = data.eval_data is not None or data.eval_split is not None
    rows = evaluation_rows(data) if named else load_rows(data)[1] if data.dev_split else []
    if not rows:
        raise DataError("there are no rows to evaluate on", remedy="name some (--data FILE)")
    return rows


def task_for(evaluation: EvaluationSection, builder: ExampleBuilder, rows: Sequence[Row]) -> Task:
    """The task that the settings name, or that fits the rows.

    Raises:
        ConfigError: the settings name no task.
        DataError: labels are to be taken from the rows, and they state none.
    """
    from tunesmith.data.formats import rename

    named = [rename(row, builder.data.columns) for row in rows]
    return choose_task(evaluation, builder.format_of(rows[0]), named, [_completion(builder, row) for row in rows])


def _completion(builder: ExampleBuilder, row: Row) -> str | None:
    """The row's own answer; a row that cannot be read has none here, and is named when its reference is wanted."""
    try:
        return builder.reference(row)
    except DataError:
        return None


def evaluate_rows(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    builder: ExampleBuilder,
    rows: Sequence[Row],
    task: Task,
    evaluation: EvaluationSection,
    *,
    seed: int = 0,
    journal: Journal | None = None,
    progress: Progress | None = None,
    generator: Callable[..., list[Generation]] | None = None,
) -> EvaluationResult:
    """Generate an answer for every row and score it; model, modes and random streams are left as they were.

    Args:
        journal: keeps answers while others are generated, see ``generate``; the caller removes it.
        generator: what generates in the place of ``generate``, in the same way.

    Raises:
        DataError: there are no rows, or some have no prompt or do not say what their answer should be.
    """
    from tunesmith.evaluate.generate import default_stop_token_ids, generate

    if not rows:
        raise DataError("there are no rows to evaluate")
    references = _references(builder, rows, task)
    prompts = [builder.prompt(row).input_ids for row in rows]
    longer = sum(len(prompt) > builder.data.max_length for prompt in prompts)
    if longer:
        notify(
            f"{longer} of {len(prompts)} prompts are longer than max_length ({builder.data.max_length}), which no row "
            "was in training; they are evaluated whole"
        )
    generations = (generator or generate)(
        model,
        tokenizer,
        prompts,
        max_new_tokens=evaluation.max_new_tokens,
        batch_size=evaluation.generation_batch_size,
        temperature=evaluation.temperature,
        top_p=evaluation.top_p,
        seed=seed,
        # the end of turn that the template taught, and what the model itself stops at
        stop_token_ids=list({*builder.stop_token_ids(rows[0]), *default_stop_token_ids(model, tokenizer)}),
        names=[row.where for row in rows],
        engine=evaluation.generation_engine,
        journal=journal,
        on_progress=progress,
    )
    cases = [
        Case(row.where, tokenizer.decode(prompt, clean_up_tokenization_spaces=False), reference)
        for row, prompt, reference in zip(rows, prompts, references, strict=True)
    ]
    return score_generations(task, cases, generations, bootstrap_samples=evaluation.bootstrap_samples, seed=seed)


def _references(builder: ExampleBuilder, rows: Sequence[Row], task: Task) -> list[Any]:
    from tunesmith.data.formats import rename

    references: list[Any] = []
    problems: list[DataError] = []
    for row in rows:
        try:
            references.append(task.reference(rename(row, builder.data.columns), builder.reference(row)))
        except DataError as problem:
            problems.append(problem)
            if len(problems) == _MAX_PROBLEMS:
                break
    if problems:
        raise problems[0] if len(problems) == 1 else DataErrors(problems)
    return references


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
        bootstrap_samples: resamplings behind the confidence intervals; 0 leaves them out.
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
    predictions = [
        {
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
        for case, generation, item in zip(cases, generations, scored, strict=True)
    ]
    mistakes = collect_mistakes(kinds, predictions)
    statistics = task.statistics(scored)
    intervals = confidence_intervals(statistics, len(scored), bootstrap_samples, seed)
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


def scalar_metrics(metrics: dict[str, Any]) -> dict[str, float]:
    """The figures among ``metrics`` that a log or tracker can plot."""
    return {
        name: float(value)
        for name, value in metrics.items()
        if isinstance(value, int | float)
        and not isinstance(value, bool)
        and name not in ("num_examples", "majority_share")
    }


def write_result(folder: Path, result: EvaluationResult) -> None:
    """Write predictions, mistakes and then metrics; metrics never stand beside predictions they do not belong to.

    Raises:
        StorageError: a file cannot be written.
    """
    try:
        (folder / METRICS).unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"cannot write: {error.strerror or error}", where=str(folder)) from error
    write_jsonl(folder / PREDICTIONS, result.predictions)
    write_json(folder / MISTAKES, result.mistakes)
    write_json(folder / METRICS, result.metrics)


def figure_names(task: Task, builder: ExampleBuilder, rows: Sequence[Row]) -> list[str]:
    """Names of the figures that an evaluation on ``rows`` will give; found without a model, from empty answers.

    Raises:
        DataError: a row does not say what its answer should be.
    """
    from tunesmith.evaluate.generate import Generation

    cases = [Case(row.where, "", answer) for row, answer in zip(rows, _references(builder, rows, task), strict=True)]
    result = score_generations(task, cases, [Generation("", [], True)] * len(cases))
    return list(scalar_metrics(result.metrics))


def _evaluate(
    subject: Subject, rows: list[Row], sample: bool, folder: Path | None, progress: Progress | None
) -> EvaluationResult:
    from tunesmith.data.examples import ExampleBuilder
    from tunesmith.evaluate.engines import check_engine
    from tunesmith.model.tokenizer import load_tokenizer

    config = subject.resolved.config
    check_engine(config.evaluation.generation_engine, config.evaluation.temperature)
    journal = Journal(folder / JOURNAL) if folder is not None else None
    asked = sampled(rows, config.evaluation.generate_limit, config.evaluation.generate_seed) if sample else rows
    inference = subject.load()
    model = inference.model
    tokenizer = load_tokenizer(config.model.model_copy(update={"tokenizer_name_or_path": inference.tokenizer_folder}))
    builder = ExampleBuilder(tokenizer, config.data)
    task = task_for(config.evaluation, builder, asked)
    with inference.precision.autocast(model.device):
        result = evaluate_rows(
            model,
            tokenizer,
            builder,
            asked,
            task,
            config.evaluation,
            seed=config.training.seed,
            journal=journal,
            progress=progress,
        )
        result.metrics.update(token_metrics(model, builder, rows, config.training.per_device_eval_batch_size))
    result.metrics["model"] = subject.name
    if folder is None or journal is None:
        return result
    write_result(folder, result)
    journal.remove()
    return replace(result, folder=folder)


def token_metrics(
    model: PreTrainedModel, builder: ExampleBuilder, rows: Sequence[Row], batch_size: int
) -> dict[str, float]:
    """loss and token_accuracy over the rows' own answers, measured as during training; empty where they have none,
    which is said."""
    from tunesmith.data.batching import BatchRows
    from tunesmith.data.collate import Collator
    from tunesmith.data.ledger import Ledger
    from tunesmith.evaluate.loss import measure_tokens

    try:
        examples = list(builder.examples(rows, Ledger()))
    except DataError as problem:
        notify(f"no loss and no token accuracy: {problem.lines()[0]}")
        return {}
    batch_rows = BatchRows(examples, "padded", builder.data.max_length)
    collate = Collator("padded", builder.tokenizer.pad_token_id)
    batches = (collate(batch_rows[start : start + batch_size]) for start in range(0, len(batch_rows), batch_size))
    return measure_tokens(model, batches, model.device) if examples else {}
