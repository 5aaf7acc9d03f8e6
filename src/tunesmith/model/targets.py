"""Which weights of a model an adapter is to sit on: from the settings' words to names by which PEFT finds them.

The words are names of layers, ``all-linear``, the roles of ``roles.PATTERNS``, names of projections that a model holds
fused for all its experts, and bare parameters. Nothing is put on a model here.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from peft import LoraConfig
from transformers import PreTrainedModel

from tunesmith.errors import ModelError
from tunesmith.model.internals import names_that_peft_renames
from tunesmith.model.parameters import ends_in
from tunesmith.model.precision import mutates_base
from tunesmith.model.roles import PATTERNS, Weight
from tunesmith.notices import notify
from tunesmith.program import named

ALL_LINEAR = "all-linear"
RULE_ROLES = ("attention", "mlp", "experts", "shared_experts", "other")
"""What ``all-linear`` reaches."""
_FUSED = {
    "gate_proj": "gate_up_proj", "up_proj": "gate_up_proj", "w1": "gate_up_proj", "w3": "gate_up_proj",
    "down_proj": "down_proj", "w2": "down_proj",
}  # fmt: skip
"""Projection of one expert, as checkpoints name it -> the parameter that holds it for all experts."""
_PAIRS = (("gate_proj", "up_proj"), ("w1", "w3"))
"""Projections that lie in one fused parameter, so that one cannot be adapted without the other."""


@dataclass(slots=True)
class Chosen:
    """Weights by who chose them."""

    written: dict[str, Weight]
    """By a name that somebody wrote."""
    ruled: dict[str, Weight]
    """By ``all-linear``, a role, or a default that follows the architecture."""


def settle_targets(
    model: PreTrainedModel, config: LoraConfig, weights: Sequence[Weight], *, written: bool
) -> frozenset[str]:
    """Put into an adapter's configuration the names of the weights that its settings mean on this model.

    A configuration of plain names of layers stays as it is. Where PEFT itself would take a name for something else
    (it renames what transformers 4 had in other places), the same weight is named in ``target_parameters``.

    Args:
        model: without adapters; weights are not needed.
        config: the adapter's settings; it is changed.
        weights: those of the model.
        written: whether somebody wrote ``target_modules``; a default gives way to the architecture's own names.

    Returns:
        targets that a rule chose, and that may be left out again.

    Raises:
        ModelError: a word means nothing on this model.
    """
    words = _words(config.target_modules)
    if words is None and not config.target_parameters:
        return frozenset()
    if not written and words is not None and not _all_there(words, weights):
        notify(
            f"target_modules is left at {', '.join(words)}, which this model does not have: its attention layers get "
            "adapters, whatever they are called"
        )
        words = ["attention"]
    if words is not None and not _needs_rule(words, model, weights, config):
        return frozenset()
    chosen = _choose(words or [], weights, config)
    kept = _without_excluded(chosen, weights, config)
    name_weights(model, config, {*kept.written, *kept.ruled}, weights, keep_modules=words is None)
    return frozenset(weight.target for weight in kept.ruled.values())


def _words(wanted: str | Collection[str] | None) -> list[str] | None:
    """The words of ``target_modules``; None for a regular expression or nothing."""
    if isinstance(wanted, str):
        return [ALL_LINEAR] if wanted == ALL_LINEAR else None
    return sorted(wanted or ())


def _all_there(words: Sequence[str], weights: Sequence[Weight]) -> bool:
    return all(word in (ALL_LINEAR, *PATTERNS) or any(ends_in(w.target, word) for w in weights) for word in words)


def _needs_rule(words: Sequence[str], model: PreTrainedModel, weights: Sequence[Weight], config: LoraConfig) -> bool:
    """Whether some word is more than the name of layers as PEFT understands it."""
    excluded = [] if isinstance(config.exclude_modules, str) else list(config.exclude_modules or ())
    if config.target_parameters or any(word in PATTERNS or word == ALL_LINEAR for word in (*words, *excluded)):
        return True
    leaves = {word.rpartition(".")[2] for word in words}
    fused = {w.name.rpartition(".")[2] for w in weights if _is_fused(w)}
    return bool(leaves & names_that_peft_renames(model)) or any(_FUSED.get(leaf) in fused for leaf in leaves)


# choosing -------------------------------------------------------------------------------------------------------------


def _choose(words: Sequence[str], weights: Sequence[Weight], config: LoraConfig) -> Chosen:
    chosen = Chosen({}, {})
    for word in words:
        named = [weight for weight in weights if weight.in_module and ends_in(weight.target, word)]
        if word == ALL_LINEAR or (word in PATTERNS and not named):
            roles = RULE_ROLES if word == ALL_LINEAR else (word,)
            reached = [w for w in weights if w.role in roles and _obstacle(w, config) is None]
            if not reached:
                raise _nothing(word, [w for w in weights if w.role in roles], config)
            chosen.ruled |= {weight.name: weight for weight in reached}
            continue
        named += _fused(word, words, weights)
        if not named:
            raise ModelError(
                f"target_modules: {word} is not in this model",
                remedy=f"the model's layers are {', '.join(_leaves(weights))}; its roles {', '.join(_roles(weights))}",
            )
        chosen.written |= {weight.name: _free(weight, word, config) for weight in named}
    for word in config.target_parameters or ():
        named = [weight for weight in weights if ends_in(weight.name, word)]
        if not named:
            bare = [weight.name.rpartition(".")[2] for weight in weights if _is_fused(weight)]
            raise ModelError(
                f"target_parameters: {word} is not in this model",
                remedy=f"parameters of its experts are {', '.join(dict.fromkeys(bare)) or 'none'}",
            )
        chosen.written |= {weight.name: _free(weight, word, config) for weight in named}
    return chosen


def _obstacle(weight: Weight, config: LoraConfig) -> str | None:
    """Why this adapter cannot sit on a weight."""
    if weight.obstacle is not None or weight.in_module:
        return weight.obstacle
    if config.use_dora:
        return "PEFT has no DoRA for bare parameters"
    if mutates_base(config.init_lora_weights) or config.init_lora_weights == "orthogonal":
        return f"PEFT cannot take initial values ({config.init_lora_weights}) out of bare parameters"
    return None


def _free(weight: Weight, word: str, config: LoraConfig) -> Weight:
    obstacle = _obstacle(weight, config)
    has_own_rule = weight.in_module and weight.role in ("embedding", "head")  # ``adapters.check_targets``
    if obstacle is not None and not has_own_rule:
        raise ModelError(
            f"target_modules: {word} names {weight.target}, which no adapter can sit on: {obstacle}",
            remedy="leave it out (exclude_modules)",
        )
    return weight


def _fused(word: str, words: Sequence[str], weights: Sequence[Weight]) -> list[Weight]:
    """The parameters that hold the projection of this name for all experts."""
    path, _, leaf = word.rpartition(".")
    if leaf not in _FUSED:
        return []
    found = [weight for weight in weights if _is_fused(weight) and not weight.in_module]
    whole = [w for w in found if ends_in(w.name, f"{path}.{leaf}" if path else leaf)]
    whole += [w for w in found if ends_in(w.name, f"{path}.{_FUSED[leaf]}" if path else _FUSED[leaf])]
    leaves = {name.rpartition(".")[2] for name in words}
    for pair in _PAIRS:
        lost = [name for name in pair if name not in leaves]
        if leaf in pair and lost and any(ends_in(w.name, "gate_up_proj") for w in whole):
            raise ModelError(
                f"target_modules: the experts hold {' and '.join(pair)} in one parameter, and {lost[0]} is not named",
                remedy="name both, or say experts for all of their weights",
            )
    return whole


def _is_fused(weight: Weight) -> bool:
    return weight.role in ("experts", "shared_experts") and not weight.in_module


def _nothing(word: str, there: Sequence[Weight], config: LoraConfig) -> ModelError:
    why = next((reason for reason in (_obstacle(weight, config) for weight in there) if reason), None)
    return ModelError(
        f"target_modules: {word} reaches no weight of this model" + (f" ({why})" if why else ""),
        remedy=named("`tunesmith check` lists what the model has; name its layers"),
    )


def _without_excluded(chosen: Chosen, weights: Sequence[Weight], config: LoraConfig) -> Chosen:
    """What is left after ``exclude_modules`` and ``layers_to_transform``."""
    excluded = config.exclude_modules or []
    words = [excluded] if isinstance(excluded, str) else sorted(excluded)
    for word in words:
        if word not in PATTERNS and not any(_excludes(word, weight, config) for weight in weights):
            raise ModelError(
                f"exclude_modules: {word!r} matches no module of this model",
                remedy=f"the model's layers are {', '.join(_leaves(weights))}",
            )
    layers = config.layers_to_transform
    wanted = None if layers is None else {layers} if isinstance(layers, int) else set(layers)
    lost = sorted((wanted or set()) - {_layer(weight.name, config) for weight in weights})
    if lost:
        raise ModelError(
            f"layers_to_transform: the model has no layer {', '.join(map(str, lost))}",
            remedy="layers are counted from 0",
        )

    def keeps(weight: Weight) -> bool:
        if any(_excludes(word, weight, config) for word in words):
            return False
        return wanted is None or _layer(weight.name, config) in wanted

    kept = Chosen(*({n: w for n, w in part.items() if keeps(w)} for part in (chosen.written, chosen.ruled)))
    if not kept.written and not kept.ruled and chosen.written | chosen.ruled:
        raise ModelError("exclude_modules leaves no weight that would get an adapter", remedy="exclude less")
    return kept


def _excludes(word: str, weight: Weight, config: LoraConfig) -> bool:
    places = (weight.name, weight.name.rpartition(".")[0])
    if isinstance(config.exclude_modules, str):
        return any(re.fullmatch(word, place) for place in places)
    return weight.role == word or any(ends_in(place, word) for place in places)


def _layer(name: str, config: LoraConfig) -> int | None:
    """The number of the layer that a weight lies in, as PEFT counts it."""
    given = config.layers_pattern
    patterns = [given] if isinstance(given, str) else list(given or [r"[^.]*"])
    found = (re.match(rf"(?:^|.*?\.){pattern}\.(\d+)\.", name) for pattern in patterns)
    return next((int(match.group(1)) for match in found if match), None)


# names ----------------------------------------------------------------------------------------------------------------


def name_weights(
    model: PreTrainedModel,
    config: LoraConfig,
    chosen: Collection[str],
    weights: Sequence[Weight],
    *,
    keep_modules: bool = False,
) -> None:
    """Put weights into ``target_modules`` and ``target_parameters``, under names as short as they stay clear.

    Args:
        model: without adapters.
        config: the adapter's configuration; it is changed.
        chosen: names of weights.
        weights: all weights of the model.
        keep_modules: leave ``target_modules``, a regular expression, as it is.
    """
    kept = [weight for weight in weights if weight.name in chosen]
    renamed = names_that_peft_renames(model)
    modules = {w.target for w in kept if w.in_module and w.target.rpartition(".")[2] not in renamed}
    parameters = {w.name for w in kept} - {f"{target}.weight" for target in modules}
    everything = {name for name, _ in model.named_modules() if name}
    if not keep_modules:
        config.target_modules = cast(Any, set(shortest(modules, everything)))
        config.exclude_modules = config.layers_to_transform = config.layers_pattern = None
    config.target_parameters = shortest(parameters, {weight.name for weight in weights}) or None


def shortest(wanted: Collection[str], all_names: Iterable[str]) -> list[str]:
    """The fewest ends of names that match ``wanted`` and nothing else of ``all_names``."""
    holders: dict[str, set[str]] = {}
    for name in all_names:
        parts = name.split(".")
        for start in range(len(parts)):
            holders.setdefault(".".join(parts[start:]), set()).add(name)
    left, found = set(wanted), []
    for name in sorted(wanted):
        if name not in left:
            continue
        parts = name.split(".")
        ends = (".".join(parts[start:]) for start in range(len(parts) - 1, -1, -1))
        end = next((end for end in ends if holders.get(end, {name}) <= set(wanted)), name)
        found.append(end)
        left -= holders.get(end, {name})
    return sorted(found)


def _leaves(weights: Sequence[Weight]) -> list[str]:
    return list(dict.fromkeys(w.target.rpartition(".")[2] for w in weights if w.role not in ("vector", "head")))


def _roles(weights: Sequence[Weight]) -> list[str]:
    there = {weight.role for weight in weights}
    return [name for name in PATTERNS if name in there]
