"""The tokenizer of a run: loaded, its padding decided, its end token required.

It renders no text; how conversations become ids is the business of ``data``.
"""

from __future__ import annotations

from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from tunesmith.config.schema import DataSection, ModelSection
from tunesmith.errors import ModelError
from tunesmith.model import source
from tunesmith.model.new_tokens import add_new_tokens
from tunesmith.notices import notify


def load_tokenizer(section: ModelSection, data: DataSection | None = None) -> PreTrainedTokenizerBase:
    """Load the tokenizer, padding on the right, with an end token and a padding token.

    The padding token is the one in the settings, else the tokenizer's own, else the end token; labels are masked by
    position, so sharing the end token hides nothing. No token is added but the new ones that ``data`` names.

    Raises:
        ModelError: there is no tokenizer, it has no end token, or a token from the settings is not in its vocabulary.
        UnsafeError: it needs code of its own that nobody permitted.
    """
    name = section.tokenizer_name_or_path or section.model_name_or_path
    located = source.locate(name, section.revision if name == section.model_name_or_path else None, kind="tokenizer")
    tokenizer = _open(section, name, located)
    tokenizer.padding_side = "right"
    if data is not None:
        add_new_tokens(tokenizer, data)
    _decide_eos(tokenizer, section.eos_token, name)
    _decide_pad(tokenizer, section.pad_token, name)
    return tokenizer


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, num_embeddings: int) -> None:
    """Refuse a tokenizer that can write ids for which the model has no embedding row.

    Args:
        num_embeddings: rows of the model's input embedding.

    Raises:
        ModelError: the largest id is not smaller than ``num_embeddings``.
    """
    token, largest = max(tokenizer.get_vocab().items(), key=lambda item: item[1])
    if largest >= num_embeddings:
        raise ModelError(
            f"the tokenizer's largest id is {largest} ({token!r}), but the model has {num_embeddings} embedding rows",
            where=tokenizer.name_or_path,
            remedy="use the tokenizer that belongs to the model; embeddings are not resized in silence",
        )


def _open(section: ModelSection, name: str, located: str) -> PreTrainedTokenizerBase:
    keywords: dict[str, Any] = {"trust_remote_code": source.may_run_code(section, located)}
    if name == section.model_name_or_path and section.revision:
        keywords["revision"] = section.revision
    try:
        tokenizer = AutoTokenizer.from_pretrained(located, **keywords)
    except Exception as error:  # the library raises many kinds here, and all mean the same to the user
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"the tokenizer cannot be loaded ({reason})", where=name, remedy="set tokenizer_name_or_path"
        ) from error
    if not isinstance(tokenizer, PreTrainedTokenizerBase) or not tokenizer.get_vocab():
        raise ModelError("holds no usable tokenizer", where=name, remedy="set tokenizer_name_or_path")
    _check_settings(tokenizer, name)
    return tokenizer


def _check_settings(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Refuse settings of ``tokenizer_config.json`` that the library takes as they stand, whatever they are."""
    template = tokenizer.chat_template
    templates = list(template.values()) if isinstance(template, dict) else [template]
    if not all(one is None or isinstance(one, str) for one in templates):
        raise ModelError("the tokenizer's chat_template is no text", where=name, remedy="set template")
    if not isinstance(tokenizer.model_max_length, int | float):
        raise ModelError(
            f"the tokenizer's model_max_length is {tokenizer.model_max_length!r:.40} and not a number", where=name
        )


def _decide_eos(tokenizer: PreTrainedTokenizerBase, wanted: str | None, name: str) -> None:
    if wanted is not None:
        _require_known(tokenizer, wanted, "eos_token", name)
        tokenizer.eos_token = wanted
    if tokenizer.eos_token_id is None:
        raise ModelError(
            "the tokenizer has no end token, so answers could not be taught to stop",
            where=name,
            remedy="name one of its tokens with model.eos_token",
        )


def _decide_pad(tokenizer: PreTrainedTokenizerBase, wanted: str | None, name: str) -> None:
    if wanted is not None:
        _require_known(tokenizer, wanted, "pad_token", name)
        tokenizer.pad_token = wanted
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
        notify(f"{name}: the tokenizer has no padding token; its end token {tokenizer.eos_token!r} pads")


def _require_known(tokenizer: PreTrainedTokenizerBase, token: str, setting: str, name: str) -> None:
    if token not in tokenizer.get_vocab():
        raise ModelError(
            f"{setting} {token!r} is not in the tokenizer's vocabulary",
            where=name,
            remedy="name a token that it has, or add it with data.new_special_tokens",
        )
