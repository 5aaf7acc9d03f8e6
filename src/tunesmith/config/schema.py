"""The settings of one run: typed, frozen sections with a docstring under every field.

Every leaf has one path (``training.learning_rate``) and one flat name, its last part, which is unique in the whole
schema and is Hugging Face's name wherever Hugging Face has one. This module reads no file and imports no torch.
"""

# ruff: noqa: RUF012 - pydantic copies the defaults of its models
from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from tunesmith.config.kinds import (
    DType,
    Expression,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Section,
    Seed,
    Share,
)
from tunesmith.config.launch_section import LaunchSection
from tunesmith.config.marks import Permission
from tunesmith.config.paths import inside


class ModelSection(Section):
    """Which model and tokenizer are loaded, and how."""

    model_name_or_path: Annotated[str, Field(min_length=1)]
    """Model to fine-tune: a local folder, a hub name, or ``nano-mistral`` (the model inside the package)."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    tokenizer_name_or_path: str | None = None
    """Tokenizer, when it does not come with the model."""
    dtype: DType = "auto"
    """Type in which unquantized weights are held; ``auto`` is float32 for full fine-tuning, else the compute type."""
    attn_implementation: Literal["auto", "flash_attention_2", "sdpa", "eager"] = "auto"
    """Attention; ``auto`` takes FlashAttention 2 where it is installed and the device has it, else sdpa."""
    device_map: str = "auto"
    """``auto`` spreads the model over the visible accelerators (none: cpu); or one: ``cuda:0``, ``mps``, ``cpu``."""
    trust_remote_code: Annotated[bool, Permission("give --trust_remote_code", in_files=True)] = False
    """Asks to run code that comes with the model; works only together with the flag ``--allow_remote_code``."""
    allow_remote_code: Annotated[
        bool, Permission("give --allow_remote_code on the command line if you trust the model's code")
    ] = False
    """The explicit permission that ``trust_remote_code`` needs; accepted on the command line only."""
    eos_token: str | None = None
    """End token for a tokenizer that has none."""
    model_class: str | None = None
    """Entry point (group ``tunesmith.models``) of an installed package that loads the model; unset, tunesmith does."""
    pad_token: str | None = None
    """Padding token; unset, the tokenizer's own, else its end token (labels are masked by position, so it is safe)."""


class AdapterSection(Section):
    """Low-rank adaptation (LoRA, Hu et al. 2021) and its relatives; switched off it means full fine-tuning."""

    use_lora: bool = True
    """Train low-rank adapters and keep the base frozen; false trains every weight."""
    lora_r: Annotated[int, Field(gt=0, le=65_536)] = 16
    """Rank of the update matrices."""
    lora_alpha: PositiveFloat = 32
    """Scale: updates are multiplied by alpha / r (by alpha / sqrt(r) with rsLoRA)."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Dropout before the adapters."""
    target_modules: list[str] | Literal["all-linear"] | Expression = ["q_proj", "k_proj", "v_proj", "o_proj"]
    """Modules that get adapters: names, each of which must occur in the model; ``all-linear``; parts of the model
    (``attention``, ``mlp``, ``experts``, ``shared_experts``, ``router``); or a regular expression for the whole name
    (``.*layers\\.[0-3]\\..*q_proj``). Unset, models without these names get adapters in all of their attention."""
    target_parameters: list[str] | None = None
    """Bare parameters that get adapters besides, by the end of their names (``experts.gate_up_proj``)."""
    exclude_modules: list[str] | Expression | None = None
    """Modules that get none, though ``target_modules`` names them; names and parts of the model, or a regular
    expression."""
    rank_pattern: dict[str, PositiveInt] = {}
    """Ranks of single modules other than ``lora_r``: {end of the module's name: rank}."""
    alpha_pattern: dict[str, PositiveFloat] = {}
    """Scales of single modules other than ``lora_alpha``: {end of the module's name: alpha}."""
    modules_to_save: list[str] | None = None
    """Modules that are trained whole and saved with the adapter."""
    bias: Literal["none", "all", "lora_only"] = "none"
    """Which bias parameters are trained."""
    fan_in_fan_out: bool = False
    """Set for layers that store weights as (in, out), such as GPT-2's Conv1D."""
    use_rslora: bool = False
    """Rank-stabilised scaling (Kalajdzievski 2023)."""
    use_dora: bool = False
    """Weight-decomposed adaptation (DoRA, Liu et al. 2024)."""
    init_lora_weights: str | bool = True
    """Initial values: true (zero B), ``gaussian``, ``pissa``, ``pissa_niter_16`` (Meng et al. 2024), ``olora`` ..."""
    loraplus_lr_ratio: Annotated[float, Field(gt=0, le=1_000_000)] | None = None
    """Learning rate of B over that of A (LoRA+, Hayou et al. 2024)."""
    layers_pattern: str | list[str] | None = None
    """Name of the list of layers, when ``layers_to_transform`` is used and PEFT cannot find it."""
    layers_to_transform: int | list[int] | None = None
    """Indices of the layers that get adapters; all of them when unset."""
    peft_type: Literal["LORA"] = "LORA"
    """Kind of adapter, as PEFT spells it."""
    task_type: Literal["CAUSAL_LM"] = "CAUSAL_LM"
    """Kind of model, as PEFT spells it."""


