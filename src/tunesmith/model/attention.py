"""Which implementation of attention a run uses, chosen from what is there and stated.

It changes no model; the choice is a keyword of loading.
"""

from __future__ import annotations

from tunesmith.config.resolve import Resolved
from tunesmith.errors import ModelError
from tunesmith.model.device import Device
from tunesmith.model.precision import Precision
from tunesmith.notices import notify


def choose_attention(resolved: Resolved, precision: Precision, device: Device, *, supports_sdpa: bool = True) -> str:
    """``flash_attention_2``, ``sdpa`` or ``eager``.

    ``auto`` takes FlashAttention 2 where it is installed, the device is CUDA and the arithmetic has 16 bits; else
    sdpa; eager where the architecture has no sdpa. What somebody wrote is honoured or refused; FlashAttention as a
    dialect's default gives way to sdpa, aloud.

    Args:
        supports_sdpa: whether the architecture has an sdpa implementation.

    Raises:
        ModelError: FlashAttention 2 was written and cannot be used here, or sdpa and the architecture lacks it.
    """
    path = "model.attn_implementation"
    wanted = resolved.config.model.attn_implementation
    plain = "sdpa" if supports_sdpa else "eager"
    obstacle = _flash_obstacle(device, precision)
    if wanted == "auto":
        chosen = plain if obstacle else "flash_attention_2"
        why = f"FlashAttention 2: {obstacle}" if obstacle else "FlashAttention 2 is installed"
        faster = obstacle is not None and device.kind == "cuda"  # then there is something to install or to set
        notify(f"attention: {chosen} ({why})", detail=not faster)
        return chosen
    if wanted == "flash_attention_2" and obstacle:
        if resolved.explicit(path):
            raise ModelError(
                f"flash_attention_2 cannot be used: {obstacle}",
                where=resolved.origins[path],
                remedy="set attn_implementation to sdpa or auto",
            )
        notify(f"attention: {plain} (FlashAttention 2 is this dialect's default, but {obstacle})")
        return plain
    if wanted == "sdpa" and not supports_sdpa:
        if resolved.explicit(path):
            raise ModelError(
                "this architecture has no sdpa attention",
                where=resolved.origins[path],
                remedy="set attn_implementation eager",
            )
        notify("attention: eager (the architecture has no sdpa)")
        return "eager"
    return wanted


def _flash_obstacle(device: Device, precision: Precision) -> str | None:
    from transformers.utils import is_flash_attn_2_available

    if device.kind != "cuda":
        return "it needs a CUDA device"
    if not is_flash_attn_2_available():
        return "the package flash-attn is not installed"
    if precision.dtype == "float32":
        return "it computes in 16 bits only"
    return None
