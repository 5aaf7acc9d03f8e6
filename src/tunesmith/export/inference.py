"""``inference.json``: how a saved model wants to be asked, for tunesmith and for everybody else.

It lies beside every model that a run leaves and holds texts, not paths, so that the folder can go to another machine.
Prompts are still made by ``data.examples`` alone: ``settings`` gives it back the settings of training, and ``prompt``
says the same for programs that know nothing of tunesmith.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator

from tunesmith.config.kinds import Section
from tunesmith.config.resolve import from_values
from tunesmith.config.schema import EvaluationSection
from tunesmith.data.chat_template import ChatRenderer
from tunesmith.data.examples import ExampleBuilder
from tunesmith.data.formats import DEFAULT_MARKER, QUERIES
from tunesmith.data.row import Row
from tunesmith.data.templates import Renderer, StringRenderer
from tunesmith.data.tokenized import TOKENIZED
from tunesmith.errors import ConfigError, ModelError
from tunesmith.report.folder import read_json, write_json

if TYPE_CHECKING:
    from transformers import GenerationConfig

INFERENCE = "inference.json"
VERSION: Literal[1] = 1
GENERATION_DEFAULTS = "generation_config.json"
SETTINGS = (
    "data.format",
    "data.columns",
    "data.roles",
    "data.turn_order",
    "data.template",
    "data.chat_template_kwargs",
    "data.unwritten",
    "data.instruction",
    "data.instruction_in_prompt",
    "data.completion_start",
    "data.loss_on",
    "data.special_in_content",
    "data.add_bos",
    "data.max_length",
    "evaluation.task",
    "evaluation.labels",
    "evaluation.max_new_tokens",
    "evaluation.temperature",
    "evaluation.top_p",
)
"""Settings by their schema path that decide what a model is asked and how it answers."""
NOT_DECODING = ("bos_token_id", "eos_token_id", "pad_token_id", "max_length", "max_new_tokens", "use_cache")
"""Generation defaults of a model that do not choose tokens, so that nothing has to switch them off."""


class ChatPrompt(Section):
    """The prompt is a chat: messages through the chat template of the tokenizer in the same folder."""

    kind: Literal["chat"] = "chat"
    query: str | None
    """The user's message as a Python format string over the columns of a row; null where rows bring their messages."""
    system: str | None
    """The system message, for conversations that bring none of their own."""
    system_in_first_message: bool
    """The system message and a blank line begin the first user message instead."""
    chat_template_kwargs: dict[str, Any]
    """Further arguments of ``apply_chat_template``."""
    content_as_parts: bool
    """The template wants each message's content as ``[{"type": "text", "text": ...}]``."""


class TextPrompt(Section):
    """The prompt is a text: ``before + query + after``, encoded without special tokens, behind ``begin_token_ids``."""

    kind: Literal["text"] = "text"
    query: str
    """The question as a Python format string over the columns of a row."""
    before: str
    after: str
    begin_token_ids: list[int]
    cut_after: str | None
    """Rows bring their own template: the prompt ends after the last occurrence of this text."""


class IdsPrompt(Section):
    """The rows of training were token ids, so whoever made them knows what a question looks like."""

    kind: Literal["ids"] = "ids"
    query: None = None


class Contract(Section):
    """What ``inference.json`` holds; its version is raised whenever the meaning of a key changes."""

    version: Literal[1] = VERSION
    how_to_use: str
    format: str
    """Format of the rows that the model was trained on."""
    columns: dict[str, str]
    """{column that ``query`` names: its name in the rows}, where they differ."""
    prompt: Annotated[ChatPrompt | TextPrompt | IdsPrompt, Field(discriminator="kind")]
    special_in_content: Literal["split", "error", "allow"]
    stop_token_ids: list[int]
    stop_tokens: list[str]
    generation: dict[str, Any]
    """Arguments of ``generate``; null switches off what the model's own defaults would do."""
    max_length: int
    """Longest example of training, in tokens."""
    settings: dict[str, Any]
    """tunesmith's own settings by schema path; texts, not files."""

    @field_validator("settings")
    @classmethod
    def _known(cls, settings: dict[str, Any]) -> dict[str, Any]:
        unknown = sorted(settings.keys() - set(SETTINGS))
        if unknown:
            raise ValueError(f"unknown settings: {', '.join(unknown)}")
        template = settings.get("data.template")
        if template not in (None, "chat") and "{query}" not in template:
            raise ValueError("data.template must be null, chat, or a text with {query} and {output}")
        instruction = settings.get("data.instruction")
        if isinstance(instruction, str) and not instruction.endswith("\n"):
            # It is a text, whoever wrote it; with a line end it is never taken for the name of a file.
            settings = settings | {"data.instruction": instruction + "\n"}
        return settings