class QuantizationSection(Section):
    """How the frozen base is held in memory (QLoRA, Dettmers et al. 2023)."""

    load_in_4bit: bool = False
    """Hold the base in 4 bits."""
    load_in_8bit: bool = False
    """Hold the base in 8 bits (LLM.int8)."""
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = "nf4"
    """4-bit data type."""
    bnb_4bit_use_double_quant: bool = True
    """Quantize the quantization constants as well."""
    bnb_4bit_compute_dtype: DType = "auto"
    """Type in which 4-bit layers multiply; ``auto`` follows the run's precision."""
    llm_int8_skip_modules: list[str] | None = None
    """Modules that stay as they are, in 4 bits too, by a part of their names; the output head always does."""


class DataSection(Section):
    """Which rows are trained on, how they become text, and which tokens carry loss."""

    train_data: str | list[str] | None = None
    """Training rows: a local file or folder, a glob pattern, several of them, or a hub data set."""
    eval_data: str | list[str] | None = None
    """Held-out rows, spelled like ``train_data``."""
    subset: str | None = None
    """Configuration of a hub data set."""
    train_split: str = "train"
    """Split of a hub data set to train on."""
    eval_split: str | None = None
    """Split of the same hub data set to evaluate on."""
    dev_split: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the training rows held out for evaluation when there is no evaluation data; 0 holds out none."""
    dev_group_by: str | None = None
    """Rows with an equal value in this column stay together when ``dev_split`` holds out; ``prompt`` groups rows of any
    format by what they ask."""
    dev_stratify_by: str | None = None
    """Column whose values ``dev_split`` holds out in the proportions that they have among all rows."""
    format: Literal[
        "auto", "text", "prompt_completion", "nli", "messages", "alpaca", "sharegpt", "question_answer", "rag",
        "tokenized",
    ] = "auto"  # fmt: skip
    """Shape of a row; ``auto`` decides by the columns of the first row and says what it took. ``tokenized`` rows hold
    ``input_ids`` and, with TRL's names, which of them carry loss: ``labels``, ``completion_mask``, ``assistant_masks``.
    """
    columns: dict[str, str] = {}
    """Renames columns before the format reads them: {name the format expects: name in the file}."""
    row_weights: bool = True
    """Multiply the loss of a row by its column ``weight``, where it has one; false leaves that column alone."""
    roles: dict[str, Literal["system", "user", "assistant", "tool"]] = {}
    """Further names of roles: {name in the rows: ``system``, ``user``, ``assistant`` or ``tool``}."""
    turn_order: Literal["error", "merge", "keep"] = "error"
    """What happens to a chat that begins with the assistant, has two turns of one role in a row or a system message in
    the middle: it is refused, such turns are joined (an opening answer is refused still), or the template decides."""
    mix_weights: list[PositiveFloat] | None = None
    """How often each entry of ``train_data`` is drawn from, relative to the others; unset, all rows follow one another.
    """
    mix_stop: Literal["first_exhausted", "all_exhausted"] = "first_exhausted"
    """When mixing ends: as soon as one entry has no row left (no row occurs twice), or when each was used up once
    (smaller ones then start again)."""
    template: str | None = None
    """How a conversation becomes text: unset (the tokenizer's chat template for chats, the row's own text for others),
    a ``.jinja`` file, a text with ``{query}`` and ``{output}`` or a file with such a text, or a name: ``alpaca``,
    ``chatml``, ``gemma``, ``llama-3``, ``mistral-instruct``, ``phi-3``, ``plain``, ``question-answer``, ``zephyr``."""
    chat_template_kwargs: dict[str, Any] = {}
    """Further names for a chat template, such as ``enable_thinking``; a row may bring its own in a column so named."""
    template_date: Annotated[str, Field(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$")] | None = None
    """The day that templates write as today's (YYYY-MM-DD); unset, the day on which the run began."""
    unwritten: Literal["error", "report"] = "error"
    """What happens to a row of which the template does not write a part (a tool call, thoughts, a key of a message): it
    is refused, or used without that part, which the ledger counts."""
    instruction: str | None = None
    """File (or text) with the system message."""
    instruction_in_prompt: bool = False
    """Put the instruction at the start of the first user message, for models without a system role."""
    completion_start: str | None = None
    """Text after whose last match loss begins; unset, the format knows where the completion begins."""
    loss_on: Literal["completion", "assistant", "last_assistant", "all"] = "completion"
    """Which tokens carry loss: ``completion`` (the answer; of a chat every assistant turn, but none that stands in a
    list ``prompt``), ``assistant`` (every assistant turn), ``last_assistant`` or ``all``."""
    train_thoughts: bool = True
    """Whether the thoughts before an answer carry loss; false trains what follows ``</think>`` alone."""
    special_in_content: Literal["split", "error", "allow"] = "split"
    """What happens to content that spells a special token: it is trained as plain text, refused, or becomes one."""
    add_bos: bool | Literal["if_known"] | None = None
    """Whether plain text starts with the tokenizer's begin token; ``if_known`` says yes where it has one; unset does
    what the tokenizer itself does."""
    new_tokens: list[str] = []
    """Tokens that the tokenizer gets besides its own, such as ``<note>``; their rows of embedding and head are trained
    with the adapter, or with all weights."""
    new_special_tokens: list[str] = []
    """The same for tokens of a template: content that spells one stays plain text (see ``special_in_content``)."""
    max_length: PositiveInt = 1024
    """Longest example, in tokens, begin and end token included."""
    too_long: Literal["error", "drop", "truncate_prompt", "truncate_completion", "split"] = "error"
    """What happens to a longer example; everything cut or dropped is counted in the ledger. ``truncate_prompt`` takes a
    chat's oldest turns, then the first words of the question, of other rows the head of the prompt; ``split`` makes
    several examples of plain text (with ``loss_on: all``)."""
    empty_completion: Literal["error", "drop", "keep"] = "error"
    """What happens to a row with nothing to learn, or with an empty answer among those that are trained."""
    limit: PositiveInt | None = None
    """Use only the first N training rows (after shuffling, when ``shuffle_seed`` is set)."""
    eval_limit: PositiveInt | None = None
    """Use only the first N evaluation rows."""
    shuffle_seed: Seed | None = None
    """Shuffle the training rows once, with this seed, before ``limit`` and ``dev_split``."""
    duplicates: Literal["report", "drop"] = "report"
    """What happens to the second and later ones of equal examples."""
    min_trained_share: Share = 0.0005
    """Refuse a run in which a smaller share of the tokens carries loss."""
    max_dropped: Share = 0.25
    """Refuse a run that drops a larger share of the rows."""
    max_cut: Share = 1.0
    """Refuse a run that shortens a larger share of the rows."""
    max_duplicates: Share = 0.5
    """Refuse a run in which a larger share of the rows repeats an earlier one."""
    allow_leak: bool = False
    """Go on although evaluation prompts occur among the training rows."""
    cache: bool = True
    """Keep tokenised data on disk, by the contents of everything that decides it, and take it from there next time."""
    cache_dir: str | None = None
    """Folder of kept data; unset, that of the variable TUNESMITH_CACHE, else the user's cache folder."""
    num_proc: Annotated[int, Field(gt=0, le=1024)] = 1
    """Threads that tokenise; the result does not depend on their number."""
    streaming: bool = False
    """Read and tokenise while training instead of before; needs ``max_steps``. ``shuffle_seed`` then shuffles within
    ``shuffle_buffer`` rows, anew in each pass, and packing joins rows that follow one another."""
    shuffle_buffer: PositiveInt = 10_000
    """Rows of a stream among which the next one is drawn when ``shuffle_seed`` is set."""


