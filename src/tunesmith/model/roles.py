"""What each weight of a model is for: attention, MLP, an expert, a router ..., and whether an adapter can sit on it.

It is read off the model's structure: the classes of its modules, their places, and the code that uses them. No weights
are needed, so a model on the meta device tells the same.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any, Literal, cast

import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tunesmith.model.parameters import whole_shape
from tunesmith.model.parts import beside_language, is_inside

Role = Literal[
    "attention", "mlp", "experts", "shared_experts", "router", "indexer", "convolution", "embedding", "head",
    "other_modality", "other", "vector",
]  # fmt: skip
"""``attention`` is whatever mixes the tokens of a row, state-space and linear-attention layers included; ``other`` is a
linear layer of none of these kinds; ``vector`` a weight that is no matrix (norms, biases)."""

PATTERNS: dict[str, str] = {
    "attention": "projections of attention, state-space and linear-attention layers",
    "mlp": "dense MLPs",
    "experts": "routed experts",
    "shared_experts": "experts that every token passes through",
    "router": "what chooses the experts, and gates of experts",
}
"""Names that a setting can use for all weights of a role, and what they mean."""

_MLP = re.compile(r"mlp|feed_?forward|ffn|^fc_?\d$|^fc_(in|out)$", re.IGNORECASE)
_MIXER = re.compile(r"attn|attention|mamba|mixer|conv|delta|lstm|temporal_block|recurrent", re.IGNORECASE)
_SHARED = re.compile(r"shared_?(expert|mlp)", re.IGNORECASE)
_HARMLESS = r"(?!\[|\.(?:dtype|device|shape|ndim|data_ptr|is_cuda|is_meta|requires_grad)\b)"
"""What code may ask of a weight without computing with it, or for a way of computing that nobody trains by (pieces of
layers that were spread over devices in pretraining)."""
READ_PAST = "its code reads the weight past the layer"
"""Obstacle of a linear layer that is not only called: an adapter on it would be left out, and packed bits read."""
_STICKY = frozenset(["experts", "shared_experts", "router", "indexer", "convolution"])


@dataclass(frozen=True, slots=True)
class Weight:
    """One weight of a model.

    Attributes:
        name: its full name.
        role: what it is for.
        count: its numbers; packed ones count as what they stand for.
        in_module: an adapter sits on the layer (``target_modules``), not on the bare parameter (``target_parameters``).
        obstacle: why no adapter can sit on it; None where one can.
    """

    name: str
    role: Role
    count: int
    in_module: bool
    obstacle: str | None

    @property
    def target(self) -> str:
        """The name by which PEFT finds it: of its layer, or its own."""
        return self.name.rpartition(".")[0] if self.in_module else self.name


def weights_of(model: PreTrainedModel) -> list[Weight]:
    """Every weight of a model without adapters, each once, in the model's order."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    beside = beside_language(model)
    used = _times_used(model)
    tied = _names_of_parameters(model)
    found, seen = [], set()
    for path in _paths(model):
        module = path[-1][1]
        for name, value in _own_weights(module):
            full = ".".join([*(part for part, _ in path[1:]), name])
            if id(value) in seen:
                continue
            seen.add(id(value))
            shape = whole_shape(value)
            role: Role = "other_modality" if is_inside(full, beside) else _role(path)
            role = "vector" if len(shape) < 2 or _is_bias(name) else role
            if module is head or module is embedding or isinstance(module, torch.nn.Embedding):
                role = "head" if module is head and module is not embedding else "embedding"
            in_module = name == "weight" and is_linear(module)
            several = used[id(module)] > 1 or tied.get(id(value), 1) > 1
            obstacle = _obstacle(path, name, role, shape, several=several, in_module=in_module)
            found.append(Weight(full, role, shape.numel(), in_module, obstacle))
    return found


def is_linear(module: torch.nn.Module) -> bool:
    """Whether PEFT adapts this layer as a linear one and the layer computes as such."""
    if isinstance(module, Conv1D):
        return True
    return isinstance(module, torch.nn.Linear) and _computes_linearly(cast(Any, type(module)))


@cache
def _computes_linearly(kind: Any) -> bool:
    """Whether a subclass of Linear multiplies as Linear does: it is tried on a small one, where it has code of its own.

    Layers in few bits are the quantization's and count as linear.
    """
    if vars(kind).get("forward") is None and kind.forward is torch.nn.Linear.forward:
        return True
    if kind.__module__.startswith(("bitsandbytes", "tunesmith")):
        return True
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        small: Any = kind.__new__(kind)
        torch.nn.Linear.__init__(small, 4, 6)
        given = torch.rand(2, 3, 4)
        try:
            found = small(given)
        except Exception:  # it needs what its own constructor would have given it
            return False
        expected = torch.nn.functional.linear(given, small.weight, small.bias)
    return isinstance(found, torch.Tensor) and found.shape == expected.shape and bool(torch.allclose(found, expected))


# structure ------------------------------------------------------------------------------------------------------------

Path = list[tuple[str, torch.nn.Module]]
"""Names and modules from the model down to one of its parts."""


