"""Evaluation from a name to figures: who is judged, on which rows, and where the result is kept.

Answers come from ``generate``, their scores from ``scoring``; nothing here prints.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.config.resolve import Resolved
from tunesmith.config.schema import EvaluationSection
from tunesmith.data.row import Row
from tunesmith.errors import ConfigError, DataError
from tunesmith.evaluate.answering import Answerer
from tunesmith.evaluate.compare import Comparison, compare, safe_name
from tunesmith.evaluate.journal import JOURNAL, Journal
from tunesmith.evaluate.result import EvaluationResult, write_result
from tunesmith.evaluate.rows import check_same_rows, held_out_rows, sampled
from tunesmith.evaluate.scoring import Case, references, score_generations, task_for, text_of
from tunesmith.evaluate.subject import Subject, find_subject, of_configuration
from tunesmith.evaluate.tasks import Task
from tunesmith.notices import notify
from tunesmith.report.folder import write_json, write_text

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tunesmith.data.examples import ExampleBuilder
    from tunesmith.evaluate.generate import Generation, Progress


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
        check_same_rows(subjects[0].name, rows[0], subject.name, held)
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


def _evaluate(
    subject: Subject, rows: list[Row], sample: bool, folder: Path | None, progress: Progress | None
) -> EvaluationResult:
    from tunesmith.data.examples import ExampleBuilder
    from tunesmith.evaluate.generate import generate

    answerer = Answerer(subject)
    config = subject.resolved.config
    journal = Journal(folder / JOURNAL) if folder is not None else None
    asked = sampled(rows, config.evaluation.generate_limit, config.evaluation.generate_seed) if sample else rows
    builder = ExampleBuilder(answerer.tokenizer, config.data)
    task = task_for(config.evaluation, builder, asked)
    inference = answerer.inference
    model = inference.model
    with inference.precision.autocast(model.device):
        generator = partial(generate, journal=journal, on_progress=progress)
        result = evaluate_rows(
            model, builder, asked, task, config.evaluation, seed=config.training.seed, generator=generator
        )
        result.metrics.update(token_metrics(model, builder, rows, config.training.per_device_eval_batch_size))
    result.metrics["model"] = subject.name
    if folder is None or journal is None:
        return result
    write_result(folder, result)
    journal.remove()
    return replace(result, folder=folder)


def evaluate_rows(
    model: PreTrainedModel,
    builder: ExampleBuilder,
    rows: Sequence[Row],
    task: Task,
    evaluation: EvaluationSection,
    *,
    seed: int = 0,
    generator: Callable[..., list[Generation]] | None = None,
) -> EvaluationResult:
    """Generate an answer for every row and score it; model, modes and random streams are left as they were.

    Args:
        model: answers.
        builder: makes the prompts.
        rows: at least one.
        task: how answers are read and scored.
        evaluation: how answers are generated, and the resamplings behind the confidence intervals.
        seed: of sampled answers and of the resamplings.
        generator: what generates in the place of ``generate``, in the same way.

    Raises:
        DataError: there are no rows, or some have no prompt or do not say what their answer should be.
    """
    from tunesmith.evaluate.decoding import Decoding
    from tunesmith.evaluate.generate import generate, stop_token_ids

    if not rows:
        raise DataError("there are no rows to evaluate")
    expected = references(builder, rows, task)
    tokenizer = builder.tokenizer
    prompts = [builder.prompt(row).input_ids for row in rows]
    longer = sum(len(prompt) > builder.data.max_length for prompt in prompts)
    if longer:
        notify(
            f"{longer} of {len(prompts)} prompts are longer than max_length ({builder.data.max_length}), which no row "
            "was in training; they are evaluated whole"
        )
    decoding = Decoding.of(evaluation, seed, stop_token_ids(model, builder, rows[0]))
    generations = (generator or generate)(model, tokenizer, prompts, decoding, names=[row.where for row in rows])
    if task.reads_control_tokens:
        generations = [replace(made, text=text_of(made.token_ids, builder, task)) for made in generations]
    cases = [
        Case(row.where, tokenizer.decode(prompt, clean_up_tokenization_spaces=False), reference)
        for row, prompt, reference in zip(rows, prompts, expected, strict=True)
    ]
    return score_generations(task, cases, generations, bootstrap_samples=evaluation.bootstrap_samples, seed=seed)


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
