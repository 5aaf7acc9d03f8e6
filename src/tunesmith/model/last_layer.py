"""The MLP of the last layer, computed at labelled positions alone.

Behind the last attention no position looks at another, and only those that predict a labelled token are read. What the
last MLP makes of a prompt never arrives at the loss, and the gradient of it is exactly 0; most tokens of a row with a
long prompt are such. The model itself tells whether that is so, as it does for the head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel

from tunesmith.model.answering import answering
from tunesmith.model.separation import ALIKE_ROUNDED, distance
from tunesmith.model.stand_in import stack_of

NAMES = ("mlp", "feed_forward")
"""What layers call it."""


def last_mlp(base: PreTrainedModel) -> torch.nn.Module | None:
    """The MLP of a model's last layer; None where there is none that may be asked for some positions.

    One whose routers are balanced by a loss has to see every token; in 8 bits all tokens decide which columns are
    computed in 16 (Dettmers et al. 2022, LLM.int8); one that accelerate moves brings its weights only while it computes
    itself.
    """
    stack = stack_of(base)
    depends = hasattr(base.config.get_text_config(), "output_router_logits") or getattr(
        base, "is_loaded_in_8bit", False
    )
    if stack is None or depends:
        return None
    found = next((getattr(stack[-1], name) for name in NAMES if hasattr(stack[-1], name)), None)
    managed = found is None or any(hasattr(module, "_hf_hook") for module in found.modules())
    return None if managed or not isinstance(found, torch.nn.Module) else found


def is_like(mlp: torch.nn.Module, other: torch.nn.Module) -> bool:
    """Whether two MLPs are made of the same parts, so that one can answer for the other."""
    return [type(part) for part in mlp.modules()] == [type(part) for part in other.modules()]


def stays_in_place(mlp: torch.nn.Module, ask: Callable[[], torch.Tensor]) -> bool:
    """Whether logits at some positions need the MLP at these positions alone.

    Args:
        mlp: of the last layer.
        ask: a pass of its model, whose logits it returns, [1, length, vocabulary].
    """
    calls: list[tuple[Any, Any, Any]] = []
    hook = mlp.register_forward_hook(lambda _, *call: calls.append(call), with_kwargs=True)
    try:
        whole = ask()
    finally:
        hook.remove()
    if len(calls) != 1:
        return False
    ((given, named, made),) = calls
    if len(given) != 1 or named or not isinstance(made, torch.Tensor) or made.shape != given[0].shape:
        return False
    chosen = torch.tensor([7, 2, 9], device=made.device)
    if made.dim() != 3 or distance(mlp(given[0][:, chosen]).float(), made[:, chosen].float()) > ALIKE_ROUNDED:
        return False
    with answering(mlp, lambda _hidden: torch.zeros_like(made).index_copy(1, chosen, made[:, chosen])):
        part = ask()
    return torch.equal(part[:, chosen], whole[:, chosen]) and not torch.equal(part, whole)


@contextmanager
def chosen_alone(mlp: torch.nn.Module, positions: torch.Tensor) -> Iterator[None]:
    """Inside, an MLP computes at chosen positions, and what it gives for all others is 0.

    Args:
        mlp: for which ``stays_in_place`` has said yes.
        positions: indices into rows x length, [positions].
    """
    original = mlp.forward

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        rows = hidden.flatten(0, 1)
        chosen = positions.to(hidden.device)
        if not len(chosen) or len(rows) == len(chosen):
            whole: torch.Tensor = original(hidden)
            return whole
        made = original(rows.index_select(0, chosen)[None])[0]
        spread: torch.Tensor = made.new_zeros(rows.shape).index_copy(0, chosen, made)
        return spread.view_as(hidden)

    with answering(mlp, forward):
        yield


def recomputes(base: PreTrainedModel) -> bool:
    """Whether some layers compute a second time in the backward pass."""
    return any(
        getattr(module, "gradient_checkpointing", False) or type(module).__name__ == "CheckpointWrapper"
        for module in base.modules()
    )
