"""The output head, asked for labelled positions alone; a frozen one gives losses and their gradients in one pass.

Logits of a whole batch are the largest tensor of a step. Under an adapter the head is not trained, so all that leaves
it is the gradient with respect to the hidden states: softmax less one-hot, times the head's weight. It is computed with
the loss, a chunk of positions after the other, and no logits outlive their chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from transformers import PreTrainedModel

from tunesmith.model.adapters import base_of
from tunesmith.model.answering import answering, in_evaluation
from tunesmith.model.last_layer import chosen_alone, is_like, last_mlp, recomputes, stays_in_place
from tunesmith.model.precision import Precision, linear_dtype
from tunesmith.model.products import takes_onednn, times
from tunesmith.model.separation import probe_ids
from tunesmith.model.stand_in import asked_of

CHUNK_LOGITS = 2**23
"""Logits that are there at the same time, unless a single position has more."""


@dataclass(slots=True)
class Head:
    """How the head of a model may be asked.

    Attributes:
        plain: whether the model's logits are what the head gives, and nothing is done to them afterwards.
        scored: whether the last answer were losses (one pass) and not logits.
        mlp: that of the last layer, where it may be computed at the chosen positions alone as well.
        settled: whether ``mlp`` has been looked at as it trains.
    """

    plain: bool
    scored: bool = False
    mlp: torch.nn.Module | None = None
    settled: bool = False


def inspect_head(model: torch.nn.Module, precision: Precision, device: torch.device | None = None) -> Head | None:
    """How a model's head may be asked for chosen positions; None where the model does not allow it.

    The model itself tells: it is given, in place of what its head has computed, a choice of it, and must answer with
    the logits of this choice, to the bit.

    Args:
        model: with its adapters.
        precision: format of its arithmetic.
        device: the one that will compute; None where the weights lie.
    """
    mlp = last_mlp(base_of(model))
    with asked_of(model, base_of(model), precision, device) as (asked, base):
        head, its_mlp = _inspect(asked, base, precision), last_mlp(base)
        if head is None or mlp is None or its_mlp is None or not is_like(mlp, its_mlp):
            return head
        with in_evaluation(asked), torch.no_grad(), precision.autocast(base.device):
            head.mlp = mlp if stays_in_place(its_mlp, lambda: _logits(asked, base)) else None
        return head


def _inspect(asked: torch.nn.Module, base: PreTrainedModel, precision: Precision) -> Head | None:
    head = base.get_output_embeddings()
    if head is None:
        return None
    given: list[torch.Tensor] = []
    with in_evaluation(asked), torch.no_grad(), precision.autocast(base.device):
        hook = head.register_forward_hook(lambda _head, _inputs, output: given.append(output))
        try:
            whole = _logits(asked, base)
        finally:
            hook.remove()
        if len(given) != 1 or given[0].shape[:2] != whole.shape[:2]:
            return None
        chosen = torch.tensor([7, 2, 9], device=given[0].device)
        with answering(head, lambda _hidden: given[0][:, chosen]):
            part = _logits(asked, base)
    if part.shape[1] != len(chosen) or not torch.equal(part, whole[:, chosen]):
        return None
    return Head(plain=whole.dtype == given[0].dtype and torch.equal(whole, given[0]))


def _logits(model: torch.nn.Module, base: PreTrainedModel) -> torch.Tensor:
    logits: torch.Tensor = model(input_ids=probe_ids(base, 1)[None].to(base.device), use_cache=False).logits
    return logits


@contextmanager
def asking(model: PreTrainedModel, head: Head, positions: torch.Tensor, targets: torch.Tensor) -> Iterator[None]:
    """Inside, the model's ``logits`` are those of chosen positions, [1, positions, vocabulary]; or, where
    ``head.scored`` says so afterwards, the losses of their targets, [1, positions, 1].

    Args:
        model: without adapters.
        head: what ``inspect_head`` found.
        positions: indices into rows x length, [positions].
        targets: the token that follows each, [positions].
    """
    module: Any = model.get_output_embeddings()
    original = module.forward
    if not head.settled:  # recomputing would call the MLP again when nothing is chosen any more
        head.settled, head.mlp = True, None if recomputes(model) else head.mlp

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        chosen = hidden.flatten(0, 1).index_select(0, positions.to(hidden.device))
        head.scored = head.plain and is_frozen(module) and linear_dtype(chosen) != torch.float16
        if not head.scored:
            answer: torch.Tensor = original(chosen[None])
            return answer
        weight, bias = _in_compute_dtype(chosen, module.weight), _in_compute_dtype(chosen, module.bias)
        nll: torch.Tensor = FrozenHeadLoss.apply(chosen, weight, bias, targets.to(hidden.device))  # type: ignore[no-untyped-call]
        return nll[None, :, None]

    with answering(module, forward), nullcontext() if head.mlp is None else chosen_alone(head.mlp, positions):
        yield


def is_frozen(module: Any) -> bool:
    """Whether a head is a linear layer and no more, nothing of which is trained; of fp16 see ``FrozenHeadLoss``."""
    managed = hasattr(module, "_hf_hook")  # accelerate brings weights only while the module itself computes
    return type(module) is torch.nn.Linear and not managed and not any(one.requires_grad for one in module.parameters())


def _in_compute_dtype(hidden: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor | None:
    return None if weight is None else weight.to(linear_dtype(hidden))


def _chunks(number: int, vocabulary: int) -> list[slice]:
    """Positions of each chunk, all about as large."""
    if not number:
        return []
    chunks = -(-number // max(CHUNK_LOGITS // vocabulary, 1))
    size = -(-number // chunks)
    return [slice(start, min(start + size, number)) for start in range(0, number, size)]


class _Room:
    """Where the logits of a chunk lie, and its scores: these in float32. All chunks share it.

    Args:
        size: positions of the largest chunk.
        weight: [vocabulary, size of a hidden state].
    """

    def __init__(self, size: int, weight: torch.Tensor) -> None:
        self._shape, self._weight = (size, len(weight)), weight

    @cached_property
    def _logits(self) -> torch.Tensor:
        return self._weight.new_empty(self._shape)

    @cached_property
    def _scores(self) -> torch.Tensor:
        return self._weight.new_empty(self._shape, dtype=torch.float32)

    def fill(self, states: torch.Tensor, bias: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of some positions and their scores, the same tensor where the type is the same."""
        if takes_onednn(states, self._weight):  # which brings its own
            logits = times(states, self._weight, bias)
        else:
            logits = self._logits[: len(states)]
            if bias is None:
                torch.mm(states, self._weight.t(), out=logits)
            else:
                torch.addmm(bias, states, self._weight.t(), out=logits)
        if logits.dtype == torch.float32:
            return logits, logits
        return logits, self._scores[: len(states)].copy_(logits)


