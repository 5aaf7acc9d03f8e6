"""Rules between settings of model, data and training."""

from __future__ import annotations

import datetime

from tunesmith.config.evaluation import evaluates, is_of_tokens
from tunesmith.config.model_facts import max_positions
from tunesmith.config.resolve import Resolved
from tunesmith.config.rule import Problem, Rules
from tunesmith.config.urls import has_credentials, without_credentials
from tunesmith.errors import did_you_mean

OPTIMIZERS = frozenset(
    """adamw_torch adamw_torch_fused adamw_torch_xla adamw_torch_npu_fused adafactor adamw_anyprecision
    adamw_torch_4bit adamw_torch_8bit ademamix sgd adagrad adamw_bnb_8bit adamw_8bit ademamix_8bit lion_8bit
    lion_32bit paged_adamw_32bit paged_adamw_8bit paged_ademamix_32bit paged_ademamix_8bit paged_lion_32bit
    paged_lion_8bit rmsprop rmsprop_bnb rmsprop_bnb_8bit rmsprop_bnb_32bit galore_adamw galore_adamw_8bit
    galore_adafactor galore_adamw_layerwise galore_adamw_8bit_layerwise galore_adafactor_layerwise lomo
    adalomo grokadamw schedule_free_radam schedule_free_adamw schedule_free_sgd apollo_adamw
    apollo_adamw_layerwise stable_adamw""".split()
)
RULES = Rules()


@RULES.rule
def one_quantization(resolved: Resolved) -> Problem | None:
    quantization = resolved.config.quantization
    if quantization.load_in_4bit and quantization.load_in_8bit:
        return Problem(
            ("quantization.load_in_4bit", "quantization.load_in_8bit"),
            "load_in_4bit and load_in_8bit are both on",
            "choose one of them",
        )
    return None


@RULES.rule
def quantized_weights_are_frozen(resolved: Resolved) -> Problem | None:
    quantization = resolved.config.quantization
    if resolved.config.adapter.use_lora or not (quantization.load_in_4bit or quantization.load_in_8bit):
        return None
    name = "load_in_4bit" if quantization.load_in_4bit else "load_in_8bit"
    return Problem(
        ("adapter.use_lora", f"quantization.{name}"),
        f"full fine-tuning (use_lora false) cannot train weights held quantized ({name})",
        f"set use_lora true, or {name} false",
    )


@RULES.rule
def one_precision(resolved: Resolved) -> Problem | None:
    training = resolved.config.training
    if training.bf16 and training.fp16:
        return Problem(("training.bf16", "training.fp16"), "bf16 and fp16 are both on", "choose one of them")
    return None


@RULES.rule
def early_stopping_needs_evaluation(resolved: Resolved) -> Problem | None:
    training = resolved.config.training
    if training.early_stopping_patience is None or evaluates(resolved):
        return None
    return Problem(
        ("training.early_stopping_patience", "training.eval_strategy", "data.eval_data"),
        "early stopping has no evaluation to watch",
        "give eval_data (or dev_split), or leave out early_stopping_patience",
    )


@RULES.rule
def best_model_needs_evaluation(resolved: Resolved) -> Problem | None:
    training = resolved.config.training
    if evaluates(resolved):
        return None
    if training.save_strategy == "best":
        return Problem(
            ("training.save_strategy", "training.eval_strategy", "data.eval_data"),
            "save_strategy best has no evaluation to choose by",
            "give eval_data (or dev_split), or save_strategy steps",
        )
    if not training.load_best_model_at_end:
        return None
    return Problem(
        ("training.load_best_model_at_end", "training.eval_strategy", "data.eval_data"),
        "load_best_model_at_end has no evaluation to choose by",
        "give eval_data (or dev_split), or switch load_best_model_at_end off",
    )


