"""``tunesmith init RECIPE DIR``: a working copy of a recipe, on small data and the embedded model.

With ``--data FILE`` it is a first configuration for somebody's own rows instead: ``init_data.py``.

The recipe's files are copied as they are, but for its default configuration: that one is kept beside a small one that
takes its name, so the documented commands run here and now. Nothing is trained.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import shutil
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tunesmith
from tunesmith.cli.arguments import VerbParser
from tunesmith.cli.output import say
from tunesmith.config.convert import convert
from tunesmith.config.load import load
from tunesmith.errors import ConfigError, StorageError, did_you_mean
from tunesmith.program import command

if TYPE_CHECKING:
    from tunesmith.data.prepare_nli import Select

NUM_TRAIN, NUM_HELDOUT = 4000, 200
"""Rows of the small data."""

Rows = list[dict[str, Any]]


def nli_files(folder: Path) -> dict[str, Rows]:
    """Fine-tuning rows of both sides, where each configuration of the copy reads them: those of the ablations are
    prepared from thoughts and reflections, which lie there as well."""
    from tunesmith.data.nli import nli_text
    from tunesmith.data.prepare_nli import prepare_nli
    from tunesmith.synthetic.nli import make_nli, make_nli_thoughts

    columns = ("premise", "hypothesis", "thought_process", "predicted_label")
    train, heldout = (
        [{"id": row["id"], "text": nli_text(**{column: row[column] for column in columns})} for row in rows]
        for rows in make_nli(NUM_TRAIN, NUM_HELDOUT)
    )
    files: dict[str, Rows] = {}
    for place in ("data/finetune", "demo/data"):
        files |= {f"{place}/train_ft.jsonl": train, f"{place}/eval_ft.jsonl": heldout}
    sources = {name: str(folder / f"data/{name}.jsonl") for name in ("thoughts", "reflections")}
    for source, rows in zip(sources.values(), make_nli_thoughts(NUM_TRAIN), strict=True):
        _write_rows(Path(source), rows)
    selections: tuple[Select, ...] = ("correct", "reflected", "all")
    for select in selections:
        prepared = prepare_nli(thoughts=sources["thoughts"], reflections=sources["reflections"], select=select)
        files[f"data/finetune/{select}/train_ft.jsonl"] = prepared.train
        files[f"data/finetune/{select}/eval_ft.jsonl"] = prepared.eval
    return files


def reasoning_files(folder: Path) -> dict[str, Rows]:
    """Prompts and responses of both sides."""
    from tunesmith.synthetic.reasoning import make_reasoning

    train, heldout = make_reasoning(NUM_TRAIN, NUM_HELDOUT)
    return {"data/formatted/combined_formatted.json": train, "data/formatted/validation.json": heldout}


def rag_files(folder: Path) -> dict[str, Rows]:
    """Questions with passages and answers of both sides, and the processed rows that are prepared from them."""
    from tunesmith.data.prepare_rag import prepare_rag
    from tunesmith.synthetic.rag import make_rag

    prompt = (folder / "ragfit/processing/prompts/qa.txt").read_text(encoding="utf-8")
    files: dict[str, Rows] = {}
    for side, rows in zip(("train", "heldout"), make_rag(NUM_TRAIN, NUM_HELDOUT), strict=True):
        source = folder / f"data/questions-{side}.jsonl"
        _write_rows(source, rows)
        files[f"data/{side}.jsonl"] = prepare_rag(str(source), prompt=prompt, num_passages=3).rows
    return files


def sft_files(folder: Path) -> dict[str, Rows]:
    """Questions and answers of both sides."""
    from tunesmith.synthetic.reasoning import make_reasoning

    train, heldout = (
        [{"question": row["prompt"], "answer": row["response"]} for row in rows]
        for rows in make_reasoning(NUM_TRAIN, NUM_HELDOUT)
    )
    return {"data/train.jsonl": train, "data/heldout.jsonl": heldout}


@dataclass(frozen=True, slots=True)
class Recipe:
    """A recipe: its default configuration, the small one (settings on top of it, or a text), its data, the commands
    to type next."""

    config: str
    dialect: str
    small: tuple[str, ...] | str
    files: Callable[[Path], dict[str, Rows]]
    commands: tuple[str, ...]


SMALL = (
    "--model_name_or_path=nano-mistral",
    "--no_load_in_4bit",
    "--no_load_in_8bit",
    "--max_length=256",
    "--per_device_train_batch_size=16",
    "--gradient_accumulation_steps=1",
    "--num_train_epochs=2",
    "--optim=adamw_torch",
    "--no_gradient_checkpointing",
    "--logging_steps=20",
    "--eval_steps=100",
    "--save_steps=100",
)
"""What every small configuration says: the embedded model, rows that fit it, a processor instead of a GPU."""

RAG_CONFIG = """\
# {comment}.
# Every key of training_full.yaml can be overridden here and on the command line.
defaults:
    - training_full
    - _self_

