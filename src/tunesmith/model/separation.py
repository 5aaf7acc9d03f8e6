"""Proof that the examples of one row do not see each other: asked of the model itself, whatever its attention.

What an example's logits depend on is what a backward pass finds: nothing of another example may reach them, so the
gradient at the other example's tokens is exactly 0. No tolerance has to be chosen, and rounding of a whole row together
(8-bit layers) does not look like attention.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from transformers import PreTrainedModel

from tunesmith.errors import ModelError
from tunesmith.model.answering import in_evaluation
from tunesmith.model.internals import attention_of
from tunesmith.model.new_tokens import num_embeddings
from tunesmith.model.precision import Precision
from tunesmith.model.stand_in import asked_of, counts_length, small_twin

PROBE_LENGTH = 12
"""Tokens of each of the two examples with which separation is proved."""
REMEDY = "set batching padded or length_grouped"
ALIKE, ALIKE_ROUNDED = 1e-3, 0.05
"""Mean difference of logits against their spread up to which an example counts as the same, in float32 and else."""


def prove_apart(
    model: torch.nn.Module,
    base: PreTrainedModel,
    boundaries: dict[str, Any],
    precision: Precision,
    device: torch.device | None = None,
) -> None:
    """Let a row of two examples pass through the model; nothing of the first may reach the logits of the second.

    The model's own weights are asked where they can compute, those of a large model in its first layers alone. Where
    they are spread over processes, have no data yet, or are not yet on the device that will compute, a small model of
    the same architecture is asked, see ``stand_in``.

    Args:
        model: with its adapters; its training mode and its gradients stay what they are.
        base: the same without adapters.
        boundaries: what besides positions tells the model where each of the two examples of PROBE_LENGTH begins.
        precision: format of its arithmetic.
        device: the one that will compute; None where the weights lie.

    Raises:
        ModelError: the examples see each other, or the model takes no positions.
    """
    if "position_ids" not in inspect.signature(base.forward).parameters:
        raise ModelError(
            f"{type(base).__name__} takes no positions, so several examples cannot stand in one row",
            remedy=REMEDY,
        )
    positions = torch.arange(PROBE_LENGTH).repeat(2)
    row = {"input_ids": probe_ids(base, 2)[None], "position_ids": positions[None]} | boundaries
    with asked_of(model, base, precision, device) as (asked, its_base):
        first, _second = reach(asked, its_base, row, precision).split(PROBE_LENGTH)
        if first.any():
            raise ModelError(
                f"in {type(base).__name__} the examples of one row would see each other "
                f"(attention {attention_of(base)})",
                remedy=REMEDY,
            )
        _prove_alike(asked, its_base, boundaries, precision)
        place = its_base.device
    if counts_length(base):
        twin = small_twin(base, precision, place, at=PROBE_LENGTH)
        _prove_alike(twin, twin, boundaries, precision)


def _prove_alike(
    model: torch.nn.Module, base: PreTrainedModel, boundaries: dict[str, Any], precision: Precision
) -> None:
    """Compare what a model makes of an example behind another one with what it makes of it in a padded batch.

    Raises:
        ModelError: it is not the same, as where tokens are counted from the beginning of the row, or where a layer puts
            more into its mask than who sees whom.
    """
    ids = probe_ids(base, 2)
    positions = torch.arange(PROBE_LENGTH)
    one = {"input_ids": ids[None, PROBE_LENGTH:], "attention_mask": torch.ones(1, PROBE_LENGTH, dtype=torch.long)}
    row = {"input_ids": ids[None], "position_ids": positions.repeat(2)[None]} | boundaries
    alone, behind = (_last_logits(model, base, given, precision) for given in (one, row))
    exact = precision.dtype == "float32" and not getattr(base, "is_quantized", False)
    apart = distance(behind, alone)
    if apart > (ALIKE if exact else ALIKE_ROUNDED):
        raise ModelError(
            f"in {type(base).__name__} an example behind another one has another loss than alone (logits differ by "
            f"{apart:.1%} of their spread)",
            remedy=REMEDY,
        )


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """Mean difference of two tensors of one shape, as a part of the second one's spread."""
    return float((one - other).abs().mean() / other.std().clamp(min=1e-12))


@torch.no_grad()
def _last_logits(
    model: torch.nn.Module, base: PreTrainedModel, row: dict[str, Any], precision: Precision
) -> torch.Tensor:
    """Logits of the last PROBE_LENGTH tokens of a row, in evaluation mode."""
    with in_evaluation(model):
        return _logits(model, base, row, precision).float()


def _logits(model: torch.nn.Module, base: PreTrainedModel, row: dict[str, Any], precision: Precision) -> torch.Tensor:
    """Logits of the last PROBE_LENGTH tokens of a row.

    Raises:
        ModelError: the model's code fails on such a row.
    """
    row = {name: value.to(base.device) if isinstance(value, torch.Tensor) else value for name, value in row.items()}
    try:
        with precision.autocast(base.device):
            logits: torch.Tensor = model(**row, use_cache=False).logits
    except torch.OutOfMemoryError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        what = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise ModelError(
            f"{type(base).__name__} cannot take several examples in one row ({what})", remedy=REMEDY
        ) from error
    return logits[0, -PROBE_LENGTH:]


def probe_ids(base: PreTrainedModel, number: int) -> torch.Tensor:
    """Tokens of ``number`` segments of PROBE_LENGTH, always the same."""
    return torch.randint(num_embeddings(base), (number * PROBE_LENGTH,), generator=torch.Generator().manual_seed(0))


def reach(model: torch.nn.Module, base: PreTrainedModel, row: dict[str, Any], precision: Precision) -> torch.Tensor:
    """Whether anything of each token of a row arrives at the logits of its last PROBE_LENGTH tokens, [tokens].

    Args:
        model: with its adapters; its training mode and its gradients stay what they are.
        base: the same without adapters.
        row: what the model is given, one row.
        precision: format of its arithmetic.

    Raises:
        ModelError: the gradient is not finite, or nothing arrives from those tokens themselves.
    """
    embeddings: Any = base.get_input_embeddings()
    embedded: list[torch.Tensor] = []

    def begin_here(_layer: torch.nn.Module, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1]

    hook = embeddings.register_forward_hook(begin_here)
    try:
        with in_evaluation(model):
            with torch.enable_grad():
                logits = _logits(model, base, row, precision)
            (gradient,) = torch.autograd.grad(logits.float().square().sum(), embedded[0])
    finally:
        hook.remove()
    own = gradient[0, -PROBE_LENGTH:]
    if not (own.isfinite().all() and own.any()):
        raise ModelError(
            f"{type(base).__name__} gives no finite gradient, so that its examples in one row cannot be proved apart",
            remedy=REMEDY,
        )
    return gradient[0].ne(0).any(dim=-1)