def make_contract(
    builder: ExampleBuilder,
    row: Row,
    evaluation: EvaluationSection,
    model_defaults: GenerationConfig | None,
    stop_token_ids: list[int],
) -> Contract:
    """What a model promises that was trained on rows like ``row``.

    Args:
        builder: the one that made the training examples.
        row: the first training row.
        evaluation: how answers are generated.
        model_defaults: the model's own generation settings.
        stop_token_ids: tokens that end an answer.
    """
    format_name = builder.format_of(row)
    data = builder.data
    settings = {f"data.{name}": value for name, value in data.model_dump(mode="json").items()}
    settings |= {f"evaluation.{name}": value for name, value in evaluation.model_dump(mode="json").items()}
    prompt: ChatPrompt | TextPrompt | IdsPrompt
    if format_name == TOKENIZED:
        settings |= {"data.format": "auto", "data.columns": {}}  # whatever comes is no such row, or says so itself
        prompt = IdsPrompt()
    else:
        renderer = builder.renderer_of(row)
        if data.template is not None:
            settings["data.template"] = _as_text(renderer, builder)
        settings["data.instruction"] = renderer.instruction
        prompt = _prompt(builder, row, renderer)
    return Contract(
        how_to_use=_how_to_use(prompt),
        format=format_name,
        columns=data.columns,
        prompt=prompt,
        special_in_content=data.special_in_content,
        stop_token_ids=stop_token_ids,
        stop_tokens=[str(builder.tokenizer.convert_ids_to_tokens(token)) for token in stop_token_ids],
        generation=_generation(evaluation, model_defaults),
        max_length=data.max_length,
        settings={path: settings[path] for path in SETTINGS},
    )


def chat_template(builder: ExampleBuilder, row: Row) -> str | dict[str, str] | None:
    """The chat template of such rows as any program can use it, to be saved with the tokenizer; None where rows are no
    chats. Where the settings put the begin token before the text, the template writes it."""
    renderer = None if builder.format_of(row) == TOKENIZED else builder.renderer_of(row)
    if not isinstance(renderer, ChatRenderer):
        return None
    begin = "{{- bos_token }}" if builder.encoder.begin(renderer.begins) else ""
    if renderer.for_tools is not None:
        return {"default": begin + renderer.source, "tool_use": begin + renderer.for_tools}
    return begin + renderer.source


def write(folder: Path, contract: Contract) -> None:
    """Put the contract beside a saved model, and its stop tokens into the model's generation defaults.

    Raises:
        StorageError: a file cannot be written.
    """
    write_json(folder / INFERENCE, contract.model_dump(mode="json"))
    defaults = folder / GENERATION_DEFAULTS
    if defaults.is_file():
        write_json(defaults, read_json(defaults) | {"eos_token_id": contract.stop_token_ids})


def read(folder: str | Path) -> Contract | None:
    """The contract of the model in ``folder``; None where there is none.

    Raises:
        ModelError: it cannot be read, or is of another version.
    """
    path = Path(folder) / INFERENCE
    if not path.is_file():
        return None
    try:
        text = path.read_text(encoding="utf-8")
        version = json.loads(text)["version"]
        if version != VERSION:
            raise ModelError(
                f"is of version {version}, and this tunesmith reads version {VERSION}",
                where=str(path),
                remedy="use the tunesmith that wrote it, or a newer one",
            )
        contract = Contract.model_validate_json(text)
        from_values({"model.model_name_or_path": str(folder)} | contract.settings)
        return contract
    except ConfigError as error:
        raise ModelError(f"its settings cannot be used ({error})", where=str(path)) from error
    except ValidationError as error:
        first = error.errors()[0]
        what = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise ModelError(f"cannot be used ({what})", where=str(path)) from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelError(f"cannot be read ({error})", where=str(path)) from error


def settings_of(folder: str | Path) -> dict[str, Any]:
    """The settings, by schema path, under which the model in ``folder`` learnt to answer; empty without a contract.

    ``data.template`` is null, ``chat`` (the chat template of the tokenizer in ``folder``), or a text with ``{query}``
    and ``{output}``; ``data.instruction`` is a text.

    Raises:
        ModelError: the contract cannot be read.
    """
    contract = read(folder)
    return {} if contract is None else dict(contract.settings)


