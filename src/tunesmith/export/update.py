"""What an adapter's file says a merged weight must be: base + update in float32, without PEFT's arithmetic.

Folding is PEFT's work; here the same is computed a second time from the factors in the file and the settings beside
them, so that neither can be wrong alone. Formulas: LoRA (Hu et al. 2021), rsLoRA (Kalajdzievski 2023), DoRA (Liu et
al. 2024).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora.layer import Conv1d, Conv2d, Conv3d, Embedding, Linear, LoraLayer, ParamWrapper
from transformers.pytorch_utils import Conv1D

from tunesmith.errors import ModelError
from tunesmith.model.parameters import ends_in

_PREFIX = "base_model.model."
_EPSILON = torch.finfo(torch.float32).eps
_PART = re.compile(
    r"\.(lora_A\.weight|lora_B\.weight|lora_B\.bias|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)$"
)
Slack = Callable[[torch.Tensor], torch.Tensor]
"""From the places of a weight that are asked about, as a mask, to how far float32 arithmetic can be off in each."""
KINDS = (Linear, Embedding, Conv1d, Conv2d, Conv3d, ParamWrapper)
"""Layers of PEFT whose update is known here."""


@dataclass(frozen=True, slots=True)
class Update:
    """The factors of one weight: ``scale * b @ a``, and a magnitude where the adapter is DoRA's.

    Attributes:
        kind: how the weight lies: ``rows`` (outputs, inputs ...), ``columns`` (the other way round), ``experts``
            (experts, outputs, inputs) or ``experts_transposed``.
        experts: into how many blocks the factors fall.
    """

    a: torch.Tensor
    b: torch.Tensor
    scale: float
    kind: str
    magnitude: torch.Tensor | None
    experts: int

    def expected(self, base: torch.Tensor) -> tuple[torch.Tensor, Slack]:
        """What the merged weight must be, like ``base``, and how far float32 arithmetic alone can be from it."""
        if self.kind.startswith("experts"):
            return self._of_experts(base)
        lying = self.kind == "columns"
        weight = base.T if lying else base.flatten(1)
        a, b = self.a.float().flatten(1), self.b.float().flatten(1)
        value = torch.addmm(weight, b, a, alpha=self.scale)
        factor, more = torch.ones(len(b)), 1.0
        if self.magnitude is not None:
            norm = torch.linalg.vector_norm(value, dim=1)
            factor, more = self.magnitude.float().flatten() / norm, 1 + math.sqrt(value.shape[1])
            value = value * factor[:, None]
        rows, columns = _bounds(a, b, self.scale)

        def slack(places: torch.Tensor) -> torch.Tensor:
            first, second = (places if lying else places.flatten(1)).nonzero(as_tuple=True)
            row, column = (second, first) if lying else (first, second)
            bound = rows[row] * columns[column] * factor[row].abs() + 2 * _EPSILON * value[row, column].abs()
            return bound * more

        return value.T.contiguous() if lying else value.view(base.shape), slack

    def _of_experts(self, base: torch.Tensor) -> tuple[torch.Tensor, Slack]:
        rank = self.a.shape[0] // self.experts
        a = self.a.float().view(self.experts, rank, -1)
        b = self.b.float().view(self.b.shape[0], rank, self.experts).permute(2, 0, 1)
        lying = self.kind == "experts_transposed"
        update = self.scale * (b @ a)
        value = base + (update.transpose(1, 2) if lying else update)
        rows, columns = _bounds(a, b, self.scale)

        def slack(places: torch.Tensor) -> torch.Tensor:
            expert, first, second = places.nonzero(as_tuple=True)
            row, column = (second, first) if lying else (first, second)
            return rows[expert, row] * columns[expert, column] + 2 * _EPSILON * value[places].abs()

        return value, slack


def _bounds(a: torch.Tensor, b: torch.Tensor, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each row and column, a factor of what the order of summation can change in ``scale * b @ a`` (Higham 2002,
    3.1), by Cauchy-Schwarz."""
    rank = a.shape[-2]
    return (
        2 * (rank + 2) * _EPSILON * abs(scale) * torch.linalg.vector_norm(b, dim=-1),
        torch.linalg.vector_norm(a, dim=-2),
    )


def _none(places: torch.Tensor) -> torch.Tensor:
    """The slack of what no arithmetic has touched."""
    return torch.zeros(())


