"""``contract.json`` of a checkpoint: everything that decides what its run ends with, and what a run that continues it
may have changed.

Settings stand in it by value, files by the hash of their contents. ``config/resume.py`` says which settings matter.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith import notices
from tunesmith.config.resolve import Resolved
from tunesmith.config.resume import BY_FACT, FIXED, FREE, OPTIMIZATION, VERSIONS, allowed_changes, flat
from tunesmith.config.strategy import Strategy
from tunesmith.data.cache import contents_hash, tokenizer_hash
from tunesmith.errors import ConfigError, ConfigErrors, StorageError
from tunesmith.export.inference import chat_template
from tunesmith.model import source
from tunesmith.model.fingerprint import fingerprint
from tunesmith.model.layout import expected_layout
from tunesmith.report.folder import read_json, write_json
from tunesmith.report.record import versions
from tunesmith.train.arguments import eval_interval
from tunesmith.train.once import once_per_machine
from tunesmith.train.plan import Plan
from tunesmith.train.prepare import PreparedData, data_section

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tunesmith.model.device import Device
    from tunesmith.model.precision import Precision
    from tunesmith.train.checkpoint import Checkpoint

CONTRACT = "contract.json"
_TOLD_BY_EXAMPLES = ("data.", "template", "instruction", "tokenizer", "train_data", "eval_data")
"""What decides the examples: where one of these has changed, other examples are no change of their own."""
_PLATEAU = "reduce_lr_on_plateau"
_ENDLESS = ("constant", "constant_with_warmup", "inverse_sqrt", _PLATEAU)
"""Schedules that do not depend on where a run ends."""

Terms = dict[str, dict[str, Any]]
"""``settings`` by path, ``facts`` and ``versions`` by name."""


@dataclass(frozen=True, slots=True)
class Change:
    """Something that was ``old`` when the checkpoint was written and is ``new`` now; ``path`` of a setting, or the name
    of a fact or of a library."""

    path: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{flat(self.path)}: {_shown(self.old)} -> {_shown(self.new)}"


class RunTerms:
    """The terms of a run; files are read when somebody asks.

    Args:
        resolved: the run's configuration.
        data: its examples.
        plan: its steps.
        strategy: how its processes share it.
        device: where it computes.
        precision: its arithmetic.
    """

    def __init__(
        self,
        resolved: Resolved,
        data: PreparedData,
        plan: Plan,
        strategy: Strategy,
        device: Device,
        precision: Precision,
    ) -> None:
        self.resolved = resolved
        self.strategy = strategy
        self._data = data
        self.total_steps = plan.total_steps
        self._cheap: dict[str, Any] = {
            "template_date": data.builder.template_date,
            "device": device.kind,
            "precision": precision.dtype,
            "strategy": strategy.name,
            "strategy_settings": _hash([strategy.deepspeed, strategy.fsdp]),
            "evaluations": list(eval_interval(resolved)) if eval_interval(resolved)[0] == "steps" else [],
            "total_steps": plan.total_steps,
            "global_batch_size": plan.global_batch_size,
            "examples": [data.train_fingerprint, data.eval_fingerprint],
        }

    @cached_property
    def terms(self) -> Terms:
        """All of them. One process reads the files on each machine; all processes must ask, or the first one alone
        after the first step."""
        values = self.resolved.values()
        settings = {path: value for path, value in values.items() if path not in FREE and path not in BY_FACT}
        layout = {"layout": expected_layout(self.resolved).batching}
        return {"settings": settings, "facts": self._cheap | layout | self._contents(), "versions": versions()}

    def write(self, folder: Path, accepted: Sequence[dict[str, Any]]) -> None:
        """Put the terms into a checkpoint, and what was changed on the way to it."""
        write_json(folder / CONTRACT, self.terms | {"accepted": list(accepted)})

    def _contents(self) -> dict[str, Any]:
        section, data, builder = self.resolved.config.model, data_section(self.resolved), self._data.builder
        base = None
        if section.model_class is None:  # another package knows where its weights are
            located = source.locate(section.model_name_or_path, section.revision)
            base = fingerprint(source.local_folder(located, section.revision))
        return {
            "base": base,
            "tokenizer": _hash_without_template(builder.tokenizer),
            "template": _hash([chat_template(builder, self._data.first_row), _text_or_file(data.template)]),
            "instruction": _text_or_file(data.instruction),
            "train_data": contents_hash(data.train_data, data.train_split),
            "eval_data": contents_hash(data.eval_data, data.eval_split or "validation"),
        }


def _hash_without_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 of the tokenizer apart from its chat template: a run gives it the one it trains with, which is a term of
    its own, and a run that continues has not done so yet."""
    template = tokenizer.chat_template
    try:
        tokenizer.chat_template = None
        return tokenizer_hash(tokenizer)
    finally:
        tokenizer.chat_template = template


