"""Which adapters get no gradient: asked of the model itself before training, by one backward pass.

An adapter whose output reaches no logit, or whose layer's weight is read past it, learns nothing; and processes that
share gradients wait for it for ever.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora.layer import LoraLayer, ParamWrapper

from tunesmith.errors import ModelError
from tunesmith.model.adapters import attach_adapter
from tunesmith.model.answering import in_evaluation
from tunesmith.model.new_tokens import num_embeddings
from tunesmith.model.parameters import ends_in
from tunesmith.model.precision import Precision
from tunesmith.model.roles import is_linear
from tunesmith.model.stand_in import can_compute, is_large, shortened, small_twin

SHORT, LONG = 24, 288
"""Tokens of the row that is asked first, and of the one that is asked where some adapter got nothing: layers that
compress what lies far behind are silent in short rows."""


def without_gradient(adapted: PeftModel, precision: Precision, device: torch.device | None = None) -> list[str]:
    """Names of the layers and modules whose adapters get no gradient, in the model's order.

    Of a large model the first layers are asked, and where the weights cannot compute (they are spread, or not there
    yet) a small model of the same class, see ``stand_in``; then layers of one kind at all depths count as one.

    Args:
        adapted: the model with its fresh adapter; modes, gradients and random numbers stay what they are.
        precision: format of its arithmetic.
        device: the one that will compute; None where the weights lie.
    """
    base: Any = adapted.get_base_model()
    place = device or base.device
    if can_compute(base, place) and not is_large(base):
        return _silent(adapted, precision)
    if can_compute(base, place):
        with shortened(base):
            found = _silent(adapted, precision)
    else:
        twin = small_twin(base, precision, place if place.type != "meta" else torch.device("cpu"))
        found = _silent(_with_adapter(twin, adapted), precision)
    silent = {_anywhere(name) for name in found}
    return [name for name in _places(adapted) if _anywhere(name) in silent]


def _with_adapter(twin: Any, adapted: PeftModel) -> PeftModel:
    """A small model with adapters on the same kinds of layers as the large one."""
    kinds = {_anywhere(name) for name in _places(adapted)}
    layers = [name for name, _ in twin.named_modules() if _anywhere(name) in kinds]
    config: Any = adapted.peft_config["default"]
    parameters = sorted(config.target_parameters or ()) or None
    bare = {name for name, _ in twin.named_parameters()}
    parameters = [end for end in parameters or () if any(ends_in(name, end) for name in bare)] or None
    modules = [name for name in layers if is_linear(twin.get_submodule(name))]
    return attach_adapter(twin, LoraConfig(task_type="CAUSAL_LM", target_modules=modules, target_parameters=parameters))


def _places(adapted: PeftModel) -> dict[str, list[torch.nn.Parameter]]:
    """Target of every adapter (a layer, or a bare parameter) -> its trained weights."""
    found: dict[str, list[torch.nn.Parameter]] = {}
    for name, layer in adapted.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        place = name.removeprefix("base_model.model.").replace(".base_layer", "")
        if isinstance(layer, ParamWrapper):
            place = f"{place}.{layer.parameter_name}"
        parts = (part for part_name in layer.adapter_layer_names for part in [getattr(layer, part_name, None)] if part)
        found[place] = [weight for part in parts for weight in part.parameters() if weight.requires_grad]
    return found


def _anywhere(name: str) -> str:
    return re.sub(r"\.\d+(?=\.|$)", ".*", name)


def _silent(adapted: PeftModel, precision: Precision) -> list[str]:
    """Modules of which some adapter weight gets no gradient from a short row, and none from a long one either."""
    found = _asked(adapted, precision, SHORT)
    if found:
        longer = set(_asked(adapted, precision, LONG))
        found = [name for name in found if name in longer]
    return found


def _asked(adapted: PeftModel, precision: Precision, length: int) -> list[str]:
    base: Any = adapted.get_base_model()
    places = _places(adapted)
    trained = [(place, weight) for place, weights in places.items() for weight in weights]
    positions = getattr(base.config.get_text_config(), "max_position_embeddings", None) or length
    numbers = torch.Generator().manual_seed(0)
    ids = torch.randint(num_embeddings(base), (1, min(length, positions)), generator=numbers).to(base.device)
    try:
        with in_evaluation(adapted):  # nothing is drawn, and dropout hides nothing
            with torch.enable_grad(), precision.autocast(base.device):
                logits = adapted(input_ids=ids, use_cache=False).logits
                loss = logits.float().square().mean()
            gradients = torch.autograd.grad(loss, [weight for _, weight in trained], allow_unused=True)
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ModelError(
            f"{type(base).__name__} cannot compute with this adapter ({reason[:300]})",
            remedy="name other target_modules, such as attention",
        ) from error
    return list(dict.fromkeys(place for (place, _), one in zip(trained, gradients, strict=True) if one is None))
