"""Which text a run's chat template has: the tokenizer's, one that ships with tunesmith, or a file."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith import assets
from tunesmith.config.schema import DataSection
from tunesmith.data.special_tokens import token_text
from tunesmith.data.template_files import read_text
from tunesmith.errors import ModelError
from tunesmith.notices import notify

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHIPPED_ENDS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>")
"""How templates that ship with tunesmith end a turn where they do not name the end token."""


@dataclass(frozen=True, slots=True)
class ChatSource:
    """The text of a chat template and where it comes from.

    ``ours`` marks one that ships with tunesmith; ``for_tools`` is the template of rows with tools where the tokenizer
    has one; ``name`` is None where turns are written plainly because nobody named a template.
    """

    text: str
    name: str | None
    ours: bool = False
    for_tools: str | None = None


def chat_source(
    tokenizer: PreTrainedTokenizerBase, template: str | None, specials: re.Pattern[str] | None
) -> ChatSource:
    """The template that ``template`` names, see ``chat_renderer``.

    Raises:
        ConfigError: the file cannot be read.
        ModelError: ``chat``, and the tokenizer has no template, or several and none for all rows.
    """
    if template is not None and template != "chat":
        shipped = assets.template(template)
        text = read_text(str(shipped or template), "template")
        return ChatSource(
            text if shipped is None else _with_own_end(text, specials, tokenizer), template, shipped is not None
        )
    if isinstance(tokenizer.chat_template, (str, dict)) and tokenizer.chat_template:
        text, for_tools = _own_templates(tokenizer)
        return ChatSource(text, "the tokenizer's", for_tools=for_tools)
    if template == "chat":
        raise ModelError(
            "the tokenizer has no chat template",
            where="data.template = chat",
            remedy=f"give template a .jinja file or one of {', '.join(assets.template_names())}",
        )
    return ChatSource(read_text(str(assets.template("plain")), "template"), None, ours=True)


def _own_templates(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str | None]:
    """The tokenizer's chat template, and the one for rows with tools where it names one.

    Raises:
        ModelError: it has several templates, and none for rows without tools.
    """
    templates = tokenizer.chat_template
    if not isinstance(templates, dict):
        return tokenizer.get_chat_template(), None
    if "default" not in templates:
        raise ModelError(
            f"the tokenizer has the chat templates {', '.join(templates)} and no default one",
            where="data.template",
            remedy="save the one that is meant in a .jinja file and name it with template",
        )
    return templates["default"], templates.get("tool_use")


def reads_date(tokenizer: PreTrainedTokenizerBase, data: DataSection) -> bool:
    """Whether the chat template that the settings choose may write the day."""
    if data.template in (None, "chat"):
        held = tokenizer.chat_template or ""
        return any("strftime_now" in source for source in (held.values() if isinstance(held, dict) else [held]))
    template = str(data.template)
    path = Path(assets.template(template) or template).expanduser()
    if "{query}" in template or not path.is_file():
        return False
    return "strftime_now" in read_text(str(path), "template")


def _with_own_end(source: str, specials: re.Pattern[str] | None, tokenizer: PreTrainedTokenizerBase) -> str:
    """A template that ships with tunesmith, ending turns with the tokenizer's end token where it lacks the template's.

    A turn that ends with a text that is no token would teach nothing that generation can stop at.
    """
    for token in SHIPPED_ENDS:
        known = specials is not None and specials.fullmatch(token) is not None
        if f"'{token}'" in source and not known:
            end = token_text(tokenizer.eos_token) or ""
            notify(f"the tokenizer has no {token}: turns end with its end token {end} instead")
            source = source.replace(f"'{token}'", "eos_token")
    return source
