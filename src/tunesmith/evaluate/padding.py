"""Proof, on the model itself, that a prompt padded on the left is answered as it is alone.

Recurrent layers carry padding on in their state, and layers that count blocks of tokens begin them elsewhere. Whatever
the reason: two steps of generation are made with the padding and without, and compared by what the model makes of its
smallest rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
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
"""How far padding may move the logits, against the model's rounding."""
LEAST = 1e-4
"""Difference, against the spread of the logits, that is none whatever the rounding."""

_known: WeakKeyDictionary[torch.nn.Module, bool] = WeakKeyDictionary()


def takes_padding(model: PreTrainedModel, prompts: Sequence[Sequence[int]], decoding: Decoding) -> bool:
    """Whether prompts of unequal length can be continued side by side; asked once for a model, and said if not.

    Args:
        model: in evaluation mode.
        prompts: all prompts; the shortest one is padded to the length of the longest.
        decoding: names the padding token.
    """
    short, long = min(prompts, key=len)[-LONGEST:], max(map(len, prompts))
    pad = min(long, LONGEST) - len(short)
    base = base_of(model)
    if len(prompts) < 2 or pad <= 0 or decoding.rows == 1:
        return True
    if base not in _known:
        _known[base] = _answers_alike(model, short, pad, decoding)
        if not _known[base]:
            notify(
                f"{type(base).__name__} answers otherwise behind padding: only prompts of equal length are generated "
                "side by side"
            )
    return _known[base]


def _answers_alike(model: PreTrainedModel, prompt: Sequence[int], pad: int, decoding: Decoding) -> bool:
    alone = _logits(model, prompt, 0, decoding)
    try:
        padded = _logits(model, prompt, pad, decoding)
    except (RuntimeError, ValueError, IndexError, TypeError):  # it takes no such mask at all
        return False
    spread = alone[0].std()
    noise = _distance(alone, _logits(model, prompt, 0, decoding, rounding=True)) / spread
    return bool(_distance(alone, padded) / spread <= max(FACTOR * float(noise), LEAST))


def _distance(first: list[torch.Tensor], second: list[torch.Tensor]) -> torch.Tensor:
    """Mean difference of the logits; a second step counts where both went on with the same token."""
    same = bool(first[0].argmax() == second[0].argmax())
    pairs = list(zip(first, second, strict=True))[: STEPS if same else 1]
    return torch.stack([(one - other).abs().mean() for one, other in pairs]).max()


def _logits(
    model: PreTrainedModel, prompt: Sequence[int], pad: int, decoding: Decoding, *, rounding: bool = False
) -> list[torch.Tensor]:
    """Logits of the first steps after a prompt behind ``pad`` padding tokens.

    Args:
        rounding: move every embedded token by about its last bit.
    """
    ids = torch.tensor([[decoding.filler] * pad + list(prompt)], device=device_of(model))
    mask = (torch.arange(ids.shape[1], device=ids.device) >= pad).long()[None]
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
