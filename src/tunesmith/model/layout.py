"""Which layout the batches of a run have: what was written, or under ``auto`` the cheapest one that the model is proved
to allow.

Padded and unpadded batches and trees of segments hold the same rows, so this decides what a step costs and nothing of
what it learns from.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import partial
from typing import Literal, cast

import torch
from transformers import PreTrainedModel

from tunesmith.config.resolve import Resolved
from tunesmith.errors import ModelError
from tunesmith.model.adapters import base_of
from tunesmith.model.internals import attention_of
from tunesmith.model.memory.shapes import bare_skeleton
from tunesmith.model.precision import Precision
from tunesmith.model.prefixes import prove_prefixes
from tunesmith.model.segments import Boundaries, keep_examples_apart, segments_obstacle
from tunesmith.notices import notify

Name = Literal["padded", "length_grouped", "packed", "unpadded", "prefix_tree"]
"""The layouts of ``data/batching.py``."""
PADDED = ("padded", "length_grouped")
"""Those of one example a row."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How the batches of a run are laid out.

    Attributes:
        batching: the layout.
        reason: why it is this one.
        boundaries: how the model learns where examples begin, in layouts that have several in a row.
    """

    batching: Name
    reason: str
    boundaries: Boundaries = "positions"


def expected_layout(resolved: Resolved) -> Layout:
    """The layout that a run will have, as far as its model's architecture tells; no weights are needed.

    Training proves it on the model itself, see ``settle_layout``.

    Raises:
        ModelError: the model's configuration cannot be used.
    """
    wanted = resolved.config.training.batching
    if wanted != "auto":
        return Layout(wanted, "as it is set")
    if resolved.config.model.model_class is not None:
        return Layout("padded", "a model class of another package is not known before it is loaded")
    model = bare_skeleton(resolved)
    return _told_of_dropout(_of_architecture(model), model)


def settle_layout(wanted: str, model: torch.nn.Module, precision: Precision, device: torch.device) -> Layout:
    """The layout of a run, with the model made ready for it and proved to keep examples apart where it has to.

    Args:
        wanted: the setting ``batching``.
        model: with its adapters.
        precision: format of its arithmetic.
        device: the one that will compute.

    Raises:
        ModelError: the layout that was written needs examples kept apart, and the model cannot do that. ``auto`` gives
            way instead, aloud, and leaves the model's attention as it was.
    """
    return _told_of_dropout(_settled(wanted, model, precision, device), model)


def _told_of_dropout(layout: Layout, model: torch.nn.Module) -> Layout:
    """The layout itself; where the model draws otherwise in it than in a padded batch, that is said."""
    share = own_dropout(model)
    if share and layout.batching not in PADDED:
        notify(
            f"the model drops out by itself (up to {share:g}): a row of several examples draws other places than a "
            "padded batch, so that single losses differ; batching padded draws as others do"
        )
    return layout


def own_dropout(model: torch.nn.Module) -> float:
    """The largest share that a model drops out by its own configuration in training; an adapter's is not counted."""
    parts = [part for name, part in model.named_modules() if ".lora_" not in name]
    layers = [part.p for part in parts if isinstance(part, torch.nn.Dropout)]
    said = [value for part in parts for name, value in vars(part).items() if "dropout" in name and type(value) is float]
    return max([*layers, *said], default=0.0)


def _settled(wanted: str, model: torch.nn.Module, precision: Precision, device: torch.device) -> Layout:
    if wanted in PADDED:
        return Layout(cast(Name, wanted), "as it is set")
    if wanted == "prefix_tree":
        return Layout("prefix_tree", "as it is set", _share_beginnings(model, precision, device))
    if wanted != "auto":
        return Layout(cast(Name, wanted), "as it is set", keep_examples_apart(model, precision, device))
    return _cheapest(model, precision, device)


def _cheapest(model: torch.nn.Module, precision: Precision, device: torch.device) -> Layout:
    """What ``auto`` comes to on a model."""
    base = base_of(model)
    layout, attention = _of_architecture(base), attention_of(base)
    apart = partial(keep_examples_apart, dense=False)
    for batching, prove in (("prefix_tree", _share_beginnings), ("unpadded", apart)):
        if layout.batching not in ("prefix_tree", batching):
            continue
        try:
            return Layout(cast(Name, batching), layout.reason, prove(model, precision, device))
        except ModelError as error:
            if attention_of(base) != attention:
                base.set_attn_implementation(attention)
            following: Name = "unpadded" if batching == "prefix_tree" else "padded"
            layout = Layout(following, error.what)
    notify(f"batches are padded: {layout.reason}")
    return layout


def _share_beginnings(model: torch.nn.Module, precision: Precision, device: torch.device) -> Boundaries:
    """Prepare a model for ``prefix_tree``, and prove on it that it keeps to the tree.

    Raises:
        ModelError: it does not, or its attention cannot follow a tree.
    """
    base = base_of(model)
    obstacle = _tree_obstacle(base)
    if obstacle is not None:
        raise ModelError(
            f"shared beginnings cannot be computed once ({obstacle})", remedy="set batching auto, unpadded or padded"
        )
    boundaries = keep_examples_apart(model, precision, device, dense=False)
    prove_prefixes(model, precision, device)
    return boundaries


def _of_architecture(model: PreTrainedModel) -> Layout:
    obstacle = _obstacle(model)
    if obstacle is not None:
        return Layout("padded", f"its rows cannot hold several examples at a low cost ({obstacle})")
    if _tree_obstacle(model) is None:
        return Layout("prefix_tree", "each row is attended to by itself, and shared beginnings are computed once")
    return Layout("unpadded", "each row is attended to by itself")


def _obstacle(model: PreTrainedModel) -> str | None:
    """Why several examples in a row would cost more than padding, or could not be kept apart; None when neither."""
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return f"{type(model).__name__} takes no positions"
    return segments_obstacle(model)


def _tree_obstacle(model: PreTrainedModel) -> str | None:
    """Why common beginnings cannot be computed once; None when nothing is in the way."""
    if attention_of(model) == "flash_attention_2":
        return "FlashAttention 2 knows no common beginnings; attn_implementation sdpa does"
    return _obstacle(model)
