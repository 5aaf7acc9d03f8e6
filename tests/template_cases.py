"""The chat templates that are installed here and those that ship with tunesmith, each with a tokenizer of its own.

The installed ones are those of the great families as a library holds them; each gets a byte tokenizer that knows the
special tokens which the template writes.
"""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tunesmith import assets
from tunesmith.config.schema import DataSection
from tunesmith.data.examples import ExampleBuilder

OPENED = ("deepseek_r1_distill", "deepseek_r1_distill_training", "deepseekv3", "deepseekv3_training")
"""Templates whose prompts end with ``<think>``: an answer without thoughts cannot be trained on them."""
SWITCHES = {"nemotron": {"enable_thinking": False}}
"""Switches without which the templates of a family end prompts with other words than training has there."""
LAST_ONLY = {
    "glm4moe": "the end of an answer is the next role's token",
    "qwen3": "earlier answers lose their empty thoughts",
    "qwen3_5_nothink": "earlier answers lose their empty thoughts",
    "qwen3_5_think": "earlier answers lose their empty thoughts",
    "qwen3_6": "earlier answers lose their empty thoughts",
}
"""Templates that rewrite or do not end earlier answers: only the last answer of a chat can be trained."""
PARTS = ("idefics3", "llava_next", "smolvlm")
"""Families whose templates want content as a list of parts."""

SPECIAL = re.compile(r"<\|[^|<>{}'\"\s]+\|>|<｜[^｜]+｜>|</?[a-z_]+>|\[/?[A-Z_]+\]|<[a-z_]+\|>|<\|[a-z_]+>")


@dataclass(frozen=True, repr=False)
class Case:
    """One template with its tokenizer, and builders for chats."""

    name: str
    tokenizer: Any
    last_only: bool
    switches: dict[str, Any]
    template: str = "chat"

    def builder(self, **given: Any) -> ExampleBuilder:
        defaults: dict[str, Any] = {
            "format": "messages",
            "template": self.template,
            "max_length": 1_000_000,
            "loss_on": "last_assistant" if self.last_only else "completion",
            "chat_template_kwargs": self.switches,
        }
        return ExampleBuilder(self.tokenizer, DataSection(**defaults | given))


def byte_tokenizer(specials: list[str], bos: str = "<s>", eos: str = "</s>") -> Any:
    """One token a byte, and the special tokens."""
    vocabulary = {character: index for index, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    tokenizer.add_special_tokens({"bos_token": bos, "eos_token": eos, "pad_token": "<pad>"})
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [token for token in specials if token not in (bos, eos)]}
    )
    return tokenizer


def installed_templates() -> dict[str, str]:
    """Name to source of every chat template that the installed library brings."""
    spec = importlib.util.find_spec("trl")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "chat_templates"
    return {path.stem: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.jinja"))}


def family(name: str, families: Any) -> str | None:
    return next((member for member in families if name.startswith(member)), None)


def tokenizers() -> dict[str, Any]:
    """A tokenizer for every installed template."""
    made = {}
    for name, source in installed_templates().items():
        made[name] = byte_tokenizer(sorted(set(SPECIAL.findall(source))))
        made[name].chat_template = source
    return made


def all_cases(made: dict[str, Any]) -> list[Case]:
    """Every installed template, and those that ship with tunesmith."""
    found = []
    for name, tokenizer in made.items():
        switches = SWITCHES.get(family(name, SWITCHES) or "", {})
        found.append(Case(name, tokenizer, name in LAST_ONLY, switches))
    for name in assets.template_names():
        path = assets.template(name)
        assert path is not None
        if path.suffix == ".jinja":
            specials = sorted({*SPECIAL.findall(path.read_text()), "<|user|>", "<|assistant|>", "<|system|>"})
            found.append(Case(f"our {name}", byte_tokenizer(specials), False, {}, name))
    return found