def _prompt(builder: ExampleBuilder, row: Row, renderer: Renderer) -> ChatPrompt | TextPrompt:
    format_name = builder.format_of(row)
    if isinstance(renderer, ChatRenderer):
        brings_messages = format_name in ("messages", "sharegpt") or isinstance(row.values.get("prompt"), list)
        return ChatPrompt(
            query=None if brings_messages else QUERIES[format_name],
            system=renderer.instruction,
            system_in_first_message=renderer.instruction is not None and renderer.instruction_in_prompt,
            chat_template_kwargs=builder.data.chat_template_kwargs,
            content_as_parts=renderer.parts,
        )
    before, after = renderer.frame()
    return TextPrompt(
        query=QUERIES[format_name],
        before=before,
        after=after,
        begin_token_ids=builder.encoder.begin(builder.prompt_rendered(row).begins),
        cut_after=_cut_after(builder, row) if format_name == "text" else None,
    )


def _cut_after(builder: ExampleBuilder, row: Row) -> str | None:
    """What ends the prompt in a row's text; None where the model learnt whole texts and goes on after any."""
    marker = builder.data.completion_start or DEFAULT_MARKER
    told = str(row.values.get(builder.data.columns.get("text", "text"), ""))
    return None if builder.data.loss_on == "all" and marker not in told else marker


def _as_text(renderer: Renderer, builder: ExampleBuilder) -> str:
    if not isinstance(renderer, StringRenderer):
        return "chat"
    return (str(builder.tokenizer.bos_token) if renderer.begins else "") + "".join(renderer.parts)


def _generation(evaluation: EvaluationSection, model_defaults: GenerationConfig | None) -> dict[str, Any]:
    own = {} if model_defaults is None else json.loads(model_defaults.to_json_string())
    off = {key: None for key in own if key not in NOT_DECODING and key != "transformers_version"}
    chosen: dict[str, Any] = {"max_new_tokens": evaluation.max_new_tokens, "do_sample": evaluation.temperature > 0}
    if evaluation.temperature > 0:
        chosen |= {"temperature": evaluation.temperature, "top_p": evaluation.top_p, "top_k": 0}
    return off | chosen


def _how_to_use(prompt: ChatPrompt | TextPrompt | IdsPrompt) -> str:
    """The contract in words, for whoever finds the file."""
    if isinstance(prompt, IdsPrompt):
        return (
            "The model was trained on rows of token ids: make the ids of a question as those of the rows were made. "
            "Call generate(**generation) and stop at stop_token_ids, which are also in generation_config.json."
        )
    if isinstance(prompt, ChatPrompt):
        asking = [
            "The prompt is a chat: tokenizer.apply_chat_template(messages, add_generation_prompt=True, "
            "**prompt.chat_template_kwargs), with the chat template that is saved with the tokenizer.",
            "The messages are the row's own."
            if prompt.query is None
            else "The messages are one user message: prompt.query with the row's columns put in.",
        ]
        if prompt.system_in_first_message:
            asking.append(
                "Where they have no system message, the first user message begins with prompt.system + 2 line ends."
            )
        elif prompt.system is not None:
            asking.append("Where they have no system message, prompt.system is put first as one.")
        if prompt.content_as_parts:
            asking.append('Each content is given as [{"type": "text", "text": content}].')
    else:
        asking = [
            "The prompt is a text: its ids are prompt.begin_token_ids and then tokenizer(prompt.before + query + "
            "prompt.after, add_special_tokens=False), where query is prompt.query with the row's columns put in."
        ]
        if prompt.cut_after is not None:
            asking.append(
                "A row's text is cut after its last prompt.cut_after; a begin token that it spells itself is removed."
            )
    if prompt.query is not None and "{input}" in prompt.query:
        asking.append("Where a row has no input, query is its instruction alone.")
    return " ".join(
        [
            *asking,
            "prompt.query is a Python format string; columns gives the rows' names for its names, where they differ.",
            "Call generate(**generation) and stop at stop_token_ids, which are also in generation_config.json.",
            "special_in_content says what was done in training with content that spells a special token; with split it "
            "was plain text, so encode such content with split_special_tokens=True.",
            "settings are those of tunesmith: `tunesmith predict`, `chat` and `serve` read them by themselves.",
        ]
    )