def _paths(model: torch.nn.Module) -> Iterator[Path]:
    """The path to every module, each module once."""
    seen: set[int] = set()

    def walk(path: Path) -> Iterator[Path]:
        if id(path[-1][1]) in seen:
            return
        seen.add(id(path[-1][1]))
        yield path
        for name, child in path[-1][1].named_children():
            if name != "parametrizations":
                yield from walk([*path, (name, child)])

    yield from walk([("", model)])


def _own_weights(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and tensors that a module holds itself; a packed one stands under its own name."""
    packed: Any = getattr(module, "parametrizations", {})
    for name, value in module.named_parameters(recurse=False):
        yield name, value
    for name, parametrization in packed.items():
        yield name, parametrization


def _times_used(model: torch.nn.Module) -> dict[int, int]:
    """How many places hold each module."""
    counts: dict[int, int] = {}
    for _, module in model.named_modules(remove_duplicate=False):
        counts[id(module)] = counts.get(id(module), 0) + 1
    return counts


def _names_of_parameters(model: torch.nn.Module) -> dict[int, int]:
    """How many names each parameter has."""
    counts: dict[int, int] = {}
    for _, value in model.named_parameters(remove_duplicate=False):
        counts[id(value)] = counts.get(id(value), 0) + 1
    return counts


def _role(path: Path) -> Role:
    """What a weight of the last module is for, from the outermost part that says so to the innermost."""
    role: Role = "other"
    inside = False
    for (_, owner), (name, module) in pairwise(path):
        inside = inside or isinstance(owner, torch.nn.ModuleList)
        if not inside:
            continue  # the model around its layers
        found = _said_by(name, module, owner)
        if found in ("router", "indexer", "convolution"):
            return found
        if found is not None and role not in _STICKY:
            role = found
    return role


def _said_by(name: str, module: torch.nn.Module, owner: torch.nn.Module) -> Role | None:
    """What one part of a model says of everything inside of it."""
    kind = type(module).__name__
    if isinstance(module, torch.nn.Conv1d | torch.nn.Conv2d | torch.nn.Conv3d):
        return "convolution"
    if re.search("indexer", f"{name} {kind}", re.IGNORECASE):
        return "indexer"
    if re.search("router", f"{name} {kind}", re.IGNORECASE) or (_chooses_experts(owner) and name.endswith("gate")):
        return "router"
    if _SHARED.search(name) or (_SHARED.search(kind) and name != "experts"):
        return "shared_experts"
    if name == "experts" or re.search(r"experts?(glu)?$", kind, re.IGNORECASE):
        return "experts"
    for text in (kind, name):
        if isinstance(module, torch.nn.Linear | Conv1D) and text == kind:
            continue  # a linear layer's class says how it computes, not what for
        if _MLP.search(text):
            return "mlp"
        if _MIXER.search(text):
            return "attention"
    return None


def _chooses_experts(module: torch.nn.Module) -> bool:
    """Whether a module holds experts beside what chooses them."""
    return any("expert" in name or "expert" in type(child).__name__.lower() for name, child in module.named_children())


def _is_bias(name: str) -> bool:
    return name.endswith("bias") or name in ("A_log", "D")


# obstacles ------------------------------------------------------------------------------------------------------------


def _obstacle(path: Path, name: str, role: Role, shape: torch.Size, *, several: bool, in_module: bool) -> str | None:
    """Why no adapter can sit on a weight."""
    module = path[-1][1]
    if role in ("vector", "convolution", "embedding", "head"):
        return {"vector": "no matrix", "convolution": "a convolution"}.get(role, "trained whole or not at all")
    if several:
        return "several layers share it"
    if in_module:
        owner = path[-2][1]
        if _mentions(owner, rf"self\.{re.escape(path[-1][0])}\.weight\b{_HARMLESS}"):
            return READ_PAST
        return None
    if isinstance(module, torch.nn.Linear):
        return f"{type(module).__name__} does not multiply as a linear layer does"
    if role not in ("experts", "shared_experts", "router"):
        return "no linear layer"
    if role != "router" and len(shape) != 3:
        return "its experts lie in one matrix"
    return _read_outside(path, name)


def _read_outside(path: Path, name: str) -> str | None:
    """Why an adapter cannot sit on a bare parameter: PEFT puts it on while the parameter's own module runs, and hides
    the module's other attributes."""
    asked = rf"self\.{re.escape(path[-1][0])}\.(\w+)"
    allowed = {"weight", "bias", "num_experts", "in_features", "out_features", "to", "training", "parameters"}
    own = {attribute for attribute in _found(path[-2][1], asked) if attribute not in allowed - {name}}
    return f"its layer reads {', '.join(sorted(own))} past it" if own else None


def _mentions(module: torch.nn.Module, pattern: str) -> bool:
    return bool(_found(module, pattern))


def _found(module: torch.nn.Module, pattern: str) -> set[str]:
    """What a pattern finds in the code of a module's class."""
    return set(re.findall(pattern, _code_of(cast(Any, type(module)))))


@cache
def _code_of(kind: Any) -> str:
    """The code of a class and of those that it is made from, up to torch's; what has no source has no code here."""
    texts = []
    for part in kind.__mro__:
        if part.__module__.startswith(("torch", "builtins")) or part is PreTrainedModel:
            continue
        try:
            texts.append(inspect.getsource(part))
        except (OSError, TypeError):
            continue
    return "\n".join(texts)
