"""A folder that an engine can serve, with the model's contract in the files that engines read by themselves.

Engines know chat templates and generation defaults, and nothing of ``inference.json``. So system message, arguments of
the template and text templates become part of the chat template here, and decoding becomes ``generation_config.json``.
The weights are linked, not copied. No engine is started.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from tunesmith.errors import ModelError
from tunesmith.export.inference import GENERATION_DEFAULTS, ChatPrompt, Contract, IdsPrompt, TextPrompt
from tunesmith.report.folder import read_json, write_json

TOKEN_KEYS = ("bos_token_id", "eos_token_id", "pad_token_id")


def make_served_folder(model_folder: Path, target: Path, contract: Contract | None) -> list[str]:
    """Fill ``target`` for an engine, from a folder with a whole model.

    Args:
        contract: the model's; None serves the model's own chat template and defaults.

    Returns:
        What of the contract an engine cannot keep, in words.

    Raises:
        ModelError: there is no chat template and no contract to make one from.
        StorageError: ``target`` cannot be written.
    """
    tokenizer = AutoTokenizer.from_pretrained(model_folder, trust_remote_code=False)
    target.mkdir(parents=True)
    for file in model_folder.iterdir():
        if file.suffix == ".safetensors" or file.name in ("config.json", "model.safetensors.index.json"):
            (target / file.name).symlink_to(file.resolve())
    without = contract is None or isinstance(contract.prompt, IdsPrompt)
    if without and not tokenizer.chat_template:
        raise ModelError(
            "has neither a chat template nor an inference.json that says how a chat becomes a prompt",
            where=str(model_folder),
            remedy="give a model that was trained here, or one with a chat template",
        )
    own = read_json(model_folder / GENERATION_DEFAULTS) if (model_folder / GENERATION_DEFAULTS).is_file() else {}
    if contract is not None:
        tokenizer.chat_template = served_template(contract.prompt, tokenizer)
        own = decoding(contract, own)
    tokenizer.save_pretrained(target)
    write_json(target / GENERATION_DEFAULTS, own)
    return [] if contract is None else losses(contract)


def decoding(contract: Contract, own: dict[str, Any]) -> dict[str, Any]:
    """Generation defaults that decode as the contract says: of the model's ``own`` only its tokens are left."""
    chosen = {key: value for key, value in contract.generation.items() if value is not None}
    kept = {key: own[key] for key in TOKEN_KEYS if key in own}
    return kept | chosen | {"eos_token_id": contract.stop_token_ids}


def served_template(prompt: ChatPrompt | TextPrompt | IdsPrompt, tokenizer: PreTrainedTokenizerBase) -> str:
    """The chat template that makes of a request's messages what the contract makes of a row."""
    if isinstance(prompt, TextPrompt):
        return _of_text(prompt, tokenizer)
    if isinstance(prompt, IdsPrompt):
        return str(tokenizer.get_chat_template())
    parts = [
        f"{{%- if {name} is not defined %}}{{%- set {name} = {_literal(value)} %}}{{%- endif %}}"
        for name, value in prompt.chat_template_kwargs.items()
    ]
    if prompt.system_in_first_message:
        begun = f"[{{'role': 'user', 'content': {_literal(prompt.system)} ~ '\\n\\n' ~ messages[0]['content']}}]"
        parts.append(
            f"{{%- if messages[0]['role'] == 'user' %}}{{%- set messages = {begun} + messages[1:] %}}{{%- endif %}}"
        )
    elif prompt.system is not None:
        system = f"[{{'role': 'system', 'content': {_literal(prompt.system)}}}]"
        parts.append(
            f"{{%- if messages[0]['role'] != 'system' %}}{{%- set messages = {system} + messages %}}{{%- endif %}}"
        )
    return "".join(parts) + tokenizer.get_chat_template()


def losses(contract: Contract) -> list[str]:
    """What of the contract engines do not keep."""
    lost = []
    prompt = contract.prompt
    if isinstance(prompt, IdsPrompt):
        lost.append("the model was trained on token ids, so whether its chat template writes such prompts is not known")
    if contract.special_in_content != "allow":
        lost.append("content that spells a special token becomes that token; `predict` and `chat` keep it text")
    if isinstance(prompt, ChatPrompt) and prompt.content_as_parts:
        lost.append("the chat template wants content as parts, and engines may hand it over as text")
    if prompt.query is not None:
        lost.append(f"columns are not put together: the user's message has to be the whole question, {prompt.query!r}")
    if isinstance(prompt, TextPrompt):
        lost.append("the model was trained on one question at a time, so a request is one user message")
    return lost


def _of_text(prompt: TextPrompt, tokenizer: PreTrainedTokenizerBase) -> str:
    begin = _literal("".join(tokenizer.convert_ids_to_tokens(prompt.begin_token_ids)))
    begins = f"{{{{- {begin} if not question.startswith({begin}) else '' }}}}" if prompt.begin_token_ids else ""
    return (
        "{%- if messages | length != 1 or messages[0]['role'] != 'user' %}"
        "{{- raise_exception('this model answers one user message') }}{%- endif %}"
        "{%- set question = messages[0]['content'] %}"
        f"{begins}{{{{- {_literal(prompt.before)} ~ question ~ {_literal(prompt.after)} }}}}"
    )


def _literal(value: Any) -> str:
    """A value as jinja writes it; JSON's strings, numbers, lists and mappings are jinja's too."""
    if value is None:
        return "none"
    return json.dumps(value, ensure_ascii=False)