def written_terms(checkpoint: Path) -> Terms:
    """The terms that a checkpoint was written under.

    Raises:
        StorageError: it holds none, or they are damaged.
    """
    if not (checkpoint / CONTRACT).is_file():
        raise StorageError(
            f"cannot resume: {CONTRACT} is missing, so nobody knows which settings it was trained with",
            where=str(checkpoint),
            remedy="name another checkpoint, or start again",
        )
    terms = read_json(checkpoint / CONTRACT)
    if not (
        isinstance(terms, dict)
        and all(isinstance(terms.get(key), dict) for key in ("settings", "facts", VERSIONS))
        and isinstance(terms.get("accepted", []), list)
    ):
        raise StorageError(f"cannot resume: {CONTRACT} is damaged", where=str(checkpoint))
    written = terms["settings"].pop("training.batching", None)  # the setting was the layout before it could be "auto"
    if written is not None:
        terms["facts"].setdefault("layout", written)
    return terms


def changes(old: Terms, new: Terms) -> list[Change]:
    """What differs between the terms of a checkpoint and those of a run that would continue it.

    More steps are none: they are what continuing is for. Fewer are none where no rate depends on their number.
    """
    new = json.loads(json.dumps(new))  # as the old ones were written
    found = [
        Change(name, old[group].get(name), new[group].get(name))
        for group in ("settings", "facts", VERSIONS)
        for name in {**old[group], **new[group]}
        if old[group].get(name) != new[group].get(name)
    ]
    decided = any(change.path.startswith(_TOLD_BY_EXAMPLES) for change in found)
    endless = _is_endless(old["settings"]) and _is_endless(new["settings"])
    return [
        change
        for change in found
        if not (
            _is_longer(change)
            or (endless and change.path == "total_steps")
            or (decided and change.path in ("examples", "total_steps"))
        )
    ]


def _is_endless(settings: dict[str, Any]) -> bool:
    """Whether no learning rate depends on how many steps a run has."""
    return settings.get("training.lr_scheduler_type") in _ENDLESS and not settings.get("training.warmup_ratio")


def _is_longer(change: Change) -> bool:
    both = isinstance(change.old, int) and isinstance(change.new, int)
    return change.path == "total_steps" and both and change.new >= change.old


def accept(found: list[Change], name: str, resolved: Resolved) -> None:
    """Go on with the changes that ``allow_changed`` names, and say them; refuse all others at once.

    Args:
        found: what has changed.
        name: of the checkpoint.
        resolved: the run's configuration.

    Raises:
        ConfigError: a change is not allowed, or cannot be.
    """
    libraries = [change.path for change in found] + list(versions())
    allowed = allowed_changes(resolved, libraries)
    problems = list(_refusals(found, allowed, name, resolved))
    if problems:
        raise problems[0] if len(problems) == 1 else ConfigErrors(problems)
    for change in found:
        notices.notify(f"{name} is continued with another {change}")