class TrainingSection(Section):
    """The optimization and its schedule; names are those of transformers' TrainingArguments."""

    output_dir: Annotated[str, Field(min_length=1)] = "outputs"
    """The run folder."""
    overwrite_output_dir: bool = False
    """Replace a finished run in ``output_dir``."""
    num_train_epochs: Annotated[float, Field(gt=0, le=1_000_000, allow_inf_nan=False)] = 3.0
    """Passes over the training rows."""
    max_steps: Annotated[int, Field(ge=-1, lt=2**31)] = -1
    """Optimizer steps; when positive it beats ``num_train_epochs``."""
    per_device_train_batch_size: PositiveInt = 8
    """Rows of one forward pass on one device."""
    per_device_eval_batch_size: PositiveInt = 8
    """Rows of one evaluation pass on one device."""
    gradient_accumulation_steps: PositiveInt = 1
    """Forward passes per optimizer step; the loss is averaged over all trained tokens of the step."""
    global_batch_size: PositiveInt | None = None
    """Rows of one optimizer step over all devices; derives ``gradient_accumulation_steps``."""
    learning_rate: PositiveFloat = 2e-4
    """Peak learning rate."""
    lr_scheduler_type: Literal[
        "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup",
        "inverse_sqrt", "cosine_with_min_lr", "warmup_stable_decay", "reduce_lr_on_plateau",
    ] = "linear"  # fmt: skip
    """Shape of the learning rate after warmup."""
    lr_scheduler_kwargs: dict[str, Any] = {}
    """Further arguments of the scheduler."""
    warmup_ratio: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] = 0.0
    """Share of all steps over which the learning rate rises from 0."""
    warmup_steps: NonNegativeInt = 0
    """Steps over which the learning rate rises from 0; when positive it beats ``warmup_ratio``."""
    router_aux_loss_coef: NonNegativeFloat | None = None
    """Factor of the loss that keeps a model's experts equally busy; unset, it is not added."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay."""
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay of Adam's first moment."""
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Decay of Adam's second moment."""
    adam_epsilon: PositiveFloat = 1e-8
    """Adam's denominator offset."""
    max_grad_norm: NonNegativeFloat = 1.0
    """Gradients are scaled down to this global norm; 0 switches clipping off."""
    optim: str = "adamw_torch"
    """Optimizer, by transformers' name (``paged_adamw_8bit``, ``adamw_torch_fused``, ``adafactor`` ...)."""
    optim_args: dict[str, str | bool | int | float] = {}
    """Further arguments of the optimizer (``momentum`` of ``sgd``, ``alpha`` of ``ademamix`` ...)."""
    neftune_noise_alpha: PositiveFloat | None = None
    """Noise on the embeddings of training rows (NEFTune, Jain et al. 2023); 5 is common."""
    bf16: bool | None = None
    """Compute in bfloat16; when neither bf16 nor fp16 is set the device decides, and says so."""
    fp16: bool | None = None
    """Compute in float16 with loss scaling."""
    tf32: bool | None = None
    """Let float32 products use TensorFloat-32 on devices that have it."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass (non-reentrant) to save memory."""
    batching: Literal["auto", "padded", "length_grouped", "packed", "unpadded", "prefix_tree"] = "auto"
    """How examples are laid out in a batch; no layout lets one example see another. ``prefix_tree`` is ``unpadded`` and
    computes once what rows of a batch begin with in common. ``auto`` takes the first of ``prefix_tree``, ``unpadded``
    and ``padded`` that the model is proved to keep to."""
    group_by_prefix: bool = False
    """Keep rows that begin alike (the same premise, documents, examples) in one batch, in a seeded order of these
    groups, so that ``prefix_tree`` has more to share."""
    remove_unused_columns: bool = True
    """Accepted for compatibility with transformers; tunesmith's batches never carry unused columns."""
    logging_steps: PositiveInt = 10
    """Steps between logged lines."""
    logging_first_step: bool = True
    """Log step 1 as well."""
    eval_strategy: Literal["auto", "no", "steps", "epoch"] = "auto"
    """When to evaluate; ``auto`` is every ``eval_steps`` when there is evaluation data."""
    eval_steps: PositiveInt | None = None
    """Steps between evaluations; unset means ``logging_steps``."""
    eval_on_start: bool = False
    """Evaluate once before the first step."""
    save_strategy: Literal["no", "steps", "epoch", "best"] = "steps"
    """When to write a checkpoint; ``best`` does after each evaluation that is the best one so far."""
    save_steps: PositiveInt = 500
    """Steps between checkpoints."""
    save_total_limit: PositiveInt | None = None
    """Checkpoints kept; the best one is never removed."""
    load_best_model_at_end: bool = False
    """Keep the best checkpoint by ``metric_for_best_model`` as the result of the run."""
    metric_for_best_model: str | None = None
    """Metric that decides what is best (``eval_accuracy``, ``eval_macro_f1`` ...); unset means ``eval_loss``."""
    greater_is_better: bool | None = None
    """Direction of the metric; unset means smaller for losses and rates of failure, greater for all others."""
    early_stopping_patience: PositiveInt | None = None
    """Stop after this many evaluations without improvement."""
    early_stopping_threshold: NonNegativeFloat = 0.0
    """Least change that counts as improvement."""
    time_limit: PositiveFloat | None = None
    """Stop after this time (``90m``, ``1h30m``, ``45s``, or seconds) at the end of a step, with a checkpoint."""
    resume_from_checkpoint: str | None = None
    """Continue from this checkpoint folder, or from the newest one in ``output_dir`` (``latest``)."""
    allow_changed: list[str] | None = None
    """Names of what may differ from the checkpoint that is continued, as its refusal lists them."""
    seed: Seed = 42
    """Seed of the model's random numbers and, unless ``data_seed`` is set, of the row order."""
    data_seed: Seed | None = None
    """Seed of the row order alone."""
    full_determinism: bool = False
    """Use deterministic kernels on accelerators, at some cost in speed."""
    dataloader_num_workers: Annotated[int, Field(ge=0, le=1024)] = 0
    """Worker processes that make batches."""
    save_merged_model: bool = False
    """After LoRA training, write the merged model to ``output_dir`` and the adapter to ``output_dir/lora_weights``."""
    final_subdir: Annotated[str, AfterValidator(inside)] | None = None
    """Folder inside ``output_dir`` for the finished model; unset means ``output_dir`` itself."""
    gen_every_n_steps: PositiveInt | None = None
    """Steps between sample answers, written to ``output_dir/gen_results`` and shown in the trackers."""
    gen_questions_file: str | None = None
    """Questions for sample answers, one a line; unset, the prompts of the first evaluation rows (else training row)."""
    push_to_hub: bool = False
    """Upload the finished model."""
    hub_model_id: str | None = None
    """Repository to upload to."""
    hub_private_repo: bool = True
    """Whether a new repository is private."""


