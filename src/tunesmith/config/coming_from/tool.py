"""How a file of another program becomes settings: a table of its keys, and the same walk for all of them.

A key is a setting of ours under another name, something that a function says in our settings, or nothing here, for a
reason that is told. Names that both programs have (Hugging Face's) need no entry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunesmith import notices
from tunesmith.config.answered import ANSWERS
from tunesmith.config.draft import Draft, Setting, dialect_defaults, shown
from tunesmith.config.names import ANSWERED, NameTable
from tunesmith.config.readers.yaml_lines import Lines
from tunesmith.errors import ConfigError, did_you_mean
from tunesmith.program import named

NAMES = NameTable()

Written = Mapping[str, Any]
"""The whole file: nested keys with dots between them."""


class NotHere(Exception):
    """A key, or the value it has, that nothing here stands for; the text is the reason."""


Say = Callable[[Any, Written], Mapping[str, Any]]
"""(value, the whole file) -> our settings by their names. Raises NotHere."""


@dataclass(frozen=True, slots=True)
class Tool:
    """Another program's file.

    Attributes:
        name: as a dialect.
        title: as people call it.
        recognises: whether the tree of a file is one of this program's.
        keys: key -> our name for it, what says it, or (a NotHere) why nothing does.
        defaults: what the program takes for granted where a file is silent, by our names.
        nested: keys below which others stand, which then begin with that key and a dot.
    """

    name: str
    title: str
    recognises: Callable[[Mapping[str, Any]], bool]
    keys: Mapping[str, str | Say | NotHere]
    defaults: Mapping[str, Any]
    nested: frozenset[str] = field(default_factory=frozenset)

    def read(self, document: Lines) -> Draft:
        """The settings of a file. What has no meaning here is in the draft's ``left``, with the reason.

        Raises:
            ConfigError: the file holds no mapping.
        """
        if not isinstance(document.value, dict):
            raise ConfigError("holds no settings", where=document.file)
        written = dict(self._flat(document.value))
        settings: list[Setting] = []
        left: list[tuple[str, str, str]] = []
        for key, value in written.items():
            where = document.where(*key.split("."))
            if value is None:
                continue
            try:
                said = self._said(key, value, written)
            except NotHere as reason:
                left.append((key, where, named(str(reason))))
                continue
            for name, one in said.items():
                settings.append(Setting(key if len(said) == 1 else name, one, where, NAMES.find(name, where)))
        if left:
            without = ", ".join(key for key, _, _ in left)
            notices.notify(f"{document.file} is a file of {self.title}; without meaning here: {without}")
        defaults = dialect_defaults(dict(self.defaults), NAMES, self.title)
        return Draft(self.name, tuple(_once(settings)), defaults, NAMES, evaluation_optional=True, left=tuple(left))

    def _flat(self, tree: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
        for key, value in tree.items():
            name = f"{above}{key}"
            if name in self.nested and isinstance(value, dict):
                yield from self._flat(value, f"{name}.")
            else:
                yield name, value

    def _said(self, key: str, value: Any, written: Written) -> Mapping[str, Any]:
        meaning = self.keys.get(key, key)
        if isinstance(meaning, NotHere):
            if value in (False, ""):
                return {}  # it asks for nothing
            raise meaning
        if not isinstance(meaning, str):
            return meaning(value, written)
        if meaning in ANSWERED:
            try:
                ANSWERED[meaning].convert(value, True)  # type: ignore[misc]
            except ConfigError:
                raise NotHere(ANSWERS[meaning]) from None
            return {}
        if meaning in NAMES:
            return {meaning: value}
        raise NotHere(did_you_mean(key, self.keys, "no setting here does this"))


def _once(settings: list[Setting]) -> list[Setting]:
    """Where two keys of a file say one setting, the later one alone, as in the program that it was written for."""
    last: dict[str, Setting] = {}
    kept: list[Setting] = []
    for setting in settings:
        if setting.spelling.part is None:
            last.pop(setting.spelling.path, None)
            last[setting.spelling.path] = setting
        else:
            kept.append(setting)
    return [*last.values(), *kept]


def left_lines(draft: Draft) -> list[str]:
    """What a file says that has no meaning here, a line each with its reason."""
    return [f"{where}: {key} is left out: {reason}" for key, where, reason in draft.left]


def beside(name: str, file: str) -> str:
    """A file that another one names: from the working directory, else beside the file that names it."""
    near = Path(file).parent / name
    return shown(near) if near.exists() and not Path(name).exists() else name


TEMPLATES = {
    "alpaca": "alpaca", "chatml": "chatml", "gemma": "gemma", "llama3": "llama-3", "llama-3": "llama-3",
    "mistral": "mistral-instruct", "phi": "phi-3", "phi_3": "phi-3", "zephyr": "zephyr",
}  # fmt: skip
"""Chat templates under the names that other programs give them."""


def template(value: Any, written: Written) -> Mapping[str, Any]:
    """A chat template by name; ``tokenizer_default`` and its like are what happens here by itself."""
    if value in ("tokenizer_default", "default", "auto", ""):
        return {}
    if value not in TEMPLATES:
        raise NotHere(f"there is no template {value!r} here, and the tokenizer's own is used; template names another")
    return {"template": TEMPLATES[value]}


def gradient_checkpointing(value: Any, written: Written) -> Mapping[str, Any]:
    """A switch, or the name of somebody's own way, all of which recompute activations."""
    return {"gradient_checkpointing": value not in (False, "false", "none", "")}


def bf16(value: Any, written: Written) -> Mapping[str, Any]:
    """A switch; ``auto`` leaves it to the device."""
    return {} if value == "auto" else {"bf16": value}


def share(value: Any, written: Written) -> Mapping[str, Any]:
    """A share of the rows that are held out; a number of rows is none."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1:
        return {"dev_split": float(value)}
    raise NotHere("rows are held out by their share: dev_split 0.05")


def wandb_project(value: Any, written: Written) -> Mapping[str, Any]:
    """A project at Weights & Biases, which switches it on."""
    return {"wandb_project": value, "use_wandb": True} if value else {}
