"""``tunesmith evaluate``: the figures of a model, from the answers it writes."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from tunesmith.cli import environment
from tunesmith.cli.arguments import VerbParser

_SHOWN_KINDS = 5
_SHOWN_CHARACTERS = 80


def run(argv: Sequence[str]) -> int:
    """Evaluate a finished run, or the untrained model of a configuration."""
    parser = VerbParser("evaluate", "Generate answers with a finished run, read them, and score them.")
    parser.add_argument("run", nargs="?", help="run folder; left out with --config")
    parser.add_argument("--data", help="rows to evaluate on; the run's own evaluation rows when left out")
    parser.add_argument("--limit", type=int, help="evaluate the first N rows only")
    parser.add_argument("--config", help="evaluate the model of this configuration before any training")
    parser.add_argument("--output", help="folder for predictions.jsonl and metrics.json; RUN/evaluation when left out")
    parser.add_argument("--json", action="store_true", help="print the metrics as JSON")
    options, settings = parser.split(argv)
    if (options.run is None) == (options.config is None):
        parser.error("give a run folder, or --config FILE for an untrained model")
    environment.prepare()
    from tunesmith.cli.progress import counter
    from tunesmith.evaluate.run import evaluate_run, evaluate_untrained

    with counter("answers") as on_progress:
        if options.config is not None:
            from tunesmith.config.load import load

            resolved = load(options.config, settings)
            result = evaluate_untrained(
                resolved, data=options.data, limit=options.limit, output=options.output, progress=on_progress
            )
        else:
            result = evaluate_run(
                options.run,
                data=options.data,
                limit=options.limit,
                output=options.output,
                settings=settings,
                progress=on_progress,
            )
    if options.json:
        print(json.dumps(result.metrics, indent=2, ensure_ascii=False))
    else:
        print("\n".join([*describe_metrics(result.metrics), *describe_mistakes(result.mistakes)]))
        if result.folder is not None:
            print(f"predictions and metrics: {result.folder}", file=sys.stderr)
    return 0


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
        lines.append(f"{one_line(kind)}: {found['count']:,}, as {example['source']}: ...{end}")
    return ["mistakes (all kinds, with examples, in mistakes.json)", *(f"  {line}" for line in lines)] if lines else []


def one_line(text: str) -> str:
    """Text on one line, with escapes in place of characters that steer a terminal."""
    from tunesmith.cli.preview import visible

    return " ".join(visible(text).split())


def _matrix(matrix: dict[str, Any]) -> list[str]:
    lines = ["confusion matrix (rows: truth, columns: answer)"]
    lines.append(" " * 20 + "".join(f"{one_line(str(column)):>12}" for column in matrix["columns"]))
    for label, counts in zip(matrix["labels"], matrix["counts"], strict=True):
        lines.append(f"{one_line(str(label)):>20}" + "".join(f"{count:>12,}" for count in counts))
    return lines
