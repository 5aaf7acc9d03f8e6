"""The front door of document 3: TrainingConfig, ModelTrainer, ReasoningDataset and the script that trains.

It translates the document's names and adds its configuration file to the finished model; training is the engine's.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith import notices
from tunesmith.cli.arguments import VerbParser
from tunesmith.cli.main import guarded
from tunesmith.config.draft import Draft
from tunesmith.config.load import resolve_draft
from tunesmith.config.readers import flat_json
from tunesmith.config.resolve import Resolved, resolve
from tunesmith.config.schema import DataSection
from tunesmith.errors import ConfigError, did_you_mean, raise_together
from tunesmith.imports import lean_imports
from tunesmith.program import named
from tunesmith.report.folder import write_json
from tunesmith.train.processes import is_main_process

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from tunesmith.data.masking import Example

CONFIG_FILE = "training_config.json"
"""The run's settings under the names of document 3, beside the finished model."""


class _KnownKeywords(type):
    """Tells whoever calls a class with a keyword that it does not have which one may have been meant."""

    def __call__(cls, *args: Any, **keywords: Any) -> Any:
        names = [one.name for one in fields(cls)]  # type: ignore[arg-type]
        wrong = [
            ConfigError(f"unknown setting {name!r}", where=cls.__name__, remedy=_keyword_advice(name, names))
            for name in keywords
            if name not in names
        ]
        raise_together(wrong)
        return super().__call__(*args, **keywords)


def _keyword_advice(name: str, fields_of_document: list[str]) -> str:
    if name in flat_json.NAMES:
        return f"give it to ModelTrainer: ModelTrainer(config, {name}=...)"
    near = did_you_mean(name, fields_of_document, "")
    return near or did_you_mean(name, flat_json.NAMES.names(), named("see `tunesmith config --list`"))


