"""What an adapter covers: for each part of the model the share of its weights that an adapter reaches, and why the rest
is left out. For people before training, and for ``run.json``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from tunesmith.model.roles import Weight

_ORDER = ("attention", "mlp", "experts", "shared_experts", "other", "router", "indexer", "convolution", "embedding",
          "head", "other_modality", "vector")  # fmt: skip
_NEVER = {
    "router": "what chooses experts is not adapted unless asked for",
    "indexer": "what chooses tokens gets no gradient",
    "convolution": "a convolution",
    "embedding": "an embedding",
    "head": "the output head",
    "other_modality": "no part of the text model",
    "vector": "norms, biases and other vectors",
}
"""Why a rule leaves a part out."""


def coverage(
    weights: Sequence[Weight], reached: Collection[str], *, left_out: Mapping[str, str], ruled: bool
) -> list[dict[str, Any]]:
    """Rows of the table: ``part``, ``adapted``, ``names``, ``count``, ``share`` (of all weights) and ``reason``.

    Args:
        weights: all weights of the model.
        reached: targets (see ``Weight.target``) that carry an adapter.
        left_out: targets that were left out on this model, with the reason.
        ruled: whether a rule chose, and not a list of names.
    """
    total = sum(weight.count for weight in weights) or 1
    rows: dict[tuple[str, bool, str | None], dict[str, Any]] = {}
    for weight in weights:
        adapted = weight.target in reached
        reason = None if adapted else left_out.get(weight.target) or _reason(weight, ruled=ruled)
        key = (weight.role, adapted, reason)
        row = rows.setdefault(key, {"part": weight.role, "adapted": adapted, "names": [], "count": 0, "reason": reason})
        row["count"] += weight.count
        name = _leaf(weight)
        if name not in row["names"]:
            row["names"].append(name)
    ordered = sorted(rows.values(), key=lambda row: (not row["adapted"], _ORDER.index(row["part"])))
    return [row | {"share": row["count"] / total} for row in ordered]


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The rows as lines of text."""
    lines = []
    for row in rows:
        names = ", ".join(row["names"][:6]) + (" ..." if len(row["names"]) > 6 else "")
        what = (
            names
            if row["adapted"]
            else f"left out: {row['reason']}"
            + (f" ({names})" if row["part"] not in ("vector", "embedding", "head") else "")
        )
        lines.append(f"{row['part']:<15}{row['share']:>7.2%}  {what}")
    reached = sum(row["share"] for row in rows if row["adapted"])
    return [*lines, f"{'reached':<15}{reached:>7.2%}  of all weights lie under an adapter"]


def _reason(weight: Weight, *, ruled: bool) -> str:
    if weight.obstacle is not None and weight.role not in _NEVER:
        return weight.obstacle
    if weight.role in _NEVER:
        return _NEVER[weight.role]
    return "excluded, or not among the parts that were named" if ruled else "not named by target_modules"


def _leaf(weight: Weight) -> str:
    """The end of a name by which people know a weight: its own, and for bare parameters that of their module."""
    parts = re.sub(r"\.\d+(?=\.|$)", "", weight.target).split(".")
    return parts[-1] if weight.in_module else ".".join(parts[-2:])
