"""The loss, in one place: cross-entropy of the labelled tokens, with logits only where some row has a label.

Who shifts: labels arrive aligned with the inputs; the token at position t + 1 is predicted at position t, here and
nowhere else. This module normalises nothing; the trainer divides by the weight of the tokens of the whole step, which
is their number where nothing is weighted.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from tunesmith.data.masking import IGNORE_INDEX


@dataclass(frozen=True, slots=True)
class TokenLosses:
    """Losses of the scored positions of a batch, each of shape [rows, positions]; unlabelled ones are 0."""

    nll: torch.Tensor
    """Negative log-likelihood in nats, times the token's weight."""
    weight: torch.Tensor
    """Weight of the position: 0 where it is not labelled, else 1 unless rows or turns bring their own."""
    labelled: torch.Tensor
    """Whether the position carries a label."""
    correct: torch.Tensor | None
    """Whether the most likely token is the label; None where nobody asked."""


def keeps_logits(model: torch.nn.Module) -> bool:
    """Whether the model can compute logits for chosen positions only (``logits_to_keep``)."""
    return "logits_to_keep" in inspect.signature(model.forward).parameters


def token_losses(
    model: torch.nn.Module,
    inputs: dict[str, Any],
    labels: torch.Tensor,
    weights: torch.Tensor | None = None,
    *,
    chosen_positions: bool,
    count_correct: bool = False,
) -> TokenLosses:
    """Losses of the labelled tokens.

    Args:
        model: causal language model, possibly wrapped for distribution; its own forward is called, so hooks run.
        inputs: everything that the model's forward takes, without labels.
        labels: [rows, length], IGNORE_INDEX where nothing is trained.
        weights: [rows, length], by which the losses of the tokens are multiplied; None for 1 everywhere.
        chosen_positions: ask the model for logits only at positions where some row has a label; the result is the
            same, the work is less.
        count_correct: also compare the most likely token with the label, which training has no use for.
    """
    targets = labels[:, 1:]
    keywords: dict[str, Any] = {}
    if chosen_positions:
        positions = (targets != IGNORE_INDEX).any(dim=0).nonzero().squeeze(-1)
        targets = targets[:, positions]
        weights = None if weights is None else weights[:, 1:][:, positions]
        keywords["logits_to_keep"] = positions
    logits = model(**inputs, **keywords, use_cache=False).logits
    if not chosen_positions:
        logits = logits[:, :-1]
        weights = None if weights is None else weights[:, 1:]
    targets = targets.to(logits.device)
    nll = F.cross_entropy(
        logits.reshape(-1, logits.shape[-1]).float(), targets.reshape(-1), ignore_index=IGNORE_INDEX, reduction="none"
    )
    nll = nll.view_as(targets)
    labelled = targets != IGNORE_INDEX
    weight = labelled.to(nll.dtype)
    if weights is not None:
        weight = weight * weights.to(nll)
        nll = nll * weight
    correct = (logits.argmax(dim=-1) == targets) & labelled if count_correct else None
    return TokenLosses(nll, weight, labelled, correct)


def label_weight(labels: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    """What the summed loss of a batch is divided by: the weight of its labelled tokens, one number in float64."""
    labelled = labels[:, 1:] != IGNORE_INDEX
    if weights is None:
        return labelled.sum().double()
    return (weights[:, 1:].double() * labelled).sum()
