"""RunConfig to the keywords of the trainer's arguments: a pure function. No library is imported here."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from tunesmith.config.evaluation import evaluates
from tunesmith.config.resolve import Resolved
from tunesmith.config.strategy import Strategy
from tunesmith.errors import ModelError
from tunesmith.model.device import Device
from tunesmith.notices import notify

if TYPE_CHECKING:
    from tunesmith.model.precision import Precision
    from tunesmith.train.plan import Plan


def eval_interval(resolved: Resolved) -> tuple[str, int]:
    """Evaluation strategy (``no``, ``steps``, ``epoch``) and steps between evaluations."""
    training = resolved.config.training
    strategy = training.eval_strategy
    if not evaluates(resolved):
        strategy = "no"
    elif strategy == "auto":
        strategy = "steps"
    return strategy, training.eval_steps or training.logging_steps


def best_metric(resolved: Resolved) -> str | None:
    """The metric that decides what is best, or None when nothing depends on it."""
    training = resolved.config.training
    if eval_interval(resolved)[0] == "no":
        return None
    decides = training.load_best_model_at_end or training.save_strategy == "best"
    if not (decides or training.early_stopping_patience or training.metric_for_best_model):
        return None
    metric = training.metric_for_best_model or "eval_loss"
    return metric if metric.startswith("eval_") else f"eval_{metric}"


def greater_is_better(resolved: Resolved) -> bool | None:
    """Direction of the best metric: as set, else smaller for losses and rates of failure, greater for all others."""
    metric = best_metric(resolved)
    if metric is None:
        return None
    asked = resolved.config.training.greater_is_better
    return asked if asked is not None else not smaller_is_better(metric)


def smaller_is_better(metric: str) -> bool:
    """Whether a metric is one of which less is better: a loss, or a rate of failures."""
    return metric.endswith(("loss", "failure_rate"))


def sampling(resolved: Resolved) -> str:
    """How batches draw their rows, in transformers' words."""
    if resolved.config.data.streaming:
        return "sequential"
    return "group_by_length" if resolved.config.training.batching == "length_grouped" else "random"


def strategy_keywords(strategy: Strategy, *, in_pieces: bool = False) -> dict[str, Any]:
    """What makes the trainer share a run's work in this way.

    Args:
        strategy: the way.
        in_pieces: whether the weights are spread while they load (``model.spread.loads_in_pieces``).
    """
    if strategy.uses_deepspeed:
        return {"deepspeed": copy.deepcopy(strategy.deepspeed)}  # the trainer fills in what is "auto"
    if strategy.name == "fsdp2":
        ours = {"version": 2, "state_dict_type": "FULL_STATE_DICT"}
        return {"fsdp": True, "fsdp_config": ours | strategy.fsdp | {"cpu_ram_efficient_loading": in_pieces}}
    return {}


def check_optimizer(resolved: Resolved, device: Device) -> None:
    """Say what an optimizer that pages its states does without a GPU; refuse arithmetic that the device does not have.

    Raises:
        ModelError: the optimizer is one of bitsandbytes, which has no kernels for Apple's device; or tf32 is on without
            a CUDA device.
    """
    optim = resolved.config.training.optim
    if device.kind == "mps" and any(part in optim for part in ("paged", "8bit", "bnb", "ademamix")):
        raise ModelError(
            f"the optimizer {optim} needs bitsandbytes, which has no kernels for Apple's device (mps)",
            where=resolved.origins["training.optim"],
            remedy="set optim adamw_torch, or device_map cpu",
        )
    if resolved.config.training.tf32 and device.kind != "cuda":
        raise ModelError(
            f"tf32 needs a CUDA device of the Ampere generation or later, and the run computes on {device.kind}",
            where=resolved.origins["training.tf32"],
            remedy="leave tf32 out",
        )
    if optim.startswith("paged_") and device.kind != "cuda":
        notify(f"{optim}: there is no GPU memory to page, so the optimizer's states stay where they are")