model:
    model_name_or_path: nano-mistral
    load_in_8bit: false
    lora:
        target_modules: [q_proj, k_proj, v_proj, o_proj]
    completion_start:
    max_sequence_len: 512

train:
    output_dir: trained_models/nano-mistral-rag
    num_train_epochs: 2
    per_device_train_batch_size: 16
    gradient_accumulation_steps: 1
    learning_rate: 2e-3
    optim: adamw_torch
    logging_steps: 20
    eval_steps: 100
    save_steps: 100

data_file: data/train.jsonl
eval_data: data/heldout.jsonl
output_key: answers
"""
"""The small configuration of rag. It rests on the full one, because Hydra overrides only keys that a file has."""

RECIPES: dict[str, Recipe] = {
    "nli_cot": Recipe(
        config="train/configs/default.py",
        dialect="python",
        small=(*SMALL, "--learning_rate=2e-3", "--no_use_wandb", "--output_dir=models/nano-mistral-nli-cot"),
        files=nli_files,
        commands=(
            "./run_training.sh --native",
            "tunesmith evaluate models/nano-mistral-nli-cot",
        ),
    ),
    "reasoning": Recipe(
        config="training/configs/default.json",
        dialect="json",
        small=(
            *SMALL,
            "--learning_rate=2e-3",
            "--no_fp16",
            "--train_data=data/formatted/combined_formatted.json",
            "--eval_data=data/formatted/validation.json",
            "--output_dir=checkpoints/nano-mistral-reasoning",
        ),
        files=reasoning_files,
        commands=(
            "python -m training.trainers.model_trainer --config training/configs/default.json",
            "tunesmith evaluate checkpoints/nano-mistral-reasoning",
        ),
    ),
    "rag": Recipe(
        config="configs/training.yaml",
        dialect="hydra",
        small=RAG_CONFIG,
        files=rag_files,
        commands=(
            "python training.py",
            "tunesmith evaluate trained_models/nano-mistral-rag",
        ),
    ),
    "sft": Recipe(
        config="default_train_config.yaml",
        dialect="yaml",
        small=(
            *SMALL,
            "--learning_rate=1e-3",
            "--max_steps=-1",
            "--train_data=data/train.jsonl",
            "--subset=none",
            "--eval_data=data/heldout.jsonl",
            "--gen_questions_file=data/questions.txt",
            "--gen_every_n_steps=100",
            "--max_new_tokens=64",
        ),
        files=sft_files,
        commands=("accelerate launch sft.py --config default_train_config.yaml", "tunesmith evaluate outputs"),
    ),
}


def run(argv: Sequence[str]) -> int:
    """Lay a copy of a recipe, or a first configuration for somebody's own rows, and say what to type next."""
    parser = VerbParser(
        "init",
        "Write a first configuration for your own rows (--data FILE DIR), or lay a working copy of a recipe into a new "
        "folder (RECIPE DIR).",
        takes_settings=False,
    )
    parser.add_argument("words", nargs="*", metavar="[RECIPE] DIR", help=f"recipes: {', '.join(sorted(RECIPES))}")
    parser.add_argument("--data", metavar="FILE", help="your rows: CSV, TSV, JSONL, JSON or Parquet")
    parser.add_argument("--prompt", metavar="COLUMN", help="the column that is asked, where the guess is wrong")
    parser.add_argument("--answer", metavar="COLUMN", help="the column that is answered")
    parser.add_argument("--model", metavar="NAME", help="the model to train; the small one inside the package")
    parser.add_argument("--yes", action="store_true", help="ask nothing, take what is guessed")
    options = parser.parse_all(argv)
    if options.data is not None:
        return _first_configuration(options)
    recipe, folder = _recipe_and_folder(options)
    lay(recipe, Path(folder))
    say("\n".join([f"cd {shlex.quote(folder)}", *next_commands(recipe, Path(folder))]))
    return 0