@RULES.rule
def best_model_is_saved(resolved: Resolved) -> Problem | None:
    training = resolved.config.training
    if not (training.load_best_model_at_end and evaluates(resolved)) or training.save_strategy == "best":
        return None
    eval_by = "steps" if training.eval_strategy == "auto" else training.eval_strategy
    eval_steps = training.eval_steps or training.logging_steps
    if eval_by != training.save_strategy:
        return Problem(
            ("training.save_strategy", "training.eval_strategy"),
            f"the best model may never be saved: evaluation is by {eval_by}, saving by {training.save_strategy}",
            "give both the same strategy",
        )
    if eval_by == "steps" and training.save_steps % eval_steps:
        return Problem(
            ("training.save_steps", "training.eval_steps"),
            f"save_steps {training.save_steps} is not a multiple of eval_steps {eval_steps}, "
            "so the best model may never be saved",
            f"set save_steps {max(1, round(training.save_steps / eval_steps)) * eval_steps}",
        )
    return None


@RULES.rule
def metric_is_computed(resolved: Resolved) -> Problem | None:
    metric = resolved.config.training.metric_for_best_model
    if metric is None or is_of_tokens(metric) or resolved.config.evaluation.generate:
        return None
    return Problem(
        ("training.metric_for_best_model", "evaluation.generate"),
        f"{metric} comes from generated answers, and evaluation.generate is off",
        "set evaluation.generate true, or metric_for_best_model eval_loss or eval_token_accuracy",
    )


@RULES.rule
def best_metric_at_every_evaluation(resolved: Resolved) -> Problem | None:
    metric, evaluation = resolved.config.training.metric_for_best_model, resolved.config.evaluation
    if metric is None or is_of_tokens(metric) or evaluation.generate_every == 1:
        return None
    return Problem(
        ("training.metric_for_best_model", "evaluation.generate_every"),
        f"{metric} is missing at evaluations without generation (generate_every {evaluation.generate_every})",
        "set generate_every 1 and evaluate less often",
    )


@RULES.rule
def sample_has_a_size(resolved: Resolved) -> Problem | None:
    evaluation = resolved.config.evaluation
    if evaluation.generate_seed is None or evaluation.generate_limit is not None:
        return None
    return Problem(
        ("evaluation.generate_seed", "evaluation.generate_limit"),
        "generate_seed draws a sample, and nothing says how large it is",
        "give generate_limit",
    )


@RULES.rule
def template_date_is_a_day(resolved: Resolved) -> Problem | None:
    written = resolved.config.data.template_date
    try:
        datetime.date.fromisoformat(written or "2000-01-01")
    except ValueError as error:
        return Problem(("data.template_date",), f"template_date {written} is no day: {error}", "write it YYYY-MM-DD")
    return None


@RULES.rule
def warmup_fits(resolved: Resolved) -> Problem | None:
    training = resolved.config.training
    if 0 < training.max_steps < training.warmup_steps:
        return Problem(
            ("training.warmup_steps", "training.max_steps"),
            f"warmup_steps {training.warmup_steps} is longer than the training (max_steps {training.max_steps})",
            "shorten the warmup",
        )
    return None


@RULES.rule
def length_fits_positions(resolved: Resolved) -> Problem | None:
    positions = max_positions(resolved.config.model.model_name_or_path)
    length = resolved.config.data.max_length
    if positions is None or length <= positions:
        return None
    return Problem(
        ("data.max_length", "model.model_name_or_path"),
        f"max_length {length} is beyond the model's {positions} positions",
        f"set max_length {positions} or less",
    )


@RULES.rule
def known_optimizer(resolved: Resolved) -> Problem | None:
    optim = resolved.config.training.optim
    if optim in OPTIMIZERS:
        return None
    remedy = did_you_mean(optim, OPTIMIZERS, "common ones are adamw_torch and paged_adamw_8bit")
    return Problem(("training.optim",), f"unknown optimizer {optim!r}", remedy)