def _softmax(scores: torch.Tensor) -> torch.Tensor:
    """Probabilities of float32 scores; on the CPU in their own room, where each row is read before it is written."""
    return torch.softmax(scores, dim=-1, out=scores if scores.device.type == "cpu" else None)


def _scored(
    states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, ids: torch.Tensor, room: _Room,
    gradient: torch.Tensor | None,
) -> torch.Tensor:  # fmt: skip
    """Losses of a chunk, [positions]; the gradient of the states is written where there is a place for it.

    Args:
        states: [positions, size].
        weight: [vocabulary, size].
        bias: [vocabulary], or None.
        ids: of the targets, [positions, 1].
        room: for what lies between.
        gradient: [positions, size], or None.
    """
    logits, scores = room.fill(states, bias)
    own = scores.gather(1, ids)
    top = scores.amax(dim=-1, keepdim=True)
    scores = _softmax(scores)
    # the largest probability tells what its score was divided by; asking where it lies would take ten times as long
    losses = top - scores.amax(dim=-1, keepdim=True).log() - own
    if gradient is not None:
        scores.scatter_add_(1, ids, scores.new_full(ids.shape, -1.0))
        gradient.copy_((scores if scores.dtype == weight.dtype else logits.copy_(scores)) @ weight)
    return losses.squeeze(1)


class FrozenHeadLoss(torch.autograd.Function):
    """Cross-entropy of a linear head that is not trained, for each position; the gradient is made with the loss.

    Arithmetic is that of the ordinary way: logits in the type of the weight, softmax in float32. In float16 the loss
    scaler's factor would come too late for small probabilities, so nobody calls it there.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor
    ) -> torch.Tensor:
        """Losses in float32, [positions].

        Args:
            ctx: what backward reads.
            hidden: [positions, size].
            weight: [vocabulary, size].
            bias: [vocabulary], or None.
            targets: [positions].
        """
        wanted = ctx.needs_input_grad[0]
        gradient = torch.empty_like(hidden)
        losses = hidden.new_empty(len(hidden), dtype=torch.float32)
        parts = _chunks(len(hidden), len(weight))
        room = _Room(parts[0].stop if parts else 0, weight)
        with torch.autocast(hidden.device.type, enabled=False):
            for part in parts:
                into = gradient[part] if wanted else None
                losses[part] = _scored(hidden[part].to(weight.dtype), weight, bias, targets[part, None], room, into)
        if wanted:
            ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        """Gradients with respect to the hidden states; nothing else is trained."""
        (gradient,) = ctx.saved_tensors
        return (gradient * upstream[0][:, None]).to(gradient.dtype), None, None, None
