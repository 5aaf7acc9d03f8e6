"""The loss that keeps experts equally busy (Fedus et al. 2021, as the model's own code computes it), and what a model's
configuration knows of further losses.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch

from tunesmith.errors import ModelError
from tunesmith.notices import notify

_UNUSED = {
    "z_loss_coefficient": "a loss on the size of the logits",
    "router_z_loss_coef": "a loss on the size of the routers' logits",
    "num_nextn_predict_layers": "layers that predict further tokens",
    "num_mtp_layers": "layers that predict further tokens",
    "mtp_num_hidden_layers": "layers that predict further tokens",
    "num_mtp_modules": "layers that predict further tokens",
}
"""Settings of a model's configuration that pretraining used, and what they are for."""


class Balance:
    """Adds the model's auxiliary loss to a training loss, where a coefficient asks for it.

    Args:
        model: the base.
        coefficient: None or 0 adds nothing.

    Raises:
        ModelError: a coefficient is set, and the model reports nothing of its routers.
    """

    def __init__(self, model: torch.nn.Module, coefficient: float | None) -> None:
        self._coefficient = coefficient or 0.0
        self._found: torch.Tensor | None = None
        if not self._coefficient:
            return
        if "output_router_logits" not in _names(model):
            raise ModelError(
                f"router_aux_loss_coef is set, and {type(model).__name__} has no routers that report what they chose",
                remedy="leave router_aux_loss_coef out",
            )
        model.register_forward_hook(self._keep)

    def _keep(self, _model: torch.nn.Module, _inputs: Any, output: Any) -> None:
        self._found = getattr(output, "aux_loss", None)

    def asked(self) -> dict[str, Any]:
        """What the model's forward is told besides its inputs."""
        return {"output_router_logits": True} if self._coefficient else {}

    def loss(self, share: torch.Tensor) -> torch.Tensor:
        """The loss of the pass that was just made.

        Args:
            share: part of the step's labelled tokens that this pass had.
        """
        found, self._found = self._found, None
        if not self._coefficient:
            return share.new_zeros(())
        if not isinstance(found, torch.Tensor):
            raise ModelError(
                "router_aux_loss_coef is set, and the model computes no loss that balances its experts",
                remedy="leave router_aux_loss_coef out",
            )
        return self._coefficient * share.to(found) * found


def tell_unused(model: Any, coefficient: float | None) -> None:
    """Say which losses a model's configuration carries that this run does not add."""
    config = model.config.get_text_config()
    own = getattr(config, "router_aux_loss_coef", None)
    if own and coefficient is None:
        notify(
            f"the model's configuration has router_aux_loss_coef {own:g}; that loss is added only where the setting of "
            "the same name asks for it"
        )
    for name, what in _UNUSED.items():
        value = getattr(config, name, None)
        if isinstance(value, int | float) and value > 0:
            notify(f"the model's configuration has {name} {value:g} ({what}); training here does not use it")


def _names(model: torch.nn.Module) -> set[str]:
    """What the model's forward can be told, settings of its configuration included."""
    known = set(inspect.signature(model.forward).parameters)
    config: Any = model.config
    return known | ({"output_router_logits"} if hasattr(config.get_text_config(), "output_router_logits") else set())
