"""``tunesmith evaluate``: the figures of models, from the answers they write."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Any

from tunesmith.cli import early, environment
from tunesmith.cli.arguments import VerbParser
from tunesmith.cli.output import say, say_json, tell
from tunesmith.imports import lean_imports
from tunesmith.visible import visible

if TYPE_CHECKING:
    import argparse

    from tunesmith.evaluate.compare import Comparison
    from tunesmith.evaluate.result import EvaluationResult

_SHOWN_KINDS = 5
_SHOWN_CHARACTERS = 80


def run(argv: Sequence[str]) -> int:
    """Evaluate one model, or several on the same rows.

    ``--json`` prints ``metrics.json`` for one model, and for several {"task", "num_examples", "compared_with",
    "models": {name: metrics}, "differences": {name: {"gained", "lost", "p", "figures": ...}}}; see ``compare``.
    """
    parser = VerbParser("evaluate", "Generate answers, read them, and score them; of several models, compare them.")
    parser.add_argument(
        "model",
        nargs="*",
        help="run folder, checkpoint, adapter, model folder, hub name or nano-mistral; of several, the others are "
        "compared with the first",
    )
    parser.add_argument("--baseline", action="store_true", help="compare with the first one's model before training")
    parser.add_argument("--data", help="rows to evaluate on; a run's own evaluation rows when left out")
    parser.add_argument("--limit", type=int, help="evaluate the first N rows only")
    parser.add_argument(
        "--sample", action="store_true", help="answer the rows only that the run answered during training"
    )
    parser.add_argument("--config", help="evaluate the model of this configuration before any training")
    parser.add_argument(
        "--output",
        help="folder for the result; left out, that of a run goes into RUN/evaluation and any other is only printed",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    options, settings = parser.split(argv)
    if bool(options.model) == bool(options.config):
        parser.error("give one model or more, or --config FILE for an untrained one")
    if options.config and (options.baseline or options.sample):
        parser.error("--baseline and --sample need a run, and --config names none")
    environment.prepare()
    early.check_named(*options.model)
    early.check_data(options.data)
    asked = {"data": options.data, "limit": options.limit, "output": options.output}
    if options.baseline or len(options.model) > 1:
        comparison = _several(options.model, settings, baseline=options.baseline, sample=options.sample, **asked)
        if options.json:
            say_json(comparison.to_dict())
        else:
            say(comparison.text(get_terminal_size().columns if sys.stdout.isatty() else None))
        return 0
    result = _one(options, settings, **asked)
    if options.json:
        say_json(result.metrics)
    else:
        say("\n".join([*describe_metrics(result.metrics), *describe_mistakes(result.mistakes)]))
        if result.folder is not None:
            tell(f"predictions and metrics: {result.folder}")
    return 0


def _one(options: argparse.Namespace, settings: Sequence[str], **asked: Any) -> EvaluationResult:
    from tunesmith.cli.progress import follow

    with lean_imports():
        from tunesmith.evaluate.run import evaluate_run, evaluate_untrained

    with follow("answers") as progress:
        if options.config:
            from tunesmith.config.load import load

            return evaluate_untrained(load(options.config, settings), progress=progress, **asked)
        return evaluate_run(options.model[0], sample=options.sample, settings=settings, progress=progress, **asked)


def _several(names: Sequence[str], settings: Sequence[str], **asked: Any) -> Comparison:
    from tunesmith.cli.progress import follow

    with lean_imports():
        from tunesmith.evaluate.run import evaluate_several

    with ExitStack() as stack:

        def progress(name: str) -> Callable[[int, int], None]:
            stack.close()  # the line of the model before
            return stack.enter_context(follow(name))

        return evaluate_several(names, settings=settings, progress=progress, **asked)


def describe_metrics(metrics: dict[str, Any]) -> list[str]:
    """Metrics as aligned lines: figures first, then per-class figures and the confusion matrix."""
    lines = [f"{'task':<20} {metrics['task']}", f"{'num_examples':<20} {metrics['num_examples']:,}"]
    for name, value in metrics.items():
        if isinstance(value, float):
            interval = metrics.get("confidence", {}).get(name)
            between = f"  (95%: {interval[0]:.4f} to {interval[1]:.4f})" if interval else ""
            lines.append(f"{name:<20} {value:.4f}{between}")
    for kind in ("class", "field"):
        for name, figures in metrics.get(f"per_{kind}", {}).items():
            shown = "  ".join(f"{key} {value:.4g}" for key, value in figures.items())
            lines.append(f"{kind + ' ' + one_line(name):<20} {shown}")
    if "confusion_matrix" in metrics:
        lines += _matrix(metrics["confusion_matrix"])
    if metrics.get("read_as"):
        lines.append(f"{'read_as':<20} " + "  ".join(f"{how}: {count:,}" for how, count in metrics["read_as"].items()))
    return lines


def describe_mistakes(mistakes: dict[str, Any]) -> list[str]:
    """How often each kind of mistake occurs, the commonest kinds first, with the end of one such output."""
    lines = []
    for kind, found in list(mistakes.items())[:_SHOWN_KINDS]:
        example = found["examples"][0]
        end = one_line(example["output_end"])[-_SHOWN_CHARACTERS:]
        lines.append(f"{one_line(kind)}: {found['count']:,}, as {one_line(example['source'])}: ...{end}")
    return ["mistakes (all kinds, with examples, in mistakes.json)", *(f"  {line}" for line in lines)] if lines else []


def one_line(text: str) -> str:
    """Text on one line, with escapes in place of characters that steer a terminal."""
    return " ".join(visible(text).replace("\n", "↵ ").split())


def _matrix(matrix: dict[str, Any]) -> list[str]:
    lines = ["confusion matrix (rows: truth, columns: answer)"]
    lines.append(" " * 20 + "".join(f"{one_line(str(column)):>12}" for column in matrix["columns"]))
    for label, counts in zip(matrix["labels"], matrix["counts"], strict=True):
        lines.append(f"{one_line(str(label)):>20}" + "".join(f"{count:>12,}" for count in counts))
    return lines
