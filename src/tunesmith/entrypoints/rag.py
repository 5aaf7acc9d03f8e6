"""The front door of document 4: ``python training.py -cp ... -cn ... key=value``, with Hydra's command line.

Hydra reads the command line and composes; folders, logging, launchers and the working directory are left alone. What a
key means is the reader's, training is the engine's.
"""

from __future__ import annotations

import subprocess
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from tunesmith.cli.main import guarded
from tunesmith.cli.output import say, say_file, tell
from tunesmith.config.draft import COMMAND_LINE, Setting
from tunesmith.config.load import resolve_checked
from tunesmith.config.names import Spelling
from tunesmith.config.readers import hydra_yaml
from tunesmith.config.readers.hydra_compose import Composition, compose, split_sweep
from tunesmith.config.resolve import Resolved
from tunesmith.errors import ConfigError, UnsafeError

CONFIG_DIR = "configs"
CONFIG_NAME = "training"

HELP = """usage: python training.py [-cp FOLDER] [-cn NAME] [key=value ...]

Fine-tune a model on processed retrieval rows.

  -cp, --config-path FOLDER   folder of the configuration, relative to the recipe (configs)
  -cn, --config-name NAME     configuration in it (training)
  -cd, --config-dir FOLDER    a further folder to look for configurations in
  key=value  +key=value  ++key=value  ~key  group=option      change, add, add or change, remove, choose
  -m, --multirun              one run for every combination of the values in key=a,b,c
  -c, --cfg job|hydra|all     show the configuration and stop; -p PART shows a part of it
  --resolve                   with --cfg: interpolations resolved
  --allow_remote_code         permit the code that a model brings along (with trust_remote_code)
  --json                      print the result as JSON
  --debug                     show tracebacks

configurations: {groups}

{config}"""


def main(recipe: str | Path, argv: Sequence[str] | None = None) -> int:
    """Run one command of ``training.py`` and return its exit code.

    Args:
        recipe: folder of ``training.py``, from which ``-cp`` starts.
        argv: what follows the script's name.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    return guarded(lambda: _run(Path(recipe).absolute(), arguments), debug="--debug" in arguments)


def _run(recipe: Path, arguments: list[str]) -> int:
    options = _parse(arguments)
    folder = recipe / (options.config_path or CONFIG_DIR)
    name = options.config_name or CONFIG_NAME
    if options.multirun:
        return _sweep(options, folder, name)
    composition = compose(folder, name, options.overrides, extra_dir=options.config_dir)
    if options.help:
        groups = ", ".join(sorted(str(path.relative_to(folder))[:-5] for path in folder.rglob("*.yaml")))
        say(HELP.format(groups=groups, config=composition.text))
        return 0
    if options.cfg:
        say_file(_shown(composition, options))
        return 0
    resolved = _resolve(composition, folder, allow_remote_code=options.allow_remote_code)
    from tunesmith.cli.train import train_resolved

    return train_resolved(resolved, [sys.argv[0], *arguments], as_json=options.json)


def _parse(arguments: list[str]) -> Namespace:
    """Hydra's own options, and ours beside them."""
    from hydra._internal.utils import get_args_parser

    parser = get_args_parser()
    parser.allow_abbrev = False
    for flag in ("--allow_remote_code", "--json", "--debug"):
        parser.add_argument(flag, action="store_true")
    parser.error = _refuse  # type: ignore[method-assign,assignment]
    options = parser.parse_intermixed_args(arguments)
    if options.experimental_rerun:
        raise UnsafeError(
            "--experimental-rerun opens a pickle, which can run any code",
            where=COMMAND_LINE,
            remedy="give the configuration and its overrides",
        )
    for flag in ("hydra_help", "shell_completion", "info"):
        if getattr(options, flag):
            name = flag.replace("_", "-")
            raise ConfigError(f"--{name} is not offered here", where=COMMAND_LINE, remedy="--help explains")
    if options.cfg and options.multirun:
        raise ConfigError("--cfg and --multirun exclude each other", where=COMMAND_LINE)
    if options.resolve and not options.cfg:
        raise ConfigError("--resolve belongs to --cfg", where=COMMAND_LINE)
    return options


def _refuse(message: str) -> None:
    raise ConfigError(message, where=COMMAND_LINE, remedy="--help explains; settings are written key=value")


def _resolve(composition: Composition, folder: Path, *, allow_remote_code: bool) -> Resolved:
    draft = hydra_yaml.draft(composition, folder)
    flags = []
    if allow_remote_code:
        flags.append(Setting("--allow_remote_code", True, COMMAND_LINE, Spelling("model.allow_remote_code")))
    return resolve_checked(draft, flags)


def _shown(composition: Composition, options: Namespace) -> str:
    """The text of ``--cfg``."""
    import yaml

    hydra = composition.hydra_text if options.cfg in ("hydra", "all") else ""
    if not options.resolve and not options.package:
        return hydra + (composition.text if options.cfg != "hydra" else "")
    tree = composition.tree if options.resolve else yaml.safe_load(composition.text)
    for part in (options.package or "").split(".") if options.package else ():
        if not isinstance(tree, dict) or part not in tree:
            raise ConfigError(f"the configuration has no {options.package!r}", where=COMMAND_LINE)
        tree = tree[part]
    comment = f"# @package {options.package}\n" if options.package else ""
    return hydra + comment + yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def _sweep(options: Namespace, folder: Path, name: str) -> int:
    """Run every combination, one process after another; runs that would share a run folder get numbered ones in it.

    All combinations are checked before the first one starts. The first failure ends the sweep with its exit code.
    """
    params = compose(folder, name, extra_dir=options.config_dir).sweep
    jobs = split_sweep(options.overrides, params)
    composed = [
        _resolve(
            compose(folder, name, overrides, extra_dir=options.config_dir),
            folder,
            allow_remote_code=options.allow_remote_code,
        )
        for overrides in jobs
    ]
    folders = [resolved.config.training.output_dir for resolved in composed]
    shared = len(set(map(_normal, folders))) < len(folders)
    for number, overrides in enumerate(jobs):
        home = str(Path(folders[number], str(number))) if shared else folders[number]
        tell(f"sweep     {number + 1} of {len(jobs)}: {' '.join(overrides)}  -> {home}")
        given = [*overrides, f"++train.output_dir='{home}'"] if shared else overrides
        done = subprocess.run([sys.executable, sys.argv[0], *_same_place(options), *given], check=False)
        if done.returncode:
            tell(f"error: run {number + 1} of the sweep ended with exit code {done.returncode}")
            return done.returncode
    return 0


def _normal(folder: str) -> str:
    return str(Path(folder).absolute().resolve())


def _same_place(options: Namespace) -> list[str]:
    """The options of this command line that every run of a sweep needs as well."""
    repeated = []
    for flag, value in (("-cp", options.config_path), ("-cn", options.config_name), ("-cd", options.config_dir)):
        repeated += [flag, value] if value else []
    for flag in ("allow_remote_code", "json", "debug"):
        repeated += [f"--{flag}"] if getattr(options, flag) else []
    return repeated
