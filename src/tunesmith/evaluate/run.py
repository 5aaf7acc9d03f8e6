"""Evaluation from rows to figures: prompts, generated answers, predictions and metrics.

How text is generated, read and scored stands in ``generate``, ``answers`` and ``tasks``; nothing here prints.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.config.draft import COMMAND_LINE
from tunesmith.config.names import NameTable
from tunesmith.config.overrides import parse_overrides
from tunesmith.config.resolve import Resolved, from_values
from tunesmith.config.schema import DataSection, EvaluationSection
from tunesmith.data.rows import Row
from tunesmith.errors import ConfigError, DataError, DataErrors, StorageError
from tunesmith.evaluate.journal import JOURNAL, Journal
from tunesmith.evaluate.metrics import mean
from tunesmith.evaluate.tasks import Judged, Task, choose_task
from tunesmith.notices import say
from tunesmith.report.folder import write_json, write_jsonl
from tunesmith.report.record import RECORD, read_record

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from tunesmith.data.examples import ExampleBuilder
    from tunesmith.evaluate.generate import Generation, Progress
    from tunesmith.model.load import Inference

EVALUATION = "evaluation"
PREDICTIONS = "predictions.jsonl"
METRICS = "metrics.json"
_MAX_PROBLEMS = 20


@dataclass(frozen=True, slots=True)
class Case:
    """One row before it is judged: where it comes from, its prompt as text, and what its answer should be."""

    source: str
    prompt: str
    reference: Any


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """Figures over all rows, every row's prediction in the order of the rows, and the folder that holds both."""

    metrics: dict[str, Any]
    predictions: list[dict[str, Any]]
    folder: Path | None = None


def evaluate_run(
    run: str | Path,
    *,
    data: str | list[str] | None = None,
    limit: int | None = None,
    output: str | Path | None = None,
    settings: Sequence[str] = (),
    progress: Progress | None = None,
) -> EvaluationResult:
    """Evaluate a finished run, or one of its checkpoints, under the settings of its record, and write the result.

    Interrupted, the same call goes on after the answers that were finished.

    Args:
        run: run folder, or a checkpoint folder in one.
        data: other rows than the run's own evaluation rows.
        limit: evaluate the first rows only.
        output: folder for ``predictions.jsonl`` and ``metrics.json``; unset, ``evaluation`` in the run folder
            (``evaluation/checkpoint-N`` for a checkpoint).
        settings: settings as on a command line, of the sections evaluation and data, and ``device_map``.
        progress: told how many answers are done.

    Raises:
        StorageError: there is no run, or the result cannot be written.
        ConfigError: a setting cannot be changed after training.
        DataError: there is nothing to evaluate on, or a row cannot be used.
        ModelError: the model cannot be loaded as it was trained.
    """
    from tunesmith.evaluate.engines import check_engine
    from tunesmith.model.load import load_for_inference

    home, model_folder, name = _find_run(Path(run))
    resolved = _with_settings(_recorded(home), settings)
    device_map = resolved.config.model.device_map
    changed = resolved.origins["model.device_map"] == COMMAND_LINE
    check_engine(resolved.config.evaluation.generation_engine, resolved.config.evaluation.temperature)
    rows = held_out_rows(resolved.config.data, data, limit)
    inference = load_for_inference(model_folder, device_map=device_map if changed else None)
    folder = Path(output) if output is not None else home / EVALUATION / name
    journal = Journal(folder / JOURNAL)
    result = _evaluate_loaded(inference, resolved, rows, journal, progress)
    result.metrics["model"] = str(run)
    return _written(result, folder, journal)


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
    from tunesmith.evaluate.engines import check_engine
    from tunesmith.model.load import Inference, load_base
    from tunesmith.model.precision import align_types, choose_precision

    check_engine(resolved.config.evaluation.generation_engine, resolved.config.evaluation.temperature)
    rows = held_out_rows(resolved.config.data, data, limit)
    section = resolved.config.model
    precision = choose_precision(resolved)
    model = load_base(resolved, precision)
    align_types(model)
    tokenizer_folder = section.tokenizer_name_or_path or section.model_name_or_path
    inference = Inference(model.eval(), precision, resolved, tokenizer_folder)
    journal = Journal(Path(output) / JOURNAL) if output is not None else None
    result = _evaluate_loaded(inference, resolved, rows, journal, progress)
    result.metrics["model"] = section.model_name_or_path
    return _written(result, Path(output), journal) if output is not None else result


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
    """
    return choose_task(evaluation.task, builder.format_of(rows[0]), rows)


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
) -> EvaluationResult:
    """Generate an answer for every row and score it; model, modes and random streams are left as they were.

    Args:
        journal: keeps answers while others are generated, see ``generate``; the caller removes it.

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
        say(
            f"{longer} of {len(prompts)} prompts are longer than max_length ({builder.data.max_length}), which no row "
            "was in training; they are evaluated whole"
        )
    generations = generate(
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
    return score_generations(task, cases, generations)


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


def score_generations(task: Task, cases: Sequence[Case], generations: Sequence[Generation]) -> EvaluationResult:
    """Read and score what was generated for ``cases``; needs no model.

    Returns:
        metrics: task, num_examples, the task's own figures, parse_failure_rate (share of unreadable answers),
            stopped_share (answers ended by a stop token), mean_new_tokens, read_as {rule: how many answers it read};
        predictions: one object a row with source, prompt, reference, output, answer, read_as, correct, stopped.
    """
    judged = []
    for case, generation in zip(cases, generations, strict=True):
        answer = task.read(generation.text)
        judged.append(Judged(answer, case.reference, task.correct(answer, case.reference)))
    metrics = {
        "task": task.name,
        "num_examples": len(judged),
        **task.score(judged),
        "parse_failure_rate": mean([float(not item.answer.readable) for item in judged]),
        "stopped_share": mean([float(generation.stopped) for generation in generations]),
        "mean_new_tokens": mean([float(len(generation.token_ids)) for generation in generations]),
        "read_as": dict(sorted(Counter(item.answer.how for item in judged).items())),
    }
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
        }
        for case, generation, item in zip(cases, generations, judged, strict=True)
    ]
    return EvaluationResult(metrics, predictions)


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
    """Write predictions and then metrics; metrics never stand beside predictions they do not belong to.

    Raises:
        StorageError: a file cannot be written.
    """
    try:
        (folder / METRICS).unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"cannot write: {error.strerror or error}", where=str(folder)) from error
    write_jsonl(folder / PREDICTIONS, result.predictions)
    write_json(folder / METRICS, result.metrics)