def next_commands(recipe: str, folder: Path) -> list[str]:
    """What to type next in a recipe's copy."""
    commands = [command(*shlex.split(line), seen_from=folder.resolve()) for line in RECIPES[recipe].commands]
    python = command("python", seen_from=folder.resolve())
    return [f"PYTHON={python} {line}" if line.startswith("./") and python != "python" else line for line in commands]


def _first_configuration(options: Namespace) -> int:
    from tunesmith.cli import init_data

    if len(options.words) != 1:
        raise ConfigError(
            "with --data there is one more word, the folder", where="command line", remedy="init --data FILE DIR"
        )
    ask = not options.yes and sys.stdin.isatty()
    return init_data.run(
        options.data,
        Path(options.words[0]),
        prompt=options.prompt,
        answer=options.answer,
        model=options.model,
        ask=ask,
    )


def _recipe_and_folder(options: Namespace) -> tuple[str, str]:
    """The two words without ``--data``."""
    for name in ("prompt", "answer", "model", "yes"):
        if getattr(options, name):
            raise ConfigError(
                f"--{name} belongs to --data FILE", where="command line", remedy="init --data FILE DIR, or RECIPE DIR"
            )
    if len(options.words) != 2:
        remedy = f"init RECIPE DIR with one of {', '.join(sorted(RECIPES))}, or init --data FILE DIR"
        raise ConfigError("names a recipe and a folder, or --data and a folder", where="command line", remedy=remedy)
    recipe, folder = options.words
    if recipe not in RECIPES:
        remedy = did_you_mean(recipe, RECIPES, f"recipes are {', '.join(sorted(RECIPES))}")
        raise ConfigError(f"there is no recipe {recipe!r}", where="command line", remedy=remedy)
    return recipe, folder


def lay(name: str, folder: Path) -> None:
    """Copy the recipe ``name`` into ``folder`` and make its small data and configuration.

    Raises:
        StorageError: the folder holds something, or cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise StorageError("is there and not empty", where=str(folder), remedy="name a new folder")
    recipe = RECIPES[name]
    try:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(recipes_folder() / name, folder, ignore=ignored, dirs_exist_ok=True)
        for script in folder.glob("*.sh"):
            script.chmod(0o755)
        for file, rows in recipe.files(folder).items():
            _write_rows(folder / file, rows)
        with contextlib.chdir(folder):  # so that files are named as they are called from there
            _make_small(Path(recipe.config), recipe, name)
    except OSError as error:
        raise StorageError(f"cannot write: {error.strerror or error}", where=str(folder)) from error


def recipes_folder() -> Path:
    """Where the recipes lie: inside the installed package, or in the checkout that it is imported from.

    Raises:
        StorageError: in neither place.
    """
    package = Path(tunesmith.__file__).parent
    for candidate in (package / "recipes", package.parents[1] / "recipes"):
        if candidate.is_dir():
            return candidate
    raise StorageError("this installation has no recipes", where=str(package), remedy="install tunesmith again")


def _write_rows(path: Path, rows: Rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    text = "[\n" + ",\n".join(lines) + "\n]\n" if path.suffix == ".json" else "\n".join(lines) + "\n"
    path.write_text(text, encoding="utf-8")


def _make_small(config: Path, recipe: Recipe, name: str) -> None:
    """Put the small configuration in the place of the default one, which moves beside it."""
    kept = config.with_name(f"{config.stem}_full{config.suffix}")
    comment = f"{kept.name} of the recipe {name}, made small: embedded model, made data"
    if isinstance(recipe.small, str):
        text = recipe.small.format(comment=comment)
    else:
        text = convert(load(config, recipe.small, dialect=recipe.dialect), recipe.dialect, comment)
    config.rename(kept)
    config.write_text(text, encoding="utf-8")