class EvaluationSection(Section):
    """How a model is judged by the answers it writes."""

    task: Literal["auto", "none", "nli", "classification", "exact", "json", "reasoning", "rag", "tool_call"] = "auto"
    """How answers are read and scored; ``auto`` decides by the format of the rows."""
    task_function: Annotated[
        str | None, Permission("give --task_function FILE.py:FUNCTION on the command line if you trust that file")
    ] = None
    """A task of your own, ``FILE.py:FUNCTION``; it is code that runs, so it is accepted on the command line only."""
    labels: list[str] | None = None
    """Labels of the task ``classification``; unset, those that occur among the references."""
    json_schema: str | None = None
    """JSON Schema (a file) that answers of the task ``json`` must fulfil."""
    bootstrap_samples: Annotated[int, Field(ge=0, le=1_000_000)] = 1000
    """Resamplings behind each figure's 95% confidence interval (Efron 1979); 0 leaves intervals out."""
    generate: bool = False
    """Also generate answers at evaluations during training and log the task's metrics."""
    generate_every: PositiveInt = 1
    """Generate at every k-th evaluation only."""
    generate_limit: PositiveInt | None = None
    """Generate for N evaluation rows only: the first ones, or a sample of them when ``generate_seed`` is set."""
    generate_seed: Seed | None = None
    """Seed of the sample that ``generate_limit`` takes; the same rows at every evaluation of a run."""
    generation_engine: Literal["auto", "transformers", "continuous", "vllm"] = "auto"
    """What generates: sorted batches (``transformers``), transformers' continuous batching, or vLLM when installed."""
    generation_batch_size: PositiveInt | None = None
    """Prompts generated side by side; from 4 on so many of the longest, and more of short ones in the same memory, in
    which a beginning that all share counts once. Unset, as many as keep no more than 2 GiB of keys and values, and 64
    at most."""
    max_new_tokens: PositiveInt = 256
    """Longest answer, in tokens."""
    temperature: NonNegativeFloat = 0.0
    """Sampling temperature; 0 is greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus sampling mass, used with a temperature above 0."""


