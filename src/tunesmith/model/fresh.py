"""The adapter of a run that begins: put where the settings want it, without parts that would learn nothing, and with an
account of what it covers.
"""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig, PeftModel
from transformers import PreTrainedModel

from tunesmith.errors import ModelError
from tunesmith.model.adapters import attach_adapter, check_targets
from tunesmith.model.coverage import coverage
from tunesmith.model.gradients import without_gradient
from tunesmith.model.headers import few
from tunesmith.model.precision import Precision
from tunesmith.model.roles import weights_of
from tunesmith.model.targets import name_weights, settle_targets
from tunesmith.notices import notify


def new_adapter(model: PreTrainedModel, config: LoraConfig, *, written: bool = True, values: bool = True) -> PeftModel:
    """Put the adapter of a run on its model: the settings' words for weights become names, see ``settle_targets``.

    Args:
        model: without adapters.
        config: the settings; it is changed.
        written: whether somebody wrote ``target_modules``.
        values: false for a model whose weights do not matter: some initial values are taken out of them.

    Raises:
        ModelError: as ``settle_targets`` and ``attach_adapter``.
    """
    weights = weights_of(model)
    ruled = settle_targets(model, config, weights, written=written)
    check_targets(model, config)
    if not values:
        config.init_lora_weights = True
    adapted: Any = attach_adapter(model, config)
    adapted.weights, adapted.ruled_targets, adapted.left_out = weights, ruled, {}
    return adapted  # type: ignore[no-any-return]


def leave_out_silent(
    adapted: PeftModel, config: LoraConfig, precision: Precision, device: torch.device | None = None
) -> PeftModel:
    """A model of ``new_adapter`` without the adapters that would get no gradient.

    Args:
        adapted: the model with its fresh adapter; it is taken apart where some are left out.
        config: the adapter's configuration.
        precision: format of the arithmetic.
        device: the one that will compute; None where the weights lie.

    Raises:
        ModelError: somebody wrote the name of such a layer, or nothing else would be left.
    """
    silent = without_gradient(adapted, precision, device)
    if not silent:
        return adapted
    marked: Any = adapted
    asked = [name for name in silent if name not in marked.ruled_targets]
    if asked:
        raise ModelError(
            f"adapters on {few(asked)} get no gradient: nothing that these layers compute reaches the logits",
            where="target_modules",
            remedy="leave them out (exclude_modules), or take all-linear, which does",
        )
    notify(f"no adapters on {few(silent)}: they would get no gradient")
    remaining = {weight.name for weight in marked.weights if weight.target in targets_of(adapted) - set(silent)}
    if not remaining:
        raise ModelError("no adapter of this model gets a gradient", remedy="name other target_modules")
    base: Any = marked.unload()
    vars(base).pop("peft_config", None)
    name_weights(base, config, remaining, marked.weights)
    again: Any = attach_adapter(base, config)
    again.weights, again.ruled_targets = marked.weights, marked.ruled_targets
    again.left_out = dict.fromkeys(silent, "its adapter gets no gradient")
    return again  # type: ignore[no-any-return]


def targets_of(adapted: PeftModel) -> set[str]:
    """Names of the layers and bare parameters that carry an adapter."""
    tuner: Any = adapted.base_model
    return {*tuner.targeted_module_names, *tuner.targeted_parameter_names}


def coverage_of(adapted: Any) -> list[dict[str, Any]]:
    """What the adapter of ``new_adapter`` covers, see ``coverage``; empty for a model that came another way."""
    if not hasattr(adapted, "ruled_targets"):
        return []
    ruled = bool(adapted.ruled_targets)
    return coverage(adapted.weights, targets_of(adapted), left_out=adapted.left_out, ruled=ruled)