@dataclass
class TrainingConfig(metaclass=_KnownKeywords):
    """Settings of a training run, with document 3's names and defaults.

    A field that holds its default counts as not written: a default that the machine cannot honour changes with a
    notice, and a value of your own is honoured or refused.
    """

    model_name_or_path: str = "mistralai/Mistral-7B-v0.1"
    """Model to fine-tune: a hub name, a local folder, or ``nano-mistral``."""
    tokenizer_name_or_path: str | None = None
    """Tokenizer, when it does not come with the model."""

    use_lora: bool = True
    """Train low-rank adapters and keep the base frozen; False trains every weight."""
    load_in_4bit: bool = True
    """Hold the frozen base in 4 bits."""
    load_in_8bit: bool = False
    """Hold the frozen base in 8 bits; gives the default ``load_in_4bit`` up."""
    lora_r: int = 16
    """Rank of the update matrices."""
    lora_alpha: float = 32
    """Scale of the updates: alpha / r."""
    lora_dropout: float = 0.05
    """Dropout before the adapters."""
    lora_target_modules: list[str] = field(default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj"])
    """Modules that get adapters."""

    output_dir: str = "checkpoints/mistral-7b-reasoning"
    """Run folder; the finished model is in ``output_dir/final``."""
    max_seq_length: int = 2048
    """Longest example in tokens; longer rows are dropped and counted."""
    train_batch_size: int = 1
    """Rows of one forward pass on one device."""
    eval_batch_size: int = 1
    """Rows of one evaluation pass on one device."""
    gradient_accumulation_steps: int = 4
    """Forward passes per optimizer step."""
    num_train_epochs: float = 3
    """Passes over the training rows."""
    learning_rate: float = 2e-5
    """Peak learning rate."""
    lr_scheduler_type: str = "cosine"
    """Shape of the learning rate after warmup."""
    weight_decay: float = 0.01
    """Decoupled weight decay."""
    warmup_ratio: float = 0.03
    """Share of all steps over which the learning rate rises from 0."""
    fp16: bool = True
    """Compute in float16; as a default it gives way to bf16, and to float32 on a cpu."""
    bf16: bool = False
    """Compute in bfloat16."""
    gradient_checkpointing: bool = True
    """Recompute activations in the backward pass to save memory."""
    deepspeed_config: str | None = None
    """DeepSpeed configuration (JSON file)."""
    seed: int = 42
    """Seed of all random numbers."""

    log_every_n_steps: int = 10
    """Steps between logged lines."""
    eval_every_n_steps: int = 200
    """Steps between evaluations."""
    save_every_n_steps: int = 500
    """Steps between checkpoints; moved to the next multiple of ``eval_every_n_steps`` when there is an evaluation."""
    save_total_limit: int | None = 3
    """Checkpoints kept; the best one is never removed."""
    early_stopping_patience: int | None = 5
    """Stop after this many evaluations without improvement; without evaluation rows it means nothing."""
    early_stopping_threshold: float = 0.01
    """Least change that counts as improvement."""

    use_wandb: bool = False
    """Send metrics to Weights & Biases."""
    wandb_project: str | None = "SimpleFoundation"
    """Project at Weights & Biases."""
    wandb_name: str | None = None
    """Name of the run; unset, one is made from the model and the time."""

    def written(self) -> dict[str, Any]:
        """The fields that differ from their defaults."""
        default = asdict(TrainingConfig())
        return {name: value for name, value in asdict(self).items() if value != default[name]}


class ModelTrainer:
    """Trains as a TrainingConfig says.

    Args:
        config: the settings; None takes document 3's.
        **settings: further settings of the schema under any accepted name (``max_steps=100``).

    Raises:
        ConfigError: a setting is unknown or wrong.
    """

    def __init__(self, config: TrainingConfig | None = None, **settings: Any) -> None:
        self.config = TrainingConfig() if config is None else config
        self._settings = settings
        notices.clear()
        resolve(self._draft({}))  # wrong values are told at once; how they fit together depends on the files

    def train(self, train_file: str | list[str], eval_file: str | list[str] | None = None) -> str:
        """Fine-tune and return the folder of the finished model, ``output_dir/final``.

        Progress goes to stderr.

        Args:
            train_file: rows with ``prompt`` and ``response`` (JSON array or JSON lines), one file or several.
            eval_file: held-out rows; they decide the best checkpoint and early stopping.

        Raises:
            TunesmithError: whatever prevents the run, with what, where and what to do.
        """
        files = {"train_file": train_file} | ({} if eval_file is None else {"eval_file": eval_file})
        resolved = resolve_draft(self._draft(files))
        from tunesmith.cli import environment

        environment.prepare(resolved)
        from tunesmith.cli.progress import make_listener

        with lean_imports():
            from tunesmith.train.callbacks import Silent
            from tunesmith.train.run import train

        main_process = is_main_process()
        result = train(resolved, command=["python", *sys.argv], listener=make_listener() if main_process else Silent())
        if main_process:
            write_training_config(resolved)
        return str(result.model_folder)

    def _draft(self, files: dict[str, Any]) -> Draft:
        return flat_json.from_keywords(self.config.written() | self._settings | files)


class ReasoningDataset:
    """Examples of a reasoning file as tensors: begin token, prompt, response, end token.

    Args:
        path: JSON array or JSON lines of rows with ``prompt`` and ``response``; other keys are ignored.
        tokenizer: the model's tokenizer.
        max_length: longest example in tokens; longer rows are left out, and ``ledger`` names them.

    Raises:
        DataError: the file or a row is wrong, or no row is left.
    """

    def __init__(self, path: str | Path, tokenizer: PreTrainedTokenizerBase, max_length: int = 2048) -> None:
        from tunesmith.data.examples import ExampleBuilder, build_examples
        from tunesmith.data.ledger import Ledger
        from tunesmith.data.rows import read_rows

        data = DataSection(train_data=str(path), max_length=max_length, add_bos="if_known", too_long="drop")
        self.ledger = Ledger()
        """Rows read, kept and dropped."""
        self.examples: list[Example] = build_examples(
            read_rows(str(path)), ExampleBuilder(tokenizer, data), self.ledger
        )

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """``input_ids``, ``labels`` (-100 on the prompt) and ``attention_mask`` of one example, of shape (tokens,)."""
        import torch

        example = self.examples[index]
        return {
            "input_ids": torch.tensor(example.input_ids),
            "labels": torch.tensor(example.labels),
            "attention_mask": torch.ones(len(example.input_ids), dtype=torch.long),
        }

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        return (self[index] for index in range(len(self)))


def main(argv: Sequence[str] | None = None) -> int:
    """Train from the command line of ``model_trainer.py`` and return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return guarded(lambda: _train(arguments), debug="--debug" in arguments)


def _train(arguments: list[str]) -> int:
    parser = VerbParser("train", "Fine-tune a model on reasoning rows (document 3).")
    parser.prog = "model_trainer.py"
    parser.epilog = "Every field of TrainingConfig is a flag, and so is every setting of the schema: " + ", ".join(
        f"--{setting.name}" for setting in fields(TrainingConfig)
    )
    parser.add_argument("--config", metavar="FILE", help="flat JSON file (training/configs/default.json)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--local_rank", "--local-rank", type=int, help="given by launchers; the environment decides")
    options, settings = parser.split(arguments)
    draft = flat_json.read(options.config) if options.config else flat_json.from_keywords({})
    resolved = resolve_draft(draft, settings)
    if not resolved.config.data.train_data:
        raise ConfigError("train_file is not set", remedy="give --train_file data/formatted/combined_formatted.json")
    from tunesmith.cli.train import train_resolved

    program = [argument for argument in arguments if not argument.startswith(("--local_rank", "--local-rank"))]
    code = train_resolved(resolved, [sys.argv[0], *program], as_json=options.json)
    if code == 0 and is_main_process():
        write_training_config(resolved)
    return code


def write_training_config(resolved: Resolved) -> None:
    """Put the settings, under the names of document 3, beside the finished model."""
    training = resolved.config.training
    folder = Path(training.output_dir, training.final_subdir or "")
    values = resolved.values()
    names = (*(setting.name for setting in fields(TrainingConfig)), "train_file", "eval_file")
    named = {name: values[flat_json.NAMES.find(name, CONFIG_FILE).path] for name in names}
    write_json(folder / CONFIG_FILE, named | {"use_wandb": "wandb" in resolved.config.tracking.trackers()})
