"""Whether the numbers of each step are finite, asked without a wait for the device that computes them.

A CPU's numbers are there at once, so that a step which spoils them is not taken. A GPU works behind its process; its
numbers are copied meanwhile and read one step later, when they have long arrived and the device has its next work. That
is the same step in every process, so that all of them end together. Whoever writes anything down settles it before.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.distributed.tensor import DTensor

from tunesmith.errors import NumericsError

SHOWN_ROWS = 8
"""Rows of a step that an error names."""


@dataclass(frozen=True, slots=True)
class _Noted:
    """A step's loss, and the sum of loss and gradient norm, on their way into main memory."""

    step: int
    origins: Sequence[str]
    figures: torch.Tensor
    arrived: torch.cuda.Event | None


class FiniteSteps:
    """Takes down the numbers of steps and refuses those that are not finite.

    Args:
        device: the one that computes.
        resumable: words for the checkpoint that is left, see ``Trainer._resumable``.
    """

    def __init__(self, device: torch.device, resumable: Callable[[], str]) -> None:
        self._behind = int(device.type == "cuda")
        self._resumable = resumable
        self._noted: deque[_Noted] = deque()

    def note(self, step: int, origins: Sequence[str], loss: torch.Tensor, grad_norm: torch.Tensor | float) -> None:
        """Take down a step before the optimizer takes it, and look at those whose numbers are there.

        Args:
            step: its number, from 1.
            origins: addresses of its rows.
            loss: its loss.
            grad_norm: norm of its gradients; 0 where somebody else answers for them.

        Raises:
            NumericsError: this step's numbers are not finite; on a GPU, those of the step before.
        """
        whole = grad_norm.full_tensor() if isinstance(grad_norm, DTensor) else grad_norm  # each process has its part
        figures = torch.stack([loss, loss + whole]).detach()
        self._noted.append(_Noted(step, origins, *_on_its_way(figures)))
        self._settle(keep=self._behind)

    def settle(self) -> None:
        """Look at every step that was noted, and wait for its numbers if need be.

        Raises:
            NumericsError: a step's numbers are not finite.
        """
        self._settle(keep=0)

    def _settle(self, keep: int) -> None:
        while len(self._noted) > keep:
            noted = self._noted.popleft()
            if noted.arrived is not None:
                noted.arrived.synchronize()
            loss, both = noted.figures.tolist()
            if not math.isfinite(both):
                self._refuse(noted, "gradient" if math.isfinite(loss) else "loss")

    def _refuse(self, noted: _Noted, kind: str) -> None:
        rows = ", ".join(noted.origins[:SHOWN_ROWS]) + (" ..." if len(noted.origins) > SHOWN_ROWS else "")
        kept = "nothing of it is kept" if self._behind else "the weights are as they were before this step"
        raise NumericsError(
            f"the {kind} is not finite at step {noted.step}; rows of the step: {rows}",
            remedy=f"{kept}{self._resumable()}; look at the rows, or lower learning_rate",
        )


def _on_its_way(figures: torch.Tensor) -> tuple[torch.Tensor, torch.cuda.Event | None]:
    """Numbers in main memory, and what tells when they have arrived; None where they are there."""
    if figures.device.type != "cuda":
        return figures.cpu(), None
    here = torch.empty(figures.shape, dtype=figures.dtype, pin_memory=True)
    here.copy_(figures, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record(torch.cuda.current_stream(figures.device))
    return here, arrived
