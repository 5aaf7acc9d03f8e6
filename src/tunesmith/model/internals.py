"""What models, loading and merging use of libraries that these do not promise to keep: one function for each name.

None of them has a fallback: when a name goes, they raise and their tests fail, so that nothing stops acting in silence.
docs/decisions/private_api.md lists them with those of the other rooms.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForMultimodalLM, PreTrainedConfig, PreTrainedModel
from transformers.core_model_loading import build_glob_alternation


def attention_of(model: PreTrainedModel) -> str:
    """The attention implementation that a loaded model uses, by its name in transformers.

    The public argument ``attn_implementation`` is kept under another name, which is not to be written to:
    https://github.com/huggingface/transformers/pull/26572
    """
    name: str = model.config._attn_implementation
    return name


def attentions_of(model: PreTrainedModel) -> dict[str, Any]:
    """The same of a loaded model ("") and of its parts and theirs, by their names, as ``set_attn_implementation`` takes
    them; a part for which none was chosen has that of the whole."""
    return _attentions(model.config, attention_of(model))


def _attentions(config: PreTrainedConfig, whole: str) -> dict[str, Any]:
    own = config._attn_implementation or whole
    parts = {name: getattr(config, name, None) for name in config.sub_configs}
    return {"": own} | {name: _attentions(part, own) for name, part in parts.items() if part is not None}


def supports_sdpa(config: PreTrainedConfig) -> bool:
    """Whether the architecture of a configuration has an sdpa implementation; True for code that comes with the model.

    transformers decides while it loads, and refuses then: https://github.com/huggingface/transformers/issues/28005
    """
    mapping: Any = opener_of(config)._model_mapping
    return type(config) not in mapping or bool(mapping[type(config)]._supports_sdpa)


def takes_attention_setting(model: PreTrainedModel) -> bool:
    """Whether the attention of a loaded model can be set; without that, transformers says so in its log and goes on."""
    return bool(model._can_set_attn_implementation())


def takes_attention_functions(model: PreTrainedModel) -> bool:
    """Whether the architecture calls attention functions that were registered, in every layer.

    Registering is public (https://huggingface.co/docs/transformers/attention_interface); who listens is not.
    """
    return bool(model._supports_attention_backend) and takes_attention_setting(model)


def names_kept_in_float32(model: PreTrainedModel, dtype: torch.dtype) -> Callable[[str], bool]:
    """Whether loading in ``dtype`` leaves a weight of this architecture in float32, by its name.

    https://github.com/huggingface/transformers/blob/main/src/transformers/modeling_utils.py, ``_get_dtype_plan``
    """
    plan = list(model._get_dtype_plan(dtype))
    if not plan:
        return lambda name: False
    pattern, _, _ = build_glob_alternation(plan)
    return lambda name: pattern.search(name) is not None


def spreading_config() -> Any | None:
    """DeepSpeed's configuration as transformers knows it while it loads; None where it knows of none.

    It can be set and unset in public, but not asked for:
    https://github.com/huggingface/transformers/blob/v5.23.0/src/transformers/integrations/deepspeed.py
    """
    integration: Any = sys.modules.get("transformers.integrations.deepspeed")  # importing it imports DeepSpeed
    reference = None if integration is None else integration._hf_deepspeed_config_weak_ref
    return None if reference is None else reference()


@contextmanager
def not_spread() -> Iterator[None]:
    """Let transformers build models whole meanwhile: while ZeRO-3 trains, it would cut up whatever one process builds,
    and wait there for the others, which build nothing."""
    known = spreading_config()
    if known is None:
        yield
        return
    from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        set_hf_deepspeed_config(known)


def opener_of(config: PreTrainedConfig) -> Any:
    """The library's class that opens a model as the whole that its files hold.

    A checkpoint that reads images or sound besides text is opened with all its parts, as the class that it came from;
    the class of language models would leave them out, some without a word.
    """
    text: Any = AutoModelForCausalLM._model_mapping
    if config.get_text_config() is config or type(config) not in AutoModelForMultimodalLM._model_mapping:
        return AutoModelForCausalLM
    text_alone = type(config) in text and text[type(config)].__name__
    return AutoModelForCausalLM if text_alone in (config.architectures or ()) else AutoModelForMultimodalLM


def without_weights(config: PreTrainedConfig, *, buffers: bool = False, **keywords: Any) -> PreTrainedModel:
    """A model of this configuration without weights (the meta device), built in this process alone.

    Args:
        config: the model's configuration.
        buffers: whether what is no weight and stands in no file (tables of positions) has its values.
        **keywords: of the library's ``from_config``.
    """
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False) if buffers else torch.device("meta"), not_spread():
        model: PreTrainedModel = opener_of(config).from_config(config, **keywords)
    return model


def names_that_peft_renames(model: torch.nn.Module) -> frozenset[str]:
    """Names of layers that PEFT takes for parts of fused experts on this architecture, wherever they stand.

    Adapters of transformers 4 named the experts' own layers; PEFT translates them, and with them the layers of the same
    name in dense MLPs and shared experts: https://github.com/huggingface/peft/pull/3083
    """
    from peft.utils import transformers_weight_conversion

    conversion: Any = transformers_weight_conversion
    kind = getattr(getattr(model, "config", None), "model_type", None)
    family = conversion._MODEL_TO_CONVERSION_PATTERN.get(kind)
    return frozenset(conversion._MOE_TARGET_MODULE_MAPPING.get(family, {}))


def names_that_peft_loses(adapted: Any, tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """Names of an adapter's saved tensors that PEFT takes for others when it loads them: it renames them as the base's
    files are renamed, and on some architectures such a pattern fits the model's own names as well."""
    from peft.utils import transformers_weight_conversion as conversion

    read = conversion.convert_peft_adapter_state_dict_for_transformers(
        adapted, adapted.peft_config["default"], dict(tensors)
    )
    return sorted(tensors.keys() - read.keys())


def leave_weights_alone(model: PreTrainedModel) -> None:
    """Switch off that a model divides some of its weights whenever it is put into evaluation mode.

    RWKV does, against overflow in float16: packed weights cannot be divided, and adapters would not be.
    https://github.com/huggingface/transformers/blob/v5.23.0/src/transformers/models/rwkv/modeling_rwkv.py
    """
    for module in model.modules():
        part: Any = module
        if hasattr(part, "_rescale_layers"):
            part.config = copy.deepcopy(part.config)  # the model's own is saved with it
            part.config.rescale_every = 0


@contextmanager
def names_taken_as_they_are() -> Iterator[None]:
    """Let PEFT take an adapter's names as they are meanwhile, without a translation."""
    from peft.utils import transformers_weight_conversion as conversion

    translate = conversion.convert_peft_config_for_transformers
    conversion.convert_peft_config_for_transformers = lambda *_, **__: None
    try:
        yield
    finally:
        conversion.convert_peft_config_for_transformers = translate


def translate_names(model: torch.nn.Module, peft_config: Any) -> None:
    """What PEFT does with the names of an adapter for transformers 4; names of today stay as they are."""
    from peft.utils import transformers_weight_conversion as conversion

    conversion.convert_peft_config_for_transformers(peft_config, model=model, conversions=None)


def cpu_multiplies_bfloat16() -> bool:
    """Whether torch has units of this machine's cpu for bfloat16 (AVX512-BF16, AMX ...)."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