class TrackingSection(Section):
    """Where metrics go besides ``metrics.jsonl``."""

    report_to: list[Literal["wandb", "tensorboard", "trackio", "mlflow"]] = []
    """Trackers that get the metrics."""
    use_wandb: bool | None = None
    """Switches Weights & Biases on or off, whatever ``report_to`` says."""
    wandb_project: str | None = None
    """Project at Weights & Biases."""
    wandb_entity: str | None = None
    """Team or user at Weights & Biases."""
    wandb_run_id: str | None = None
    """Continue this run at Weights & Biases."""
    run_name: str | None = None
    """Name of the run in every tracker; unset, one is made from the model and the time."""
    experiment: str | None = None
    """Group under which trackers file the run."""

    def trackers(self) -> list[str]:
        """The trackers in force: ``report_to`` corrected by ``use_wandb``."""
        names: list[str] = [name for name in self.report_to if name != "wandb" or self.use_wandb is not False]
        return [*names, "wandb"] if self.use_wandb and "wandb" not in names else names


class RunConfig(Section):
    """Everything that decides what a run does."""

    model: ModelSection
    adapter: AdapterSection = AdapterSection()
    quantization: QuantizationSection = QuantizationSection()
    data: DataSection = DataSection()
    training: TrainingSection = TrainingSection()
    evaluation: EvaluationSection = EvaluationSection()
    tracking: TrackingSection = TrackingSection()
    launch: LaunchSection = LaunchSection()


SECTIONS: dict[str, type[Section]] = {
    name: field.annotation  # type: ignore[misc]
    for name, field in RunConfig.model_fields.items()
    if field.annotation is not None
}