def sft_keywords(
    resolved: Resolved, device: Device, precision: Precision, plan: Plan, *, resuming: bool
) -> dict[str, Any]:
    """Keywords for ``trainer.Arguments``, complete but for ``strategy_keywords``: nothing that matters is left to the
    defaults of that class.

    Args:
        resolved: the run's configuration.
        device: where the run computes.
        precision: the run's arithmetic.
        plan: the run's steps, global batch size already taken into account.
        resuming: whether the run continues from a checkpoint.
    """
    return {
        "output_dir": resolved.config.training.output_dir,
        "bf16": precision.bf16,
        "fp16": precision.fp16,
        "tf32": resolved.config.training.tf32,
        "use_cpu": device.use_cpu,
        "device_index": device.index,
        "ddp_timeout": resolved.config.launch.ddp_timeout,
        "dataloader_pin_memory": device.kind == "cuda",
        "accelerator_config": {"non_blocking": device.kind == "cuda"},  # batches do not wait for the step before
        "restore_callback_states_from_checkpoint": resuming,
        **_batches(resolved, plan),
        **_optimization(resolved, plan),
        **_intervals(resolved, resuming=resuming),
        **_tracking(resolved),
    }


def _batches(resolved: Resolved, plan: Plan) -> dict[str, Any]:
    """Which rows make a step; they arrive as finished examples, which nobody may change."""
    training = resolved.config.training
    return {
        "num_train_epochs": training.num_train_epochs,
        "max_steps": training.max_steps,
        "per_device_train_batch_size": training.per_device_train_batch_size,
        "per_device_eval_batch_size": training.per_device_eval_batch_size,
        "gradient_accumulation_steps": plan.gradient_accumulation_steps,
        "seed": training.seed,
        "data_seed": training.data_seed if training.data_seed is not None else training.seed,
        "full_determinism": training.full_determinism,
        "dataloader_num_workers": training.dataloader_num_workers,
        "train_sampling_strategy": sampling(resolved),
        "length_column_name": "length",
        "remove_unused_columns": False,  # the collator takes the rows apart, origins included
        "max_length": None,  # examples arrive cut to data.max_length
        "packing": False,
        "dataset_kwargs": {"skip_prepare_dataset": True},
    }


def _optimization(resolved: Resolved, plan: Plan) -> dict[str, Any]:
    """What a step does to the weights."""
    training = resolved.config.training
    return {
        "learning_rate": training.learning_rate,
        "lr_scheduler_type": training.lr_scheduler_type,
        "lr_scheduler_kwargs": training.lr_scheduler_kwargs or None,
        "warmup_steps": plan.warmup_steps,
        "weight_decay": training.weight_decay,
        "adam_beta1": training.adam_beta1,
        "adam_beta2": training.adam_beta2,
        "adam_epsilon": training.adam_epsilon,
        "max_grad_norm": training.max_grad_norm,
        "optim": training.optim,
        "optim_args": ",".join(f"{name}={value}" for name, value in training.optim_args.items()) or None,
        "neftune_noise_alpha": training.neftune_noise_alpha,
        "activation_checkpointing": training.gradient_checkpointing,
        "activation_checkpointing_kwargs": {"use_reentrant": False} if training.gradient_checkpointing else None,
        "average_tokens_across_devices": True,
        "ddp_find_unused_parameters": False,  # every trained weight gets a gradient at every step
    }


def _intervals(resolved: Resolved, *, resuming: bool) -> dict[str, Any]:
    """When the run logs, evaluates and saves, and which evaluation counts as the best."""
    training = resolved.config.training
    eval_strategy, eval_steps = eval_interval(resolved)
    return {
        "logging_strategy": "steps",
        "logging_steps": training.logging_steps,
        "logging_first_step": training.logging_first_step,
        "logging_nan_inf_filter": False,
        "eval_strategy": eval_strategy,
        "eval_steps": eval_steps if eval_strategy == "steps" else None,
        "eval_on_start": training.eval_on_start and eval_strategy != "no" and not resuming,
        "save_strategy": training.save_strategy,
        "save_steps": training.save_steps,
        "save_total_limit": None,  # checkpoints rotate only after the new one is complete
        "load_best_model_at_end": training.load_best_model_at_end and eval_strategy != "no",
        "metric_for_best_model": best_metric(resolved),
        "greater_is_better": greater_is_better(resolved),
    }


def _tracking(resolved: Resolved) -> dict[str, Any]:
    """Who is told; trackers are callbacks of ours (``trackers.py``)."""
    return {
        "report_to": "none",
        "run_name": resolved.config.tracking.run_name,
        "disable_tqdm": True,
        "push_to_hub": False,
    }