_OPTIM_ARGS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("sgd",), ("momentum", "dampening", "weight_decay", "nesterov")),
    (("adagrad",), ("lr_decay", "weight_decay", "eps")),
    (("rmsprop",), ("momentum", "alpha", "eps", "weight_decay", "centered")),
    (
        ("ademamix", "ademamix_8bit", "paged_ademamix_32bit", "paged_ademamix_8bit"),
        ("beta1", "beta2", "beta3", "alpha", "eps", "t_alpha", "t_beta3"),
    ),
    (("adamw_torch_4bit", "adamw_torch_8bit"), ("block_size", "bf16_stochastic_round")),
    (("schedule_free_radam", "schedule_free_adamw", "schedule_free_sgd"), ("weight_lr_power", "r")),
    (("grokadamw",), ("alpha_init", "lamb", "gamma", "grokking_signal_decay_rate", "gradient_clipping")),
    (("stable_adamw",), ("max_lr", "kahan_sum", "decouple_lr")),
)
"""Optimizers and the arguments that transformers reads for them; all others it would drop in silence."""


@RULES.rule
def optimizer_reads_its_arguments(resolved: Resolved) -> Problem | None:
    training = resolved.config.training
    known = next((arguments for names, arguments in _OPTIM_ARGS if training.optim in names), ())
    lost = [name for name in training.optim_args if name not in known]
    if not lost:
        return None
    remedy = did_you_mean(lost[0], known, f"it reads {', '.join(known)}" if known else "leave optim_args out")
    return Problem(
        ("training.optim_args", "training.optim"), f"the optimizer {training.optim} reads no {lost[0]!r}", remedy
    )


@RULES.rule
def optimizer_of_named_modules(resolved: Resolved) -> Problem | None:
    optim = resolved.config.training.optim
    if not optim.startswith(("galore_", "apollo_")):
        return None
    return Problem(
        ("training.optim",),
        f"{optim} trains all weights of some modules in a smaller space, which is not offered here",
        "train adapters (use_lora true), or set optim paged_adamw_8bit or adafactor for smaller states",
    )


@RULES.rule
def plateau_needs_evaluation(resolved: Resolved) -> Problem | None:
    if resolved.config.training.lr_scheduler_type != "reduce_lr_on_plateau" or evaluates(resolved):
        return None
    return Problem(
        ("training.lr_scheduler_type", "training.eval_strategy", "data.eval_data"),
        "reduce_lr_on_plateau has no evaluation to watch",
        "give eval_data (or dev_split), or another lr_scheduler_type",
    )


@RULES.rule
def global_batch_divides(resolved: Resolved) -> Problem | None:
    training = resolved.config.training
    if training.global_batch_size is None:
        return None
    if training.global_batch_size % training.per_device_train_batch_size:
        return Problem(
            ("training.global_batch_size", "training.per_device_train_batch_size"),
            f"global_batch_size {training.global_batch_size} is not a multiple of "
            f"per_device_train_batch_size {training.per_device_train_batch_size}",
            "change one of them",
        )
    if resolved.explicit("training.gradient_accumulation_steps"):
        return Problem(
            ("training.global_batch_size", "training.gradient_accumulation_steps"),
            "global_batch_size decides gradient_accumulation_steps, and both are given",
            "leave one of them out",
        )
    return None


@RULES.rule
def sample_questions_have_a_time(resolved: Resolved) -> Problem | None:
    training = resolved.config.training
    if training.gen_questions_file and not training.gen_every_n_steps:
        return Problem(
            ("training.gen_questions_file", "training.gen_every_n_steps"),
            "gen_questions_file is given and nothing says when to answer its questions",
            "give gen_every_n_steps",
        )
    return None


@RULES.rule
def streaming_reads_in_order(resolved: Resolved) -> Problem | None:
    data, training = resolved.config.data, resolved.config.training
    if not data.streaming:
        return None
    held_out = data.dev_split > 0 and not (data.eval_data or data.eval_split)
    for path, hinders, remedy in (
        ("training.max_steps", training.max_steps <= 0, "set max_steps: how many rows there are is not known"),
        ("data.dev_split", held_out, "give eval_data"),
        ("training.batching", training.batching == "length_grouped", "set batching auto, padded, packed or unpadded"),
        ("training.group_by_prefix", training.group_by_prefix, "leave it out: rows are read in their order"),
        ("training.dataloader_num_workers", training.dataloader_num_workers > 0, "set dataloader_num_workers 0"),
    ):
        if hinders:
            return Problem(
                ("data.streaming", path), f"streaming does not go with {path.rpartition('.')[2]} as it is", remedy
            )
    return None


