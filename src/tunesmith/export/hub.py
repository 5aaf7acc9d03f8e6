"""A finished model to the hub: an explicit list of files, looked through for secrets, private unless asked otherwise.

Nothing of the folder is changed, whatever happens on the way. The token comes from the environment alone.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from tunesmith.config.files import parse_json, read_bytes
from tunesmith.errors import ModelError, StorageError, TunesmithError, UnsafeError
from tunesmith.export.card import CARD, Kind, read_records, render, run_folder_of, shorten_folders
from tunesmith.export.proof import PROOF
from tunesmith.export.token import hub_token
from tunesmith.model.source import ADAPTER_CONFIG, check_one_kind
from tunesmith.program import command
from tunesmith.report.belongings import check_finished, check_no_link
from tunesmith.report.folder import MAX_BYTES
from tunesmith.report.record import RECORD, read_record
from tunesmith.secrets import SHAPES, secret_in

PUSHED = (
    "adapter_model.safetensors",
    "adapter_config.json",
    "model.safetensors",
    "model-?????-of-?????.safetensors",
    "model.safetensors.index.json",
    "model-*.gguf",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "inference.json",
    "proof.json",
    "README.md",
)
"""What may leave the model's folder; checkpoints, optimizer states, data, logs and records of the run stay."""
EVALUATION = "evaluation/metrics.json"
DEADLINE = 8.0
"""Seconds within which the hub must answer the first question."""
_BINARY = (".safetensors", ".gguf", ".model")


@dataclass(frozen=True, slots=True)
class Upload:
    """One file of the repository: its path there, and the file or the text that it is made from."""

    path: str
    content: Path | str

    @property
    def size(self) -> int:
        """Bytes."""
        return self.content.stat().st_size if isinstance(self.content, Path) else len(self.content.encode())


def uploads(folder: str | Path, *, base_model: str | None = None) -> list[Upload]:
    """The files of a run folder or merged model that go to the hub, the card with the figures of today.

    Args:
        base_model: what adapter and card call the base; unset, what the run calls it, a folder by its last part.

    Raises:
        StorageError: there is no model, or its run or checkpoint is not finished.
        ModelError: there are two kinds of model, and which one is meant cannot be told.
        UnsafeError: a text holds something that looks like a secret, or names a folder of this machine.
    """
    folder = Path(folder)
    run = run_folder_of(folder)
    check_finished(folder)
    if (run / RECORD).is_file() and folder == run:
        folder = run / (read_record(run).resolved.config.training.final_subdir or "")
    if not folder.is_dir():
        raise StorageError("no such folder", where=str(folder), remedy="name a run folder or a merged model")
    check_one_kind(folder)
    found = {path.name: Upload(path.name, path) for path in sorted(folder.iterdir()) if _may_leave(path)}
    if not any(name.endswith(".safetensors") for name in found):
        raise StorageError("holds no finished model", where=str(folder), remedy="name a run folder or a merged model")
    if (run / RECORD).is_file():
        check_no_link(run, EVALUATION)  # it would lead to any file of this machine
        kind: Kind = "adapter" if ADAPTER_CONFIG in found else "merged" if PROOF in found else "full"
        found[CARD] = Upload(CARD, render(read_records(run, folder, base_model), kind))
        if (run / EVALUATION).is_file():
            text = _text_of(run / EVALUATION)
            found[EVALUATION] = Upload(EVALUATION, shorten_folders(text))
    if ADAPTER_CONFIG in found:
        found[ADAPTER_CONFIG] = Upload(ADAPTER_CONFIG, _portable(folder / ADAPTER_CONFIG, base_model))
    files = [found[name] for name in sorted(found)]
    for file in files:
        _refuse_secrets(file)
    return files


def push(folder: str | Path, repository: str, files: Sequence[Upload], *, private: bool = True) -> str:
    """Create the repository where there is none, and commit the files in one commit.

    Args:
        folder: what is pushed, for messages.
        repository: ``owner/name``.
        private: a new repository is private, and an existing public one is refused.

    Returns:
        The address of the repository.

    Raises:
        StorageError: no token, no answer, or the hub refuses; everything on this machine is as before.
        UnsafeError: the repository is public already, and nobody said that it may be.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    again = f"nothing here was changed; try again with `{command('tunesmith', 'push', str(folder), repository)}`"
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=hub_token(repository, again))
    _must_answer(api, repository, again)
    try:
        address = api.create_repo(repository, private=private, exist_ok=True)
        if private and not api.repo_info(repository).private:
            raise UnsafeError("the repository is public", where=repository, remedy="--public says that this is meant")
        operations = [
            CommitOperationAdd(
                path_in_repo=file.path,
                path_or_fileobj=file.content.encode() if isinstance(file.content, str) else str(file.content),
            )
            for file in files
        ]
        api.create_commit(repository, operations, commit_message="Upload by tunesmith")
    except TunesmithError:
        raise
    except Exception as error:  # the library raises many kinds; each means that the upload did not come about
        raise StorageError(f"the upload failed ({_reason(error)})", where=repository, remedy=again) from error
    return str(address)


def _may_leave(path: Path) -> bool:
    return path.is_file() and not path.is_symlink() and any(fnmatchcase(path.name, pattern) for pattern in PUSHED)


def _must_answer(api: Any, repository: str, again: str) -> None:
    """Ask who we are; a name look-up cannot be given a time limit, so the question is asked beside the main thread."""
    answer: list[Exception | None] = []

    def ask() -> None:
        try:
            api.whoami()
            answer.append(None)
        except Exception as error:  # judged below, in the thread that can raise it
            answer.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(DEADLINE)
    if not answer:
        raise StorageError(f"the hub does not answer within {DEADLINE:g} s", where=repository, remedy=again)
    if answer[0] is not None:
        raise StorageError(f"the hub refuses ({_reason(answer[0])})", where=repository, remedy=again) from answer[0]


def _reason(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def _portable(path: Path, base_model: str | None) -> str:
    """``adapter_config.json`` without the folder of a base on this machine, or with what the base is to be called."""
    try:
        values = parse_json(_text_of(path))
    except ValueError as error:
        raise ModelError(f"not valid JSON ({error})", where=str(path)) from error
    if not isinstance(values, dict):
        raise ModelError("holds no object of settings", where=str(path))
    base = str(values.get("base_model_name_or_path") or "")
    if base_model is not None or Path(base).is_absolute():
        values["base_model_name_or_path"] = base_model or Path(base).name
    return json.dumps(values, indent=2, sort_keys=True) + "\n"


def _text_of(path: Path) -> str:
    try:
        return read_bytes(path, MAX_BYTES).decode("utf-8")
    except OSError as error:
        raise StorageError(f"cannot read: {error.strerror or error}", where=str(path)) from error
    except UnicodeDecodeError as error:
        raise StorageError(f"is not UTF-8 ({error.reason} at byte {error.start})", where=str(path)) from error


def _refuse_secrets(file: Upload) -> None:
    if file.path.endswith(_BINARY):
        return
    text = file.content if isinstance(file.content, str) else _text_of(file.content)
    if SHAPES.search(text) or secret_in(text):
        raise UnsafeError("holds what looks like a secret", where=file.path, remedy="take it out before pushing")
    home = os.path.expanduser("~")  # itself where this user has none
    if len(home) > 1 and f"{home}/" in text:
        raise UnsafeError("names a folder of this machine", where=file.path, remedy="take it out before pushing")
