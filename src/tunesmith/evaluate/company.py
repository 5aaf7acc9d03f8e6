"""Proof, on the model itself, that a prompt beside another one, and padded on the left, is answered as it is alone.

Recurrent layers carry padding on in their state, layers that count blocks of tokens begin them elsewhere, and some code
mixes up the rows of a batch. Whatever the reason: two steps of generation are made in company and alone, and compared
by what the model makes of its smallest rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Any
from weakref import WeakKeyDictionary

import torch
from transformers import PreTrainedModel

from tunesmith.evaluate.decoding import Decoding, device_of, only_settings
from tunesmith.model.adapters import base_of
from tunesmith.notices import notify

STEPS = 2
"""The first token follows the prompt, the second one what was kept of it."""
LONGEST = 512
"""Tokens beyond which a prompt is cut for the proof."""
FACTOR = 16
"""How far company may move the logits, against the model's rounding."""
LEAST = 1e-4
"""Difference, against the spread of the logits, that is none whatever the rounding."""


class Company(Enum):
    """Which prompts may be continued side by side."""

    ANY = "any"
    EQUAL_LENGTH = "equal length"
    NONE = "none"


_known: WeakKeyDictionary[torch.nn.Module, Company] = WeakKeyDictionary()


def company(model: PreTrainedModel, prompts: Sequence[Sequence[int]], decoding: Decoding) -> Company:
    """Which prompts a model answers side by side as it does alone; asked once for a model, and said if not all.

    Args:
        model: in evaluation mode.
        prompts: all prompts; the shortest one is padded to the length of the longest.
        decoding: names the padding token.
    """
    base = base_of(model)
    if len(prompts) < 2 or decoding.rows == 1:
        return Company.ANY
    if base not in _known:
        _known[base] = _proven(model, prompts, decoding)
        if _known[base] is Company.EQUAL_LENGTH:
            notify(
                f"{type(base).__name__} answers otherwise behind padding: only prompts of equal length are generated "
                "side by side"
            )
        if _known[base] is Company.NONE:
            notify(f"{type(base).__name__} answers otherwise beside others: prompts are generated one by one")
    return _known[base]


def _proven(model: PreTrainedModel, prompts: Sequence[Sequence[int]], decoding: Decoding) -> Company:
    short, long = (choose(prompts, key=len)[-LONGEST:] for choose in (min, max))
    if len(short) == len(long) > 1:
        short = short[1:]  # others will come in behind padding even where all are of one length
    alone = _logits(model, short, 0, decoding)
    spread = alone[0].std()
    noise = _distance(alone, _logits(model, short, 0, decoding, rounding=True)) / spread
    others = [*reversed(long)] * 2
    for found, pad in ((Company.ANY, max(len(long) - len(short), 1)), (Company.EQUAL_LENGTH, 0)):
        try:
            beside = _logits(model, short, pad, decoding, beside=others[: pad + len(short)])
        except (RuntimeError, ValueError, IndexError, TypeError):  # it takes no such mask, or no such rows at all
            continue
        if _distance(alone, beside) / spread <= max(FACTOR * float(noise), LEAST):
            return found
    return Company.NONE


def _distance(first: list[torch.Tensor], second: list[torch.Tensor]) -> torch.Tensor:
    """Mean difference of the logits; a second step counts where both went on with the same token."""
    same = bool(first[0].argmax() == second[0].argmax())
    pairs = list(zip(first, second, strict=True))[: STEPS if same else 1]
    return torch.stack([(one - other).abs().mean() for one, other in pairs]).max()


def _logits(
    model: PreTrainedModel,
    prompt: Sequence[int],
    pad: int,
    decoding: Decoding,
    *,
    beside: Sequence[int] | None = None,
    rounding: bool = False,
) -> list[torch.Tensor]:
    """Logits of the first steps after a prompt behind ``pad`` padding tokens.

    Args:
        beside: another prompt, as long as this one with its padding.
        rounding: move every embedded token by about its last bit.
    """
    rows = [[decoding.filler] * pad + list(prompt), *([] if beside is None else [list(beside)])]
    ids = torch.tensor(rows, device=device_of(model))
    mask = torch.ones_like(ids)
    mask[0, :pad] = 0
    config = decoding.config(STEPS)
    config.eos_token_id, config.output_logits, config.return_dict_in_generate = None, True, True
    generator: Any = model
    embedding: Any = model.get_input_embeddings()
    hook = embedding.register_forward_hook(_last_bit) if rounding else None
    try:
        with only_settings(model, config):
            found = generator.generate(input_ids=ids, attention_mask=mask, generation_config=config)
    finally:
        if hook is not None:
            hook.remove()
    return [logits[0].float() for logits in found.logits]


def _last_bit(_layer: torch.nn.Module, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
    return output * (1 + torch.finfo(output.dtype).eps)