def _written(result: EvaluationResult, folder: Path, journal: Journal) -> EvaluationResult:
    write_result(folder, result)
    journal.remove()
    return replace(result, folder=folder)


def _evaluate_loaded(
    inference: Inference, resolved: Resolved, rows: list[Row], journal: Journal | None, progress: Progress | None
) -> EvaluationResult:
    from tunesmith.data.examples import ExampleBuilder
    from tunesmith.model.tokenizer import load_tokenizer

    config = resolved.config
    tokenizer = load_tokenizer(config.model.model_copy(update={"tokenizer_name_or_path": inference.tokenizer_folder}))
    builder = ExampleBuilder(tokenizer, config.data)
    task = task_for(config.evaluation, builder, rows)
    with inference.precision.autocast(inference.model.device):
        return evaluate_rows(
            inference.model,
            tokenizer,
            builder,
            rows,
            task,
            config.evaluation,
            seed=config.training.seed,
            journal=journal,
            progress=progress,
        )


def _find_run(path: Path) -> tuple[Path, Path, str]:
    """The run folder, the folder with the model, and the name of a checkpoint ("" for the finished model)."""
    for home in (path, path.absolute().parent):
        if (home / RECORD).is_file():
            final = _recorded(home).config.training.final_subdir
            if home == path:
                return home, home / final if final else home, ""
            return home, path, "" if path.name == final else path.name
    raise StorageError(
        f"no {RECORD} there, so this is no run folder", where=str(path), remedy="name the output_dir of a training run"
    )


def _recorded(home: Path) -> Resolved:
    return read_record(home).resolved


def _with_settings(resolved: Resolved, tokens: Sequence[str]) -> Resolved:
    values, origins = resolved.values(), dict(resolved.origins)
    for setting in parse_overrides(tokens, NameTable()):
        path, convert = setting.spelling.path, setting.spelling.convert
        if path.split(".")[0] not in ("evaluation", "data") and path != "model.device_map":
            raise ConfigError(
                f"{setting.name} cannot be changed for a run that is finished",
                where=setting.origin,
                remedy="settings of the sections evaluation and data can, and device_map",
            )
        values[path] = convert(setting.value, values[path]) if convert else setting.value
        origins[path] = setting.origin
    return from_values(values, origins)