@RULES.rule
def one_order_of_rows(resolved: Resolved) -> Problem | None:
    training = resolved.config.training
    if training.group_by_prefix and training.batching in ("length_grouped", "packed"):
        return Problem(
            ("training.group_by_prefix", "training.batching"),
            f"group_by_prefix and batching {training.batching} both decide which rows lie together",
            "set batching auto, or leave group_by_prefix out",
        )
    return None


@RULES.rule
def one_way_to_hold_out(resolved: Resolved) -> Problem | None:
    data = resolved.config.data
    if data.dev_group_by is not None and data.dev_stratify_by is not None:
        return Problem(
            ("data.dev_group_by", "data.dev_stratify_by"),
            "rows cannot be held out by group and by label at once",
            "leave one of them out",
        )
    chosen = "dev_group_by" if data.dev_group_by is not None else "dev_stratify_by"
    if (data.dev_group_by or data.dev_stratify_by) is None or data.dev_split > 0:
        return None
    return Problem(
        (f"data.{chosen}", "data.dev_split"), f"{chosen} says how dev_split holds out rows, which is 0", "set dev_split"
    )


@RULES.rule
def new_tokens_are_words(resolved: Resolved) -> Problem | None:
    data = resolved.config.data
    given = [*data.new_tokens, *data.new_special_tokens]
    wrong = [token for token in given if token != token.strip() or not token or given.count(token) > 1]
    if not wrong:
        return None
    return Problem(
        ("data.new_tokens", "data.new_special_tokens"),
        f"{wrong[0]!r} cannot be a new token: it is empty, has blanks around it or is named twice",
        "name each new token once, without blanks around it",
    )


@RULES.rule
def new_tokens_lie_on_every_device(resolved: Resolved) -> Problem | None:
    data, launch, model = resolved.config.data, resolved.config.launch, resolved.config.model
    if not data.new_tokens and not data.new_special_tokens:
        return None
    adapter = resolved.config.adapter
    # PEFT makes single rows of an embedding that is there whole, or on CUDA alone; whole layers it can train
    rows_alone = adapter.use_lora and not adapter.modules_to_save
    hinders = {
        "launch.strategy": launch.strategy in ("fsdp2", "zero3") and rows_alone,
        "launch.deepspeed": launch.deepspeed is not None,
        "launch.accelerate_config": launch.accelerate_config is not None,
        "model.model_class": model.model_class is not None,
    }
    for path, does in hinders.items():
        if does:
            name = path.partition(".")[2]
            return Problem(
                (path, "data.new_tokens"),
                f"new tokens do not go with {name} as it is" + (" and an adapter" if name == "strategy" else ""),
                "leave it out, or add the tokens to the model first and save it"
                + ("; embedding and head can be trained whole (modules_to_save)" if name == "strategy" else ""),
            )
    return None


@RULES.rule
def names_hold_no_credentials(resolved: Resolved) -> Problem | None:
    data = resolved.config.data
    for path, given in (("data.train_data", data.train_data), ("data.eval_data", data.eval_data)):
        for name in [given] if isinstance(given, str) else given or ():
            if has_credentials(name):
                return Problem(
                    (path,),
                    f"a URL may hold no credentials: {without_credentials(name)}",
                    "give them in environment variables, as the store's own tools read them",
                )
    return None


@RULES.rule
def upload_has_a_name(resolved: Resolved) -> Problem | None:
    training = resolved.config.training
    if training.push_to_hub and not training.hub_model_id:
        return Problem(("training.push_to_hub",), "push_to_hub has no repository", "give hub_model_id")
    return None


@RULES.rule
def chat_loss_needs_turns(resolved: Resolved) -> Problem | None:
    data = resolved.config.data
    if data.format == "text" and data.loss_on in ("assistant", "last_assistant"):
        return Problem(
            ("data.loss_on", "data.format"),
            f"loss_on {data.loss_on} needs chat turns, and text rows have none",
            "set loss_on completion or all",
        )
    return None
