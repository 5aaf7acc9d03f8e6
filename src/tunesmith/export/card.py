"""The model card: what a model was made from, how it did, and what nobody measured, from the run's own records.

``render`` is a pure function of records; nothing in a card comes from anywhere else. Names are shortened and escaped:
no folder of the machine, no markup from a label.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import yaml
from jinja2 import Template

from tunesmith.config.draft import DEFAULT
from tunesmith.export.proof import PROOF
from tunesmith.report.folder import read_json, write_text
from tunesmith.report.record import RECORD
from tunesmith.report.templates import environment

CARD = "README.md"
Kind = Literal["adapter", "merged", "full"]
_UNTOLD = ("tracking.", "launch.", "training.output_dir", "training.hub_", "training.push_to_hub", "training.run_name")
"""Settings that say nothing about the model."""
_ABSOLUTE = re.compile(r"(?<![\w.~/-])(?:~|/|[A-Za-z]:\\)[^\s'\"=,:\]]*[/\\]")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_ROWS = re.compile(r"([\w.-]+/[\w.-]+)(?:/[^/]+)?\[[^\]]+\]")
"""How the ledger names rows of a hub data set: ``owner/name[split]``, or ``owner/name/subset[split]``."""


@dataclass(frozen=True, slots=True)
class Records:
    """What a run left behind; parts that were not written are empty."""

    run: Mapping[str, Any]
    ledger: Mapping[str, Any] = field(default_factory=dict)
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    proof: Mapping[str, Any] = field(default_factory=dict)


def write_card(run: Path, model_folder: Path, kind: Kind) -> Path:
    """Write the card of a run's model into the model's folder.

    Raises:
        StorageError: a record cannot be read, or the card cannot be written.
    """
    path = model_folder / CARD
    write_text(path, render(read_records(run, model_folder), kind))
    return path


def run_folder_of(folder: Path) -> Path:
    """The run folder that a model's folder is, or lies in; the folder itself where there is no record."""
    parent = folder.absolute().parent
    return parent if not (folder / RECORD).is_file() and (parent / RECORD).is_file() else folder


def read_records(run: Path, model_folder: Path, base_model: str | None = None) -> Records:
    """The records of a run folder, and the proof beside a merged model; ``base_model`` is what to call the base."""
    places = {
        "run": run / RECORD,
        "ledger": run / "ledger.json",
        "evaluation": run / "evaluation" / "metrics.json",
        "proof": model_folder / PROOF,
    }
    found = {name: read_json(path) if path.is_file() else {} for name, path in places.items()}
    if base_model is not None:
        found["run"]["settings"] = found["run"]["settings"] | {"model.model_name_or_path": base_model}
    return Records(**found)


def render(records: Records, kind: Kind) -> str:
    """The card as Markdown with the hub's front matter.

    Args:
        kind: whether the folder holds an adapter, a merged model, or a model trained whole.
    """
    run = records.run
    settings = run.get("settings", {})
    model, data, result = (run.get(part, {}) for part in ("model", "data", "result"))
    base = str(settings.get("model.model_name_or_path") or "")
    body = _template().render(
        kind=kind,
        base=clean(base),
        model=model,
        data=data,
        sources=[(clean(name), account) for name, account in _sources(records.ledger).items()],
        plan=run.get("plan", {}),
        result=result,
        training_figures=[item for item in result.get("metrics", {}).items() if isinstance(item[1], int | float)],
        settings=_told(settings, run.get("origins", {})),
        evaluation=records.evaluation,
        figures=_figures(records.evaluation),
        proof=records.proof,
        command=clean(str(run.get("command", "")), code=True),
        versions=run.get("versions", {}),
        finished=clean(str(run.get("finished", ""))[:10]),
    )
    return f"---\n{_front_matter(records, kind, base)}---\n\n{body}"


@lru_cache(maxsize=1)
def _template() -> Template:
    # Markdown: every value goes through ``clean``
    templates = environment("tunesmith.export", ".", autoescape=False, keep_trailing_newline=True)
    templates.filters["clean"] = clean
    return templates.get_template("card.md.jinja")


def clean(value: object, *, code: bool = False) -> str:
    """A value as text on one line: folders shortened to ``.../name``, Markdown and HTML made harmless.

    Args:
        code: the text stands in a code block, where only backticks matter.
    """
    text = shorten_folders(" ".join(str(value).split()))
    text = "".join(character for character in text if character.isprintable())
    if code:
        return text.replace("`", "'")
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", text)


def shorten_folders(text: str) -> str:
    """The text with ``.../`` in the place of each absolute folder."""
    return _ABSOLUTE.sub(".../", text)


def _front_matter(records: Records, kind: Kind, base: str) -> str:
    content: dict[str, Any] = {
        "library_name": "peft" if kind == "adapter" else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["tunesmith", "sft", *(["lora"] if kind != "full" else [])],
    }
    if _HUB_NAME.fullmatch(base) and not Path(base).exists():
        relation = {"adapter": "adapter", "merged": "merge", "full": "finetune"}
        content |= {"base_model": base, "base_model_relation": relation[kind]}
    names = sorted({found[1] for name in _sources(records.ledger) if (found := _HUB_ROWS.fullmatch(name))})
    if names:
        content["datasets"] = names
    figures = _figures(records.evaluation)
    if figures:
        metrics = [{"type": name, "value": round(value, 4)} for name, value, _ in figures]
        task = {"type": "text-generation", "name": str(records.evaluation.get("task", "evaluation"))}
        dataset = {"type": "held-out", "name": f"{records.evaluation.get('num_examples', 0)} held-out rows"}
        results = [{"task": task, "dataset": dataset, "metrics": metrics}]
        content["model-index"] = [{"name": "tunesmith run", "results": results}]
    text: str = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    return text


def _sources(ledger: Mapping[str, Any]) -> dict[str, Any]:
    return dict((ledger.get("training") or {}).get("sources", {}))


def _told(settings: Mapping[str, Any], origins: Mapping[str, str]) -> list[tuple[str, str]]:
    """Settings that somebody or a dialect set, as name and value."""
    return [
        (clean(name), clean(value))
        for name, value in settings.items()
        if not origins.get(name, DEFAULT).startswith(DEFAULT) and not name.startswith(_UNTOLD)
    ]


def _figures(evaluation: Mapping[str, Any]) -> list[tuple[str, float, tuple[float, float] | None]]:
    """Name, value and 95% interval (where there is one) of every figure between 0 and 1."""
    intervals = evaluation.get("confidence", {})
    return [
        (name, value, tuple(intervals[name]) if name in intervals else None)
        for name, value in evaluation.items()
        if isinstance(value, float) and 0 <= value <= 1
    ]
