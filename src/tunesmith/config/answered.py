"""Names that people bring from other programs and that are no settings here: what they may say, what to use instead.

A value that asks for nothing (``torch_compile: false``) is accepted; any other is refused with the equivalent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tunesmith.errors import ConfigError
from tunesmith.program import named

_OFF = (None, False, 0, 0.0, "", "none", "None", "no")

ANSWERS: dict[str, str] = {
    "label_smoothing_factor": "the loss is that of the rows' own tokens, so that it can be compared; lora_dropout, "
    "weight_decay or neftune_noise_alpha keep a model from being too sure",
    "torch_compile": "batches have many shapes, each of which would be compiled; batching packed and "
    "attn_implementation flash_attention_2 save time",
    "use_liger_kernel": "logits are computed at trained positions alone, which saves the memory that its loss saves; "
    "leave it out",
    "use_liger": "logits are computed at trained positions alone, which saves the memory that its loss saves; "
    "leave it out",
    "auto_find_batch_size": "a run's steps are known before it starts; `tunesmith check` says whether a batch fits, "
    "and global_batch_size keeps a step's rows whatever per_device_train_batch_size is",
    "dataloader_drop_last": "every row is trained on, and a last step with fewer rows is averaged over its own tokens; "
    "leave it out",
    "save_only_model": "a checkpoint can always be continued exactly; save_total_limit 1, or save_strategy best, saves "
    "space",
    "optim_target_modules": "GaLore and APOLLO are not offered; train adapters (use_lora), or set optim "
    "paged_adamw_8bit or adafactor for smaller states",
    "adapter_name_or_path": "to go on from an adapter with new data, fold it into its base (`tunesmith merge ADAPTER "
    "NEW`) and train a new one on NEW; to go on with the same run, resume_from_checkpoint",
    "lora_model_dir": "to go on from an adapter with new data, fold it into its base (`tunesmith merge ADAPTER "
    "NEW`) and train a new one on NEW; to go on with the same run, resume_from_checkpoint",
    "torch_empty_cache_steps": "memory is planned before the first step; `tunesmith check` tells the peak",
    "use_cpu": "set device_map cpu",
    "no_cuda": "set device_map cpu",
    "do_predict": "`tunesmith predict RUN` does it after training",
}
"""Name -> the reason, and what does what it was for."""

ANY: dict[str, str] = {"do_train": "", "do_eval": "", "dataloader_pin_memory": "", "disable_tqdm": "", "log_level": ""}
"""Names whose value changes nothing here, whatever it is."""


def answer(name: str) -> Callable[[Any, Any], Any]:
    """Conversion that refuses every value of ``name`` but one that asks for nothing."""

    def convert(value: Any, current: Any) -> Any:
        if name in ANY or any(value is off or (type(value) is type(off) and value == off) for off in _OFF):
            return current
        raise ConfigError(f"{name} is no setting here", remedy=named(ANSWERS[name]))

    return convert