def _refusals(found: list[Change], allowed: set[str], name: str, resolved: Resolved) -> Iterator[ConfigError]:
    is_plateau = any(_PLATEAU in (change.old, change.new) for change in found)
    is_plateau = is_plateau or resolved.config.training.lr_scheduler_type == _PLATEAU
    for change in found:
        reason = FIXED.get(change.path)
        if reason is None and is_plateau and change.path in OPTIMIZATION:
            reason = f"what {_PLATEAU} has done to the learning rate cannot be done again"
        is_version = change.path in versions()
        if reason is None and (flat(change.path) in allowed or (is_version and VERSIONS in allowed)):
            continue
        yield ConfigError(
            f"{change} since {name} was written" + (f", and {reason}" if reason else ""),
            where=_origin(change, resolved),
            remedy="set it back, or train anew" if reason else f"set it back, or --allow_changed {flat(change.path)}",
        )


def _origin(change: Change, resolved: Resolved) -> str:
    """Who said the new value: the setting itself, or the first written one of those that the fact stands for."""
    if change.path in resolved.origins:
        return resolved.origins[change.path]
    paths = [path for path, fact in BY_FACT.items() if fact == change.path]
    written = [path for path in paths if resolved.explicit(path)]
    return resolved.origins[written[0]] if written else resolved.origins["training.resume_from_checkpoint"]


@dataclass(frozen=True, slots=True)
class Continuation:
    """How a run differs from the one that it continues.

    Attributes:
        rescheduled: settings whose new values must be put into the checkpoint's optimizer and schedule.
        accepted: for ``run.json`` and later checkpoints, every change so far that was allowed: ``step`` and
            ``changed``, name -> old and new value.
    """

    rescheduled: frozenset[str] = frozenset()
    accepted: tuple[dict[str, Any], ...] = ()


def continuation(found: Checkpoint, terms: RunTerms) -> Continuation:
    """What has changed since a checkpoint was written, once all of it is allowed. Of several processes, one reads the
    files on each machine.

    Raises:
        ConfigError: a change is not allowed.
        StorageError: the checkpoint does not say what it was trained with.
    """
    resolved = terms.resolved
    old = written_terms(found.path)
    run = Path(resolved.config.training.output_dir)
    raw = once_per_machine(run, "terms", lambda: [[one.path, one.old, one.new] for one in changes(old, terms.terms)])
    changed = [Change(*one) for one in raw]
    accept(changed, found.path.name, resolved)
    rescheduled = {change.path for change in changed} & OPTIMIZATION
    if old["facts"].get("total_steps") != terms.total_steps:
        rescheduled |= {"total_steps"}
    _check_schedule(rescheduled, terms)
    accepted: list[Any] = list(old.get("accepted", ()))
    if changed:
        accepted.append({"step": found.step, "changed": {flat(one.path): [one.old, one.new] for one in changed}})
    return Continuation(frozenset(rescheduled), tuple(accepted))


def _check_schedule(rescheduled: set[str], terms: RunTerms) -> None:
    """Say that a schedule is drawn anew; refuse it where the engine keeps the old one.

    Raises:
        ConfigError: DeepSpeed holds the optimizer and its schedule.
    """
    training = terms.resolved.config.training
    if not rescheduled or (rescheduled == {"total_steps"} and training.lr_scheduler_type in _ENDLESS):
        return
    if terms.strategy.uses_deepspeed:
        raise ConfigError(
            f"DeepSpeed goes on with the optimizer's former settings and length ({', '.join(map(flat, rescheduled))})",
            where=terms.strategy.origin,
            remedy="set them back, or train anew",
        )
    notices.notify(f"from here on the learning rate is that of {terms.total_steps} steps with this run's settings")


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    is_hash = isinstance(value, str) and len(value) > 60 and all(letter in "0123456789abcdef:" for letter in value)
    return f"sha256 {text.removeprefix('2:')[:12]}" if is_hash else text


def _text_or_file(value: str | None) -> str | None:
    """A text, or the hash of the file that it names."""
    try:
        is_file = value is not None and Path(value).is_file()
    except (OSError, ValueError):  # a text that can be no name
        is_file = False
    return contents_hash(value, None) if is_file else value


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
