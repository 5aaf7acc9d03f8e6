"""The loss, in one place for training and evaluation: cross-entropy of the labelled tokens, with logits only where some
row has a label.

Who shifts: labels arrive aligned with the inputs; the token at position t + 1 is predicted at position t, here and
nowhere else. This module normalises nothing; the trainer divides by the weight of the tokens of the whole step, which
is their number where nothing is weighted.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from tunesmith.data.masking import IGNORE_INDEX
from tunesmith.model.adapters import base_of
from tunesmith.model.freed_memory import freed_memory_kept
from tunesmith.model.head import Head, asking


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
        weights: [rows, length], by which the losses of the tokens are multiplied; None for 1 everywhere. Labels and
            weights may be on any device; the losses are on that of the logits.
        chosen_positions: ask the model for logits only at positions where some row has a label; the result is the
            same, the work is less.
        count_correct: also compare the most likely token with the label, which training has no use for.
    """
    targets = labels[:, 1:]
    keywords: dict[str, Any] = {}
    if chosen_positions:
        positions = (targets != IGNORE_INDEX).any(dim=0).nonzero().squeeze(-1)
        targets = targets[:, positions]
        weights = None if weights is None else weights[:, 1:][:, positions.to(weights.device)]
        keywords["logits_to_keep"] = positions.tolist() if _is_spread(model) else positions
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


def labelled_losses(
    model: torch.nn.Module,
    inputs: dict[str, Any],
    labels: torch.Tensor,
    weights: torch.Tensor | None,
    positions: torch.Tensor,
    head: Head,
) -> TokenLosses:
    """The losses of ``token_losses`` for training: the head is asked for labelled positions of each row alone.

    Args:
        model: as there.
        inputs: as there.
        labels: [rows, length], IGNORE_INDEX where nothing is trained.
        weights: [rows, length], or None.
        positions: indices into rows x length of the positions that predict a labelled token, see ``predicting``.
        head: how the model's head may be asked.

    Returns:
        losses of shape [1, positions].
    """
    targets = labels.flatten()[positions + 1]
    with asking(base_of(_unwrapped(model)), head, positions, targets):
        answer = model(**inputs, use_cache=False).logits
    targets = targets.to(answer.device)
    nll = answer.squeeze(-1) if head.scored else F.cross_entropy(answer[0].float(), targets, reduction="none")[None]
    weight = torch.ones_like(nll) if weights is None else weights.flatten()[positions + 1][None].to(nll)
    return TokenLosses(nll if weights is None else nll * weight, weight, torch.ones_like(nll, dtype=torch.bool), None)


def _unwrapped(model: Any) -> torch.nn.Module:
    """A model without what distributes it."""
    while hasattr(model, "module"):
        model = model.module
    unwrapped: torch.nn.Module = model
    return unwrapped


def _is_spread(model: torch.nn.Module) -> bool:
    """Whether the model is laid over several devices.

    Its hidden states then end on another device than its inputs enter, and torch refuses indices of a third place.
    accelerate's hooks move every tensor among the inputs to the first device, so the positions go as plain numbers,
    which have no device and index hidden states wherever these are.
    """
    return len({parameter.device for parameter in model.parameters()}) > 1


def label_weight(labels: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    """What the summed loss of a batch is divided by: the weight of its labelled tokens, one number in float64."""
    labelled = labels[:, 1:] != IGNORE_INDEX
    if weights is None:
        return labelled.sum().double()
    return (weights[:, 1:].double() * labelled).sum()


def row_totals(losses: TokenLosses) -> torch.Tensor:
    """What each row adds to the figures of an evaluation, [rows, 4] in float64: nll, weight, labelled and right tokens.

    Raises:
        ValueError: right answers were not counted.
    """
    if losses.correct is None:
        raise ValueError("token_losses was not told to count right answers")
    counted = (losses.nll, losses.weight, losses.labelled, losses.correct)
    return torch.stack([values.double().sum(1) for values in counted], dim=1)


def token_figures(totals: torch.Tensor) -> dict[str, float]:
    """loss (over all labelled tokens) and token_accuracy (share of them that is the most likely token), from the sum of
    ``row_totals`` over all rows."""
    nll, weight, count, correct = totals.tolist()
    return {"loss": nll / weight, "token_accuracy": correct / count}


@torch.no_grad()
def measure_tokens(model: torch.nn.Module, batches: Iterable[dict[str, Any]], device: torch.device) -> dict[str, float]:
    """``token_figures`` of a model over padded batches, as the trainer measures them during training.

    Args:
        model: causal language model in evaluation mode, on its own; PEFT's wrapper counts as its base.
        batches: what the collator makes.
        device: where its inputs go.
    """
    chosen = keeps_logits(base_of(model))
    totals = torch.zeros(4, dtype=torch.float64, device=device)
    with freed_memory_kept(device):
        for batch in batches:
            inputs = {name: value.to(device) for name, value in batch.items() if name != "origins"}
            labels, weights = inputs.pop("labels"), inputs.pop("weights", None)
            losses = token_losses(model, inputs, labels, weights, chosen_positions=chosen, count_correct=True)
            totals += row_totals(losses).to(device).sum(0)
    return token_figures(totals)
