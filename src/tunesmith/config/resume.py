"""Which settings may differ between a checkpoint and the run that continues it.

A setting that stands in no table here must be what it was: a new setting is refused until somebody gives the reason
why it changes nothing. Everything is said by the schema's paths; facts that are no settings have names of their own.
"""

from __future__ import annotations

from collections.abc import Sequence

from tunesmith.config.names import NameTable
from tunesmith.config.resolve import Resolved
from tunesmith.errors import ConfigError, did_you_mean

_PLACE = "names a place, and says nothing about the weights"
_PERMISSION = "a permission, and no value"
_MECHANICS = "says how data is prepared, and changes no example"
_REFUSAL = "only refuses a run"
_REPORT = "says what is logged or written beside the weights"
_AFTER = "used when the last step is done"
_PROCESSES = "processes may change as long as a step has the same rows, see `check_batches`"

FREE: dict[str, str] = {
    "model.trust_remote_code": _PERMISSION,
    "model.allow_remote_code": _PERMISSION,
    "data.min_trained_share": _REFUSAL,
    "data.max_dropped": _REFUSAL,
    "data.max_cut": _REFUSAL,
    "data.max_duplicates": _REFUSAL,
    "data.cache": _MECHANICS,
    "data.cache_dir": _MECHANICS,
    "data.num_proc": _MECHANICS,
    "training.output_dir": _PLACE,
    "training.overwrite_output_dir": _PERMISSION,
    "training.resume_from_checkpoint": _PLACE,
    "training.allow_changed": _PERMISSION,
    "training.time_limit": "a run that stops early and goes on ends with the same weights",
    "training.remove_unused_columns": "accepted, and never used",
    "training.logging_steps": _REPORT + "; where it sets the steps of evaluations, those are compared",
    "training.logging_first_step": _REPORT,
    "training.eval_on_start": "a continued run is past its start",
    "training.save_strategy": _REPORT,
    "training.save_steps": _REPORT,
    "training.save_total_limit": _REPORT,
    "training.dataloader_num_workers": "who makes the batches; rows, order and random numbers stay the same",
    "training.save_merged_model": _AFTER,
    "training.final_subdir": _PLACE,
    "training.gen_every_n_steps": _REPORT,
    "training.gen_questions_file": _REPORT,
    "training.push_to_hub": _AFTER,
    "training.hub_model_id": _AFTER,
    "training.hub_private_repo": _AFTER,
    "evaluation.bootstrap_samples": _REPORT,
    "tracking.report_to": _REPORT,
    "tracking.use_wandb": _REPORT,
    "tracking.wandb_project": _REPORT,
    "tracking.wandb_entity": _REPORT,
    "tracking.wandb_run_id": _REPORT,
    "tracking.run_name": _REPORT,
    "tracking.experiment": _REPORT,
    "launch.gpu_id": _PLACE,
    "launch.distributed_training": _PROCESSES,
    "launch.num_processes": _PROCESSES,
    "launch.nodes": _PROCESSES,
    "launch.node_rank": _PROCESSES,
    "launch.rendezvous": _PLACE,
    "launch.max_restarts": _MECHANICS,
    "launch.ddp_timeout": "says how long processes wait, and changes no number",
    "launch.engine": _PROCESSES,
    "launch.nvme_path": _PLACE,
}
"""Setting -> why it changes nothing in the weights that training ends with."""

BY_FACT: dict[str, str] = {
    "model.model_name_or_path": "base",
    "model.revision": "base",
    "model.tokenizer_name_or_path": "tokenizer",
    "model.device_map": "device",
    "data.train_data": "train_data",
    "data.eval_data": "eval_data",
    "data.template": "template",
    "data.template_date": "template_date",
    "data.instruction": "instruction",
    "training.bf16": "precision",
    "training.fp16": "precision",
    "training.batching": "layout",
    "training.eval_strategy": "evaluations",
    "training.eval_steps": "evaluations",
    "training.max_steps": "total_steps",
    "training.num_train_epochs": "total_steps",
    "training.per_device_train_batch_size": "global_batch_size",
    "training.gradient_accumulation_steps": "global_batch_size",
    "training.global_batch_size": "global_batch_size",
    "launch.strategy": "strategy",
    "launch.deepspeed": "strategy_settings",
    "launch.accelerate_config": "strategy_settings",
}
"""Setting -> the fact that is compared in its place: contents for a name, a result for what leads to it."""

_SHAPES = "the checkpoint's weights and optimizer states have other shapes"
_BEST = "the best checkpoint so far was chosen by the other one"

FIXED: dict[str, str] = {
    "adapter.use_lora": _SHAPES,
    "adapter.lora_r": _SHAPES,
    "adapter.target_modules": _SHAPES,
    "adapter.target_parameters": _SHAPES,
    "adapter.exclude_modules": _SHAPES,
    "adapter.rank_pattern": _SHAPES,
    "adapter.modules_to_save": _SHAPES,
    "adapter.bias": _SHAPES,
    "adapter.fan_in_fan_out": _SHAPES,
    "adapter.use_dora": _SHAPES,
    "adapter.loraplus_lr_ratio": "the optimizer's groups of weights would be others",
    "adapter.init_lora_weights": "the checkpoint's weights began with the other one",
    "adapter.layers_pattern": _SHAPES,
    "adapter.layers_to_transform": _SHAPES,
    "adapter.peft_type": _SHAPES,
    "adapter.task_type": _SHAPES,
    "data.streaming": "the checkpoint's place in the data would be another",
    "training.optim": "the checkpoint's states belong to the other optimizer",
    "training.optim_args": "the checkpoint's optimizer was made with the other ones",
    "training.metric_for_best_model": _BEST,
    "training.greater_is_better": _BEST,
    "global_batch_size": "the checkpoint's place in the data would be another",
    "precision": "the checkpoint's states, those of a loss scaler included, belong to the other one",
    "strategy": "each strategy lays out states in its own way",
    "strategy_settings": "the checkpoint's states were laid out by the other ones",
}
"""Setting or fact whose change nobody can accept -> why."""

OPTIMIZATION = frozenset(
    f"training.{name}"
    for name in (
        "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_ratio", "warmup_steps", "weight_decay",
        "adam_beta1", "adam_beta2", "adam_epsilon",
    )
)  # fmt: skip
"""Settings that a checkpoint's optimizer and schedule hold as well, so that an accepted change must be put there."""

FACTS = frozenset(BY_FACT.values()) | {"examples"}
VERSIONS = "versions"
"""Accepts the change of any version."""


def flat(path: str) -> str:
    """The name by which people know a setting or a fact."""
    return path.rpartition(".")[2]


def allowed_changes(resolved: Resolved, libraries: Sequence[str]) -> set[str]:
    """The flat names of ``allow_changed``, other spellings of settings included.

    Args:
        resolved: the run's configuration.
        libraries: further names, those of versions.

    Raises:
        ConfigError: nothing has that name.
    """
    table, further = NameTable(), {*FACTS, *libraries, VERSIONS}
    allowed: set[str] = set()
    for name in resolved.config.training.allow_changed or ():
        if name in further:
            allowed.add(name)
        elif name in table:
            path = table.find(name, "").path
            allowed |= {flat(path), BY_FACT.get(path, flat(path))}
        else:
            raise ConfigError(
                f"allow_changed: no setting, version or file is called {name!r}",
                where=resolved.origins["training.allow_changed"],
                remedy=did_you_mean(name, [*table.names(), *further], "use the names that the refusal lists"),
            )
    return allowed