class Factors:
    """The updates in an adapter's file, by the weight of the plain model that they belong to.

    Attributes:
        updates: weight -> its update; a weight that stands in several places of the model may have several.
        whole: weights and biases that the file holds as they are.
        rows: weight -> the rows that the file holds, by token.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor], config: LoraConfig, adapted: Any) -> None:
        self._config = config
        self._model = adapted.get_base_model()
        self.updates: dict[str, Update] = {}
        self.biases: dict[str, torch.Tensor] = {}
        self.whole: dict[str, torch.Tensor] = {}
        self.rows: dict[str, tuple[list[int], torch.Tensor]] = {}
        parts: dict[str, dict[str, torch.Tensor]] = {}
        for key, tensor in tensors.items():
            name = key.removeprefix(_PREFIX)
            if name.endswith(".token_adapter.trainable_tokens_delta"):
                self._add_rows(name, tensor)
            elif match := _PART.search(name):
                parts.setdefault(name[: match.start()], {})[match.group(1).removesuffix(".weight")] = tensor
            else:
                self.whole[plain(name)] = tensor
        for place, found in parts.items():
            self._add(place, found)

    @property
    def touched(self) -> set[str]:
        """Weights of the plain model that the adapter changes."""
        return {*self.updates, *self.biases, *self.whole, *self.rows}

    def expected(self, name: str, base: torch.Tensor) -> tuple[torch.Tensor, Slack]:
        """What the merged weight ``name`` must be in float32, and the slack of float32 arithmetic.

        Args:
            base: the weight that the adapter stands on, in float32.
        """
        if name in self.whole:
            return self.whole[name].float(), _none
        value = base
        if name in self.rows:
            ids, rows = self.rows[name]
            value = torch.cat([base, base.new_zeros(max(0, max(ids) + 1 - len(base)), *base.shape[1:])])
            value[ids] = rows.float()
        if name in self.biases:
            bound = 4 * _EPSILON * (value.abs() + self.biases[name].abs())
            return value + self.biases[name], lambda places: bound[places]
        return self.updates[name].expected(value) if name in self.updates else (value, _none)

    def _add(self, place: str, found: dict[str, torch.Tensor]) -> None:
        layer: Any = self._model.get_submodule(place)
        if not isinstance(layer, KINDS):
            raise ModelError(f"{place}: an adapter on a {type(layer).__name__} cannot be merged")
        parameters = isinstance(layer, ParamWrapper)
        own = str(layer.parameter_name) if parameters else "weight"
        name = f"{plain(place)}.{own}"
        embedding = isinstance(layer, Embedding)
        a, b = (found[f"lora_embedding_{one}" if embedding else f"lora_{one}"] for one in "AB")
        plain_layer = layer.get_base_layer()
        groups = getattr(plain_layer, "groups", 1)
        if isinstance(layer, Conv1d | Conv2d | Conv3d) and groups > 1:
            raise ModelError(f"{place}: an adapter on a convolution in {groups} groups cannot be merged")
        weight = getattr(plain_layer, own)
        experts = weight.shape[0] if parameters and weight.dim() == 3 else 1
        kind = "columns" if embedding or isinstance(plain_layer, Conv1D) else "rows"
        if parameters and weight.dim() == 3:
            kind = "experts_transposed" if getattr(plain_layer, "is_transposed", False) else "experts"
        scale = self._scale(name if parameters else plain(place), a.shape[0] // experts)
        self.updates[name] = Update(a, b, scale, kind, found.get("lora_magnitude_vector"), experts)
        if "lora_B.bias" in found:
            self.biases[f"{plain(place)}.bias"] = scale * found["lora_B.bias"].float()

    def _add_rows(self, name: str, tensor: torch.Tensor) -> None:
        place = plain(name.removesuffix(".token_adapter.trainable_tokens_delta"))
        given: Any = self._config.trainable_token_indices
        if isinstance(given, Mapping):
            given = next(ids for key, ids in given.items() if ends_in(place, key))
        self.rows[f"{place}.weight"] = (list(given), tensor)

    def _scale(self, name: str, rank: int) -> float:
        alpha: float = pattern_value(self._config.alpha_pattern or {}, name, self._config.lora_alpha)
        return alpha / (math.sqrt(rank) if self._config.use_rslora else rank)


def pattern_value(patterns: Mapping[str, Any], name: str, default: Any) -> Any:
    """The value of the first pattern that matches a module's name from one of its dots on."""
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", name)), default)


def plain(name: str) -> str:
    """A module's name in the model without its adapter."""
    for part in (".base_layer", ".modules_to_save.default", ".modules_to_save", ".original_module"):
        name = name.replace(part, "")
    return name


def sites(adapted: Any) -> dict[str, Any]:
    """Weight of the plain model -> PEFT's layer that stands on it."""
    found: dict[str, Any] = {}
    for place, layer in adapted.get_base_model().named_modules(remove_duplicate=False):
        if isinstance(layer, LoraLayer):
            own = layer.parameter_name if isinstance(layer, ParamWrapper) else "weight"
            found[f"{plain(place)}.{own}"] = layer
    return found


def merged_is_expected(merged: torch.Tensor, expected: torch.Tensor, slack: Slack) -> float:
    """How far a merged weight is from what it must be, in units in the last place of its type; up to 0.5 is rounding.

    Args:
        merged: as it is written.
        expected: in float32.
        slack: what float32 arithmetic may add, asked for where the two differ alone: a few places of a large weight.

    Returns:
        0.5 where all are the nearest numbers of the type; else the largest distance, slack taken off.
    """
    if merged.shape != expected.shape:
        return math.inf
    rounded = expected.to(merged.dtype)
    wrong = merged != rounded
    if not wrong.any():
        return 0.5
    found, wanted = merged[wrong].double(), expected[wrong].double()
    allowed = slack(wrong).double()
    kind = torch.finfo(merged.dtype)
    _, exponent = torch.frexp(wanted)
    unit = kind.eps * torch.exp2((exponent - 1).double()).clamp(min=kind.tiny)
    distance = ((found - wanted).abs() - allowed).clamp(min=0) / unit
    return max(0.5, float(torch.nan_to_num(distance, nan=math.inf).max()))


def finite(tensors: Iterable[torch.Tensor]) -> bool:
    """Whether every value is a number."""
    return all(
        bool(torch.isfinite(end))  # the least and the largest tell of all, at a tenth of the cost
        for one in tensors
        if one.is_floating_point() and one.numel()
        for end in (one if one.itemsize > 1 else one.float()).aminmax()
    )
