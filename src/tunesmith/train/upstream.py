"""What this room touches of transformers, TRL, accelerate and torch beyond their public interface: each thing once,
with the reason, a link, and the version up to which it was looked at.

A hook that is renamed upstream would stop acting without a word. So everything that is overridden is marked
(``@override``), and ``check_overrides`` refuses libraries in which it is gone, or in which nothing calls it any more.
Where a version is newer than in ``TOUCHED``, a test fails: look at the entry again, then raise its bound.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from types import CodeType
from typing import Any

import torch

from tunesmith.errors import ModelError

_TRANSFORMERS = "https://github.com/huggingface/transformers"
_TRAINER = f"{_TRANSFORMERS}/blob/v5.23.0/src/transformers/trainer.py"


@dataclass(frozen=True, slots=True)
class Touched:
    """One thing that is not ours to touch.

    Attributes:
        name: the thing, by its importable name; of an environment variable ``module:VARIABLE``, where it is read.
        reason: why it has to be touched.
        link: where upstream tells of it.
        until: the versions in which it was looked at.
    """

    name: str
    reason: str
    link: str
    until: str


TOUCHED: tuple[Touched, ...] = (
    Touched(
        "deepspeed.ops.__compatible_ops__",
        "on CPUs it compiles an operator that waits in busy loops, see processes.leave_sums_to_gloo",
        "https://github.com/deepspeedai/DeepSpeed/blob/master/deepspeed/comm/torch.py",
        "deepspeed<0.20",
    ),
    Touched(
        "torch.distributed.distributed_c10d._world",
        "a group that is freed while its threads work waits for them for ever, see processes.disconnect",
        "https://github.com/pytorch/pytorch/blob/v2.13.0/torch/csrc/distributed/c10d/ProcessGroupGloo.cpp",
        "torch<2.14",
    ),
    Touched(
        "transformers.Trainer.create_accelerator_and_postprocess",
        "accelerate must look at its FSDP plugin on cpus as well, see fsdp.possible_on_cpu",
        "https://github.com/huggingface/accelerate/pull/3394",
        "transformers<5.24",
    ),
    Touched(
        "accelerate.PartialState._shared_state",
        "only processes on accelerators are asked for their FSDP plugin, see fsdp.possible_on_cpu",
        "https://github.com/huggingface/accelerate/pull/3394",
        "accelerate<1.16",
    ),
    Touched(
        "accelerate.utils.fsdp_utils.fsdp2_load_full_state_dict",
        "it keeps the whole weights until the last piece is made and sends all of them to everyone, see fsdp.hand_out",
        "https://github.com/huggingface/accelerate/blob/v1.15.0/src/accelerate/utils/fsdp_utils.py",
        "accelerate<1.16",
    ),
    Touched(
        "transformers.Trainer._prepare_for_training",
        "the moment at which accelerate spreads weights that lie in one process, see fsdp.handing_out",
        _TRAINER,
        "transformers<5.24",
    ),
    Touched(
        "transformers.Trainer._get_train_sampler",
        "rows of like lengths together in an order that order.py knows too, and rows that only fill batches up",
        f"{_TRANSFORMERS}/pull/9574",
        "transformers<5.24",
    ),
    Touched(
        "transformers.Trainer._get_eval_sampler",
        "with group_by_length, transformers reorders evaluation rows as well",
        f"{_TRANSFORMERS}/pull/33514",
        "transformers<5.24",
    ),
    Touched(
        "transformers.Trainer._get_num_items_in_batch",
        "a step's loss is divided by the weight of its labelled tokens, not by their number",
        f"{_TRANSFORMERS}/pull/34191",
        "transformers<5.24",
    ),
    Touched(
        "transformers.Trainer.model_accepts_loss_kwargs",
        "compute_loss has divided by the tokens of the whole step; the trainer must not divide by the passes again",
        f"{_TRANSFORMERS}/pull/43651",
        "transformers<5.24",
    ),
    Touched(
        "transformers.Trainer._get_grad_norm",
        "the last place before the optimizer's step: nothing upstream stops at a loss or gradient that is not finite",
        _TRAINER,
        "transformers<5.24",
    ),
    Touched(
        "transformers.Trainer._determine_best_metric",
        "a best evaluation between two planned checkpoints is reported and lost",
        f"{_TRANSFORMERS}/issues/34584",
        "transformers<5.24",
    ),
    Touched(
        "transformers.Trainer._save_checkpoint",
        "SFTTrainer writes a model card into each checkpoint; and ours is complete only with its manifest",
        "https://github.com/huggingface/trl/blob/v1.16.0/trl/trainer/sft_trainer.py",
        "transformers<5.24",
    ),
    Touched(
        "transformers.Trainer._save",
        "it leaves a pickle of its arguments",
        f"{_TRANSFORMERS}/pull/43140",
        "transformers<5.24",
    ),
    Touched(
        "transformers.Trainer._load_rng_state",
        "a process for which the checkpoint has no random state goes on with none",
        f"{_TRANSFORMERS}/pull/11582",
        "transformers<5.24",
    ),
    Touched(
        "transformers.Trainer._run_epoch",
        "a run that is resumed from its last checkpoint trains one step more",
        f"{_TRANSFORMERS}/blob/v5.23.0/src/transformers/trainer.py",
        "transformers<5.24",
    ),
    Touched(
        "transformers.Trainer._init_training_state",
        "the intervals of the checkpoint win over this run's, and a best checkpoint that has moved or gone is dropped",
        _TRAINER,
        "transformers<5.24",
    ),
    Touched(
        "transformers.Trainer._load_callback_state",
        "callbacks are made with the checkpoint's settings, not with this run's",
        _TRAINER,
        "transformers<5.24",
    ),
    Touched(
        "transformers.Trainer._load_from_checkpoint",
        "a checkpoint of PiSSA or OLoRA holds the adapter for the untouched base, twice as wide as the trained one",
        _TRAINER,
        "transformers<5.24",
    ),
    Touched(
        "transformers.Trainer._load_best_model",
        "it loads whatever lies there, and passes over a best checkpoint that is gone",
        _TRAINER,
        "transformers<5.24",
    ),
    Touched(
        "transformers.Trainer._load_optimizer_and_scheduler",
        "it brings the checkpoint's learning rate even where another one, or more steps, are meant",
        _TRAINER,
        "transformers<5.24",
    ),
    Touched(
        "transformers.Trainer._tr_loss",
        "the losses since the last logged line are in no checkpoint",
        _TRAINER,
        "transformers<5.24",
    ),
    Touched(
        "transformers.Trainer._globalstep_last_logged",
        "the last logged step is in no checkpoint",
        _TRAINER,
        "transformers<5.24",
    ),
    Touched(
        "transformers.TrainingArguments._setup_devices",
        "it takes cuda:0 and replicates the model over all devices that one process sees",
        f"{_TRANSFORMERS}/blob/v5.23.0/src/transformers/training_args.py",
        "transformers<5.24",
    ),
    Touched(
        "transformers.integrations.integration_utils:_initialized",
        "Trackio's callback would begin a run of its own name beside ours, see tracker_runs.Trackio",
        f"{_TRANSFORMERS}/blob/v5.23.0/src/transformers/integrations/integration_utils.py",
        "transformers<5.24",
    ),
    Touched(
        "trl.trainer.sft_trainer.add_fused_lm_head",
        "it replaces the model's forward by one with a head that our loss never asks for, see constructed",
        "https://github.com/huggingface/trl/pull/5575",
        "trl<1.17",
    ),
    Touched(
        "trl.SFTTrainer.__init__",
        "it rounds trained weights over a quantized base to bfloat16, where small updates vanish, see constructed",
        "https://github.com/huggingface/trl/issues/7268",
        "trl<1.17",
    ),
    Touched(
        "transformers.is_wandb_available",
        "TRL imports wandb, where it is installed, for model cards that it never gets to write, see lean_trl",
        "https://github.com/huggingface/trl/blob/v1.16.0/trl/trainer/base_trainer.py",
        "trl<1.17",
    ),
    Touched(
        "trl.import_utils.PACKAGE_DISTRIBUTION_MAPPING",
        "TRL opens the records of all that is installed to look up the version of transformers, see lean_trl",
        "https://github.com/huggingface/trl/blob/v1.16.0/trl/import_utils.py",
        "trl<1.17",
    ),
    Touched(
        "accelerate.utils.other.is_deepspeed_available",
        "unwrapping any model imports DeepSpeed, where it is installed, to compare with its engine, see lean_trl",
        "https://github.com/huggingface/accelerate/blob/v1.15.0/src/accelerate/utils/other.py",
        "accelerate<1.16",
    ),
    Touched(
        "accelerate.utils.dataclasses:ACCELERATE_CONFIG_DS_FIELDS",
        "accelerate launch refuses its own fields beside a whole DeepSpeed file, see strategy.claim_deepspeed_fields",
        "https://github.com/huggingface/accelerate/pull/941",
        "accelerate<1.16",
    ),
    Touched(
        "torch.distributed.rendezvous:TORCHELASTIC_USE_AGENT_STORE",
        "after a restart, the store that all starts share holds addresses of the dead, see processes.use_fresh_store",
        "https://github.com/pytorch/pytorch/issues/135712",
        "torch<2.14",
    ),
)


def check_overrides(cls: type, callers: Collection[type] = (), sets: Collection[str] = ()) -> None:
    """Refuse libraries in which something that a class overrides is gone, or is not used any more.

    Args:
        cls: a class of ours.
        callers: library classes that call what it overrides, where its own bases do not.
        sets: attributes that it sets for its bases to read.

    Raises:
        ModelError: with what is missing.
    """
    bases = [base for base in cls.__mro__[1:] if base is not object]
    used = names_used((*bases, *callers))
    for name in overrides(cls):
        if not any(name in vars(base) for base in bases):
            raise _changed(cls, f"no {name} any more")
        if not used.get(name, set()) - {name}:  # a method that only hands on to its own base is no use of it
            raise _changed(cls, f"{name}, and nothing calls it any more")
    for name in sets:
        if name not in used:
            raise _changed(cls, f"{name}, and nothing reads it any more")


def overrides(cls: type) -> list[str]:
    """Names that a class marks as overridden."""
    return [name for name, member in vars(cls).items() if getattr(_function_of(member), "__override__", False)]


@cache
def names_used(classes: tuple[type, ...]) -> dict[str, set[str]]:
    """Every name that the methods of some classes mention -> the methods that do."""
    used: dict[str, set[str]] = {}
    for cls in classes:
        for method, member in vars(cls).items():
            code = getattr(inspect.unwrap(_function_of(member)), "__code__", None)
            for name in _names_of(code) if code is not None else ():
                used.setdefault(name, set()).add(method)
    return used


def _names_of(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_of(constant)


def _function_of(member: Any) -> Any:
    """The function behind a method, a property or a cached one."""
    for attribute in ("fget", "func", "__func__"):
        member = getattr(member, attribute, None) or member
    return member


def _changed(cls: type, what: str) -> ModelError:
    library = cls.__mro__[1].__module__.partition(".")[0]
    return ModelError(
        f"the installed {library} has {what}, and training here rests on it ({cls.__name__})",
        remedy="install the versions of constraints.txt",
    )


@contextmanager
def constructed(model: torch.nn.Module) -> Iterator[None]:
    """Leave a model as it was while SFTTrainer's constructor has it.

    That one rounds trained weights over a quantized base to bfloat16, and puts a forward in the place of the model's
    that knows a fused head. Weights get their values and types back; the forward is again what it was. So are the
    settings of routers, which it switches on by the configuration's own coefficient: saved so, a model asks every later
    user for logits of its routers, and generation with padding crashes.
    """
    trained = {name: parameter.data for name, parameter in model.named_parameters() if parameter.requires_grad}
    base: Any = base_of(model)
    routers = router_settings(base)
    former: Callable[..., Any] | None = vars(base).get("forward")
    yield
    for name, parameter in model.named_parameters():
        if name in trained:
            parameter.data = trained[name]
    if former is not None:
        base.forward = former
    else:
        vars(base).pop("forward", None)
    for name, value in routers.items():
        setattr(base.config.get_text_config(), name, value)


def router_settings(model: Any) -> dict[str, Any]:
    """What the model's configuration says of its routers' logits and of the loss that balances them."""
    config = model.config.get_text_config()
    names = ("output_router_logits", "router_aux_loss_coef")
    return {name: getattr(config, name) for name in names if hasattr(config, name)}


def base_of(model: Any) -> Any:
    """The model itself, out of the adapter that wraps it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
